// A signed-in person opens the page of a hostile sandbox. The page tries to use the control
// plane as that person; what came of each attempt is the result.
//
// Input: { control, live, dev, setup, user, reads, writes, sockets, args, authority }

import { authenticator, main, open, register, until } from "./driver.mjs";

const READS = ["fetchRead", "xhr", "frame"];
const WRITES = ["fetchBlind", "fetchWrite", "form", "beacon"];

await main(async (input) => {
  const browser = await open({ args: input.args, authority: input.authority });
  try {
    const page = await browser.context.newPage();
    await authenticator(page);
    await page.goto(`${input.control}/register?setup=${input.setup}`);
    await register(page, { name: input.user, setup: input.setup });

    // The person's own pages may do what the hostile page may not.
    const own = await page.evaluate(async () => {
      const read = await fetch("/me/sandboxes");
      return { status: read.status, text: await read.text() };
    });
    for (const role of ["live", "dev"]) {
      await page.evaluate(async (role) => fetch(`/me/sandboxes/${role}/start`, { method: "POST" }), role);
    }

    const roles = {};
    for (const role of ["live", "dev"]) {
      await page.goto(`${input[role]}/`);
      await until(`the ${role} page`, () => page.evaluate(() => typeof window.attack === "function").catch(() => false));
      const attempts = {};
      const attack = (name, path) =>
        page.evaluate(([name, control, path]) => window.attack(name, control, path), [name, input.control, path]);
      for (const path of input.reads) for (const name of READS) attempts[`${name} ${path}`] = await attack(name, path);
      for (const path of input.writes) for (const name of WRITES) attempts[`${name} ${path}`] = await attack(name, path);
      for (const path of input.sockets) attempts[`webSocket ${path}`] = await attack("webSocket", path);
      roles[role] = {
        title: await page.title(),
        attempts,
        cookies: await page.evaluate(() => document.cookie),
        passkey: await page.evaluate(async (rpId) => {
          try {
            await navigator.credentials.get({ publicKey: { challenge: new Uint8Array(32), rpId, timeout: 3000 } });
            return "signed";
          } catch (error) {
            return error.name;
          }
        }, new URL(input.control).hostname),
        worker: await page.evaluate(async () => {
          try {
            const registration = await navigator.serviceWorker.register("hostile/sw.js", { scope: "/" });
            return `registered ${registration.scope}`;
          } catch (error) {
            return `refused: ${error.name}`;
          }
        }),
      };
    }
    // A worker of `dev` under the prefix would control `live`.
    await page.goto(`${input.live}/dev/`);
    roles.prefix = {
      title: await page.title(),
      worker: await page.evaluate(async () => {
        try {
          const registration = await navigator.serviceWorker.register("/dev/hostile/sw.js", { scope: "/" });
          return `registered ${registration.scope}`;
        } catch (error) {
          return `refused: ${error.name}`;
        }
      }),
    };
    await page.goto(`${input.control}/console`);
    const after = await page.evaluate(async () => {
      const json = async (path) => (await fetch(path)).json();
      return {
        me: (await fetch("/auth/me")).status,
        tokens: await json("/me/tokens"),
        invites: await json("/admin/invites"),
        codes: await json("/me/recovery-codes"),
        sandboxes: await json("/me/sandboxes"),
      };
    });
    const cookies = await browser.context.cookies();
    return {
      own,
      after,
      roles,
      cookies: cookies.map(({ name, domain, httpOnly, secure, sameSite, path }) => ({ name, domain, httpOnly, secure, sameSite, path })),
    };
  } finally {
    await browser.close();
  }
});

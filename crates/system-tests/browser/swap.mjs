// Both roles' pages are open when the roles are swapped.
//
// Input: { control, live, dev, setup, user, args, authority }

import { authenticator, main, open, register, until } from "./driver.mjs";

await main(async (input) => {
  const browser = await open({ args: input.args });
  try {
    const console_ = await browser.context.newPage();
    await authenticator(console_);
    await console_.goto(`${input.control}/register?setup=${input.setup}`);
    await register(console_, { name: input.user, setup: input.setup });
    const pages = {};
    for (const role of ["live", "dev"]) {
      await console_.evaluate(async (role) => fetch(`/me/sandboxes/${role}/start`, { method: "POST" }), role);
    }
    const closes = [];
    for (const role of ["live", "dev"]) {
      const page = await browser.context.newPage();
      await page.goto(`${input[role]}/`);
      await until(`the ${role} desktop`, () => page.evaluate(async () => {
        const answer = await fetch("api/info").catch(() => null);
        return answer?.ok ? (await answer.json()).sandbox_id : null;
      }).catch(() => null));
      pages[role] = page;
    }
    const info = (page) => page.evaluate(async () => (await fetch("api/info")).json());
    const before = { live: await info(pages.live), dev: await info(pages.dev) };
    for (const role of ["live", "dev"]) {
      // A socket of our own tells the close code. It is on a page without a desktop, which
      // might reload before this socket's turn comes.
      const witness = await browser.context.newPage();
      await witness.goto(`${input[role]}/health`);
      await witness.evaluate(() => {
        // Next to the page: under a single host `dev` has a path, not an origin.
        const socket = new WebSocket(new URL("ws", location.href).href.replace(/^http/, "ws"));
        window.probe = new Promise((resolve) => {
          socket.onclose = (event) => resolve({ code: event.code, reason: event.reason });
        });
        return new Promise((resolve, reject) => {
          socket.onopen = () => { socket.send(JSON.stringify({ type: "hello", since_seq: 0 })); resolve(); };
          socket.onerror = () => reject(new Error("no WebSocket"));
        });
      });
      closes.push(witness.evaluate(() => window.probe));
    }
    const loads = { live: 0, dev: 0 };
    for (const role of ["live", "dev"]) pages[role].on("load", () => { loads[role] += 1; });
    const swap = await console_.evaluate(async () => {
      const answer = await fetch("/me/sandboxes/swap", { method: "POST" });
      return { status: answer.status, body: await answer.json() };
    });
    const closed = await Promise.all(closes);
    await until("both desktops to reload", async () => loads.live > 0 && loads.dev > 0);
    const after = {};
    for (const role of ["live", "dev"]) {
      after[role] = await until(`the ${role} desktop`, () => info(pages[role]).catch(() => null));
    }
    const addresses = { live: pages.live.url(), dev: pages.dev.url() };
    return { before, after, swap, pages: addresses, closed: { live: closed[0], dev: closed[1] }, loads };
  } finally {
    await browser.close();
  }
});

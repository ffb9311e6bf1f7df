// A person's whole life with an account, through the pages: the set-up link, the desktop,
// signing out and in, losing the passkey, recovery; and a page of the sandbox that wants to sign in as them.
//
// Input: { control, live, link, user }

import { authenticator, main, open, until } from "./driver.mjs";

const me = (page) =>
  page.evaluate(async () => {
    const answer = await fetch("/auth/me");
    return { status: answer.status, text: await answer.text() };
  });

await main(async (input) => {
  const browser = await open();
  const complaints = [];
  try {
    const page = await browser.context.newPage();
    page.on("pageerror", (error) => complaints.push(String(error)));
    page.on("console", (message) => {
      // A policy that our own pages break is a fault of ours.
      if (message.type() === "error" && /Content Security Policy/.test(message.text())) complaints.push(message.text());
    });
    let device = await authenticator(page);
    const result = {};

    await page.goto(input.link);
    await page.getByLabel("User name").fill(input.user);
    await page.getByRole("button", { name: /create account/i }).click();
    const codes = page.getByRole("list", { name: "Recovery codes" }).getByRole("listitem");
    await codes.first().waitFor();
    result.codes = await codes.allInnerTexts();
    result.linkInAddressBar = page.url().includes("setup=");
    await page.getByRole("checkbox").check();
    await page.getByRole("button", { name: "Open my sandbox" }).click();
    await page.waitForURL(`${input.live}/**`);
    result.home = page.url();
    result.desktop = await until("the desktop", async () =>
      page.evaluate(async () => {
        const answer = await fetch("api/info").catch(() => null);
        return answer?.ok ? answer.json() : null;
      }).catch(() => null));
    await page.getByText("Connected", { exact: true }).waitFor({ state: "attached" });

    // The link works once.
    await page.goto(input.link);
    await page.getByRole("heading", { name: /does not work any more/ }).waitFor();
    result.linkWorksOnce = true;

    await page.goto(`${input.control}/console`);
    await page.getByRole("button", { name: "Sign out" }).click();
    await page.waitForURL("**/login**");
    result.afterLogout = await me(page);

    await page.getByRole("button", { name: "Sign in with a passkey" }).click();
    await page.waitForURL(`${input.live}/**`);
    await page.goto(`${input.control}/console`);
    result.afterLogin = await me(page);

    // A page of the sandbox asks for a signature over a challenge that is good at the
    // control plane. Under localhost Chromium lets it ask; what it gets must open nothing.
    const ceremony = await page.evaluate(async () =>
      (await fetch("/auth/login/start", { method: "POST", headers: { "content-type": "application/json" }, body: "{}" })).json());
    const phishing = await browser.context.newPage();
    await phishing.goto(`${input.live}/`);
    const copy = await authenticator(phishing);
    for (const credential of await device.credentials()) await copy.add(credential);
    const stolen = await phishing.evaluate(async ({ options, rpId }) => {
      try {
        const publicKey = PublicKeyCredential.parseRequestOptionsFromJSON({ ...(options.publicKey ?? options), rpId });
        return (await navigator.credentials.get({ publicKey })).toJSON();
      } catch (error) {
        return { error: error.name };
      }
    }, { options: ceremony.options, rpId: new URL(input.control).hostname });
    await phishing.close();
    await page.getByRole("button", { name: "Sign out" }).click();
    await page.waitForURL("**/login**");
    result.foreign = stolen.error ?? await page.evaluate(async (body) => {
      const answer = await fetch("/auth/login/finish", {
        method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
      });
      return answer.status;
    }, { ceremony: ceremony.ceremony, credential: stolen });
    result.afterForeign = await me(page);

    // The passkey is lost.
    await device.remove();
    device = await authenticator(page);
    await page.goto(`${input.control}/recovery`);
    await page.getByLabel("User name").fill(input.user);
    await page.getByRole("textbox", { name: "Recovery code" }).fill(result.codes[0]);
    await page.getByRole("button", { name: "Use this code" }).click();
    await page.getByRole("heading", { name: /welcome back/i }).waitFor();
    await page.getByRole("radio", { name: /revoke it/i }).check();
    await page.getByRole("button", { name: "Register a new passkey" }).click();
    await page.getByRole("heading", { name: /you are back in/i }).waitFor();
    await page.goto(`${input.control}/console`);
    result.afterRecovery = await me(page);
    result.passkeys = await page.evaluate(async () => (await (await fetch("/me/passkeys")).json()).passkeys.length);
    result.codesLeft = await page.evaluate(async () => (await (await fetch("/me/recovery-codes")).json()).remaining);

    // The same code again.
    await page.getByRole("button", { name: "Sign out" }).click();
    await page.waitForURL("**/login**");
    await page.goto(`${input.control}/recovery`);
    await page.getByLabel("User name").fill(input.user);
    await page.getByRole("textbox", { name: "Recovery code" }).fill(result.codes[0]);
    await page.getByRole("button", { name: "Use this code" }).click();
    await page.getByText(/do not fit together/i).waitFor();
    result.codeAgain = "refused";
    return { ...result, complaints };
  } finally {
    await browser.close();
  }
});

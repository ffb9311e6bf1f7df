// A page of another build asks for what is not there; the console says so in a line.
//
// Input: { control, live, setup, user }

import { authenticator, main, open, register, until } from "./driver.mjs";

await main(async (input) => {
  const browser = await open();
  try {
    const console_ = await browser.context.newPage();
    await authenticator(console_);
    await console_.goto(`${input.control}/register?setup=${input.setup}`);
    await register(console_, { name: input.user, setup: input.setup });
    await console_.evaluate(async () => fetch("/me/sandboxes/live/start", { method: "POST" }));
    await console_.goto(`${input.control}/console#sandboxes`);
    await console_.getByRole("button", { name: "Notices" }).first().waitFor();
    const before = await console_.getByText("Mismatched runtime").count();

    const page = await browser.context.newPage();
    await page.goto(`${input.live}/`);
    await until("the desktop", () => page.evaluate(async () => (await fetch("api/info").catch(() => null))?.ok).catch(() => null));
    for (let times = 0; times < 6; times += 1) {
      await page.evaluate((times) => new Promise((resolve) => {
        const script = document.createElement("script");
        script.onload = script.onerror = resolve;
        script.src = `/assets/of-another-build.js?${times}`;
        document.head.append(script);
      }), times);
    }
    // The console hears of it by itself.
    const line = console_.getByText("Mismatched runtime").first();
    await line.waitFor();
    return { before, line: await line.locator("xpath=..").innerText() };
  } finally {
    await browser.close();
  }
});

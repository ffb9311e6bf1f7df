// One button puts the last known-good state back, from the keyboard alone.
//
// Input: { control, live, setup, user, pictures? }

import { join } from "node:path";
import { authenticator, main, open, register, until } from "./driver.mjs";

await main(async (input) => {
  const browser = await open();
  try {
    const page = await browser.context.newPage();
    await authenticator(page);
    await page.goto(`${input.control}/register?setup=${input.setup}`);
    await register(page, { name: input.user, setup: input.setup });
    const sh = (script) => page.evaluate(async (script) => {
      const answer = await fetch("/me/sandboxes/live/commands", {
        method: "POST", headers: { "content-type": "application/json" },
        body: JSON.stringify({ argv: ["sh", "-c", script] }),
      });
      return { status: answer.status, text: await answer.text() };
    }, script);
    await page.evaluate(async () => fetch("/me/sandboxes/live/start", { method: "POST" }));
    await sh("echo works > /workspace/app; echo mine > ~/notes");

    await page.goto(`${input.control}/console#sandboxes`);
    const card = page.locator("article, section, .card").filter({ has: page.getByRole("button", { name: "Restore last known good" }) }).first();
    const button = card.getByRole("button", { name: "Restore last known good" }).first();
    await button.waitFor();

    // Nothing is marked yet: it says what to do.
    await button.click();
    const nothing = page.getByRole("dialog", { name: "Nothing to go back to yet" });
    await nothing.waitFor();
    const advice = await nothing.innerText();
    await page.keyboard.press("Escape");

    // Taken and marked in the dialog.
    await page.getByRole("button", { name: "Snapshots" }).first().click();
    const dialog = page.getByRole("dialog", { name: "Snapshots of live" });
    await dialog.getByLabel("Name of the snapshot (optional)").fill("works");
    await dialog.getByRole("button", { name: "Take a snapshot" }).click();
    await dialog.getByRole("button", { name: "Known good: works" }).click();
    await dialog.getByText("known good", { exact: true }).waitFor();
    await dialog.getByRole("button", { name: "Close" }).click();

    const broken = await sh("rm -rf ~/notes; echo broken > /workspace/app; cat /workspace/app");

    // From here on the keyboard alone.
    await button.focus();
    await page.keyboard.press("Enter");
    const ask = page.getByRole("dialog", { name: "Restore the last known good live?" });
    await ask.waitFor();
    const asked = await ask.innerText();
    const described = await ask.evaluate((dialog) => document.getElementById(dialog.getAttribute("aria-describedby"))?.innerText ?? "");
    if (input.pictures) await page.screenshot({ path: join(input.pictures, "known-good-asks.png") });
    // Escape changes nothing.
    await page.keyboard.press("Escape");
    await ask.waitFor({ state: "detached" });
    const untouched = await sh("cat /workspace/app");
    await button.focus();
    await page.keyboard.press("Enter");
    await ask.waitFor();
    for (let presses = 0; presses < 6; presses += 1) {
      const focused = await page.evaluate(() => document.activeElement?.textContent);
      if (focused === "Restore") break;
      await page.keyboard.press("Tab");
    }
    await page.keyboard.press("Enter");
    await page.getByText(/live is what it was in/).waitFor();
    if (input.pictures) await page.screenshot({ path: join(input.pictures, "known-good-done.png") });
    const back = await until("the restored sandbox", async () => {
      const done = await sh("cat /workspace/app ~/notes");
      return done.status === 200 ? done : null;
    });
    const { snapshots } = await page.evaluate(async () => (await fetch("/me/sandboxes/live/snapshots")).json());
    return { advice, broken, asked, described, untouched, back, snapshots };
  } finally {
    await browser.close();
  }
});

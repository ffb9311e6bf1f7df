// Pictures of every page, at both widths and in both themes, for people to look at.
//
// Input: { control, live, dev, setup, user, directory }; result: the files.

import { join } from "node:path";
import { authenticator, main, open, register, until } from "./driver.mjs";

const SIZES = { wide: { width: 1280, height: 800 }, narrow: { width: 390, height: 844 } };
const THEMES = ["light", "dark"];
const TASK = 'create hello.py: print("hello from the sandbox")\nrun: python3 hello.py\nremember: hello.py greets';

await main(async (input) => {
  const browser = await open();
  const files = [];
  try {
    const page = await browser.context.newPage();
    await authenticator(page);
    const shoot = async (name, prepare, ready) => {
      for (const [size, viewport] of Object.entries(SIZES)) {
        for (const theme of THEMES) {
          await page.setViewportSize(viewport);
          await page.emulateMedia({ colorScheme: theme });
          await prepare(page);
          await ready?.(page);
          const path = join(input.directory, `${name}-${size}-${theme}.png`);
          // A change of theme is a transition, which would be seen half done.
          await page.screenshot({ path, animations: "disabled" });
          files.push(path);
        }
      }
    };
    const at = (url) => (page) => page.goto(url);
    const heading = (name) => (page) => page.getByRole("heading", { name }).first().waitFor();

    await shoot("login", at(`${input.control}/login`), heading("Sign in"));
    await shoot("register", at(`${input.control}/register?setup=${input.setup}`), (page) => page.getByLabel("User name").waitFor());
    await shoot("recovery", at(`${input.control}/recovery`), (page) => page.getByLabel("User name").waitFor());
    await register(page, { name: input.user, setup: input.setup });

    await shoot("console-sandboxes", at(`${input.control}/console#sandboxes`), (page) => page.getByText(/live/).first().waitFor());
    for (const role of ["live", "dev"]) {
      await page.goto(`${input[role]}/`);
      await page.getByText("Connected", { exact: true }).waitFor({ state: "attached" });
    }
    await page.evaluate(async (prompt) => {
      await fetch("conductor/execute", {
        method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ prompt }),
      });
    }, TASK);
    await until("the end of the run", () => page.evaluate(async () => {
      const { runs } = await (await fetch("conductor/runs")).json();
      return runs.length > 0 && runs.every((run) => run.status !== "running");
    }));
    const connected = (page) => page.getByText("Connected", { exact: true }).waitFor({ state: "attached" });
    await shoot("desktop-live", at(`${input.live}/`), connected);
    await shoot("desktop-dev", at(`${input.dev}/`), connected);
    await shoot("desktop-dev-run", at(`${input.dev}/`), async (page) => {
      await connected(page);
      await page.getByText("create hello.py").first().click();
      await page.getByText("Use again").waitFor();
      await page.getByText("Loading the task").waitFor({ state: "detached" });
    });
    await shoot("console-running", at(`${input.control}/console#sandboxes`), (page) => page.getByText(/running/i).first().waitFor());
    await shoot("console-account", at(`${input.control}/console#account`), heading("Passkeys"));
    await shoot("console-admin", at(`${input.control}/console#admin`), heading(/Invit/));
    return files;
  } finally {
    await browser.close();
  }
});

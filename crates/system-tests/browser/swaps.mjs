// Both roles' desktops stay open over many swaps: how they come back, and what that costs.
//
// Input: { control, live, dev, setup, user, swaps }

import { authenticator, main, open, register, until } from "./driver.mjs";

await main(async (input) => {
  const browser = await open();
  try {
    const console_ = await browser.context.newPage();
    await authenticator(console_);
    await console_.goto(`${input.control}/register?setup=${input.setup}`);
    await register(console_, { name: input.user, setup: input.setup });
    const call = (method, path) => console_.evaluate(async ({ method, path }) => {
      const answer = await fetch(path, { method });
      return { status: answer.status, body: await answer.json() };
    }, { method, path });
    const pages = {};
    const failed = [];
    const counts = {};
    for (const role of ["live", "dev"]) {
      await call("POST", `/me/sandboxes/${role}/start`);
      const page = await browser.context.newPage();
      counts[role] = { loads: 0, sockets: 0 };
      page.on("load", () => { counts[role].loads += 1; });
      page.on("websocket", () => { counts[role].sockets += 1; });
      page.on("response", (answer) => {
        if (answer.status() >= 400) failed.push(`${role} ${answer.status()} ${answer.url()}`);
      });
      page.on("pageerror", (error) => failed.push(`${role} ${error}`));
      await page.goto(`${input[role]}/`);
      pages[role] = page;
    }
    // Connected, and what the page itself was served with is what answers it.
    const state = (page) => page.evaluate(async () => {
      const connected = [...document.querySelectorAll("*")].some((element) => element.textContent === "Connected");
      const [navigation] = performance.getEntriesByType("navigation");
      const timing = navigation.serverTiming.find((one) => one.name === "choir");
      const info = await (await fetch("api/info")).json();
      return { connected, served: Number(timing?.description.split("=")[1]), generation: info.generation, role: info.role };
    }).catch(() => null);
    const back = (role, generation) => until(`the ${role} desktop at ${generation}`, async () => {
      const now = await state(pages[role]);
      return now?.connected && now.served === generation && now.generation === generation ? now : null;
    });
    for (const role of ["live", "dev"]) await back(role, 0);
    const rounds = [];
    for (let number = 1; number <= input.swaps; number += 1) {
      for (const role of ["live", "dev"]) counts[role] = { loads: 0, sockets: 0 };
      const began = Date.now();
      const swap = await call("POST", "/me/sandboxes/swap");
      if (swap.status !== 200) throw new Error(`swap ${number}: ${swap.status} ${JSON.stringify(swap.body)}`);
      const round = {};
      await Promise.all(["live", "dev"].map(async (role) => {
        const now = await back(role, number);
        round[role] = { ...now, back_ms: Date.now() - began };
      }));
      for (const role of ["live", "dev"]) Object.assign(round[role], counts[role]);
      rounds.push(round);
    }
    const storms = [];
    for (const role of ["live", "dev"]) {
      const { body } = await call("GET", `/me/sandboxes/${role}/notices`);
      storms.push(...body.notices.filter((notice) => ["reconnect_storm", "mismatched_runtime"].includes(notice.kind)));
    }
    return { rounds, failed, storms };
  } finally {
    await browser.close();
  }
});

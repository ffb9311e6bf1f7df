// A signed-in person opens servers that commands started in the workbench, each at an origin
// of its own. The pages try to reach each other, the runtime and the control plane.
//
// Input: { control, live, setup, server, ports }

import { authenticator, main, open, register, until } from "./driver.mjs";

await main(async (input) => {
  const browser = await open();
  try {
    const page = await browser.context.newPage();
    await authenticator(page);
    await page.goto(`${input.control}/register?setup=${input.setup}`);
    await register(page, { name: "alice", setup: input.setup });
    const call = (method, path, body) =>
      page.evaluate(
        async ([method, path, body]) => {
          const answer = await fetch(path, {
            method,
            headers: { "content-type": "application/json" },
            body: body && JSON.stringify(body),
          });
          return { status: answer.status, body: await answer.json().catch(() => null) };
        },
        [method, path, body],
      );
    await call("POST", "/me/sandboxes/live/start", {});
    for (const port of input.ports) {
      const argv = ["python3", "-c", input.server, String(port)];
      await call("POST", "/me/sandboxes/live/commands", { argv, detach: true, label: `web-${port}` });
    }
    const listed = await until("listening servers", async () => {
      const { body } = await call("GET", "/me/sandboxes/live/ports");
      return body.ports.length === input.ports.length && body.ports;
    });
    const url = Object.fromEntries(listed.map(({ port, url }) => [port, url]));
    // The runtime has a cookie too, which must open nothing here.
    await page.goto(`${input.live}/`);
    await until("the desktop", () => page.evaluate(() => document.title !== "").catch(() => false));

    const ports = {};
    for (const port of input.ports) {
      await page.goto(url[port]);
      const others = [input.control, input.live, ...input.ports.filter((other) => other !== port).map((other) => url[other])];
      ports[port] = await page.evaluate(
        async ([port, others]) => {
          const socket = (address) =>
            new Promise((resolve) => {
              const opened = new WebSocket(address);
              opened.onopen = () => opened.send("echoed");
              opened.onmessage = (event) => { resolve(event.data); opened.close(); };
              opened.onerror = () => resolve("closed");
            });
          const stored = localStorage.getItem("mark");
          localStorage.setItem("mark", String(port));
          const attempts = {};
          for (const other of others) {
            const base = other.replace(/\/$/, "");
            attempts[`fetch ${base}`] = await fetch(`${base}/me/sandboxes`, { credentials: "include" })
              .then((answer) => `read ${answer.status}`, () => "refused");
            attempts[`post ${base}`] = await fetch(`${base}/x`, { method: "POST", body: "x", credentials: "include" })
              .then((answer) => `wrote ${answer.status}`, () => "refused");
            attempts[`socket ${base}`] = await socket(`${base.replace("http", "ws")}/ws`);
          }
          // A frame of the runtime is refused or empty, and its document out of reach.
          const frame = document.createElement("iframe");
          frame.src = others[1];
          await new Promise((resolve) => { frame.onload = frame.onerror = resolve; document.body.append(frame); });
          try {
            attempts.frame = frame.contentDocument === null ? "closed" : frame.contentDocument.body.innerText === "" ? "empty" : "read";
          } catch {
            attempts.frame = "closed";
          }
          const before = document.cookie;
          document.cookie = "choir_runtime=tossed";
          return {
            title: document.title,
            cookies: before,
            stored,
            attempts,
            echo: await socket(`${location.origin.replace("http", "ws")}/ws`),
            worker: await navigator.serviceWorker.register("/sw.js").then(
              (registration) => `registered ${new URL(registration.scope).pathname}`,
              (error) => `refused: ${error.name}`,
            ),
          };
        },
        [port, others],
      );
    }
    await page.goto(`${input.control}/console`);
    const after = (await call("GET", "/auth/me")).status;
    const cookies = await browser.context.cookies();
    return {
      ports,
      after,
      cookies: cookies.map(({ name, domain, httpOnly }) => ({ name, domain, httpOnly })),
    };
  } finally {
    await browser.close();
  }
});

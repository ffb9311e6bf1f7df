// What every browser script shares: Chromium with an empty profile, a virtual
// authenticator, and one JSON document in and out.

import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";

const PATIENCE_MS = 30_000;

const PROGRAMS = [
  process.env.CHROMIUM,
  "/usr/bin/chromium",
  "/usr/bin/chromium-browser",
  "/usr/bin/google-chrome",
  "/run/current-system/sw/bin/chromium",
];

// No traffic but that of the page under test.
const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

function program() {
  const found = PROGRAMS.find((path) => path && existsSync(path));
  if (!found) throw new Error("no Chromium; `cargo xtask test` says how to get it, CHROMIUM names one elsewhere");
  return found;
}

/** Starts Chromium with a profile of its own. `options.authority` is a PEM file to trust. */
export async function open(options = {}) {
  const home = mkdtempSync(join(tmpdir(), "choir-browser-"));
  if (options.authority) trust(home, options.authority);
  const context = await chromium.launchPersistentContext(join(home, "profile"), {
    executablePath: program(),
    headless: true,
    args: [...FLAGS, ...(options.args ?? [])],
    // Certificates that the tests made are in the database of this home.
    env: { ...process.env, HOME: home },
    viewport: options.viewport ?? { width: 1280, height: 800 },
    colorScheme: options.colorScheme ?? "light",
  });
  context.setDefaultTimeout(PATIENCE_MS);
  return {
    context,
    async close() {
      await context.close();
      rmSync(home, { recursive: true, force: true });
    },
  };
}

function trust(home, authority) {
  const database = `sql:${join(home, ".pki/nssdb")}`;
  const run = (...args) => {
    const done = spawnSync("certutil", args, { encoding: "utf8" });
    if (done.status !== 0) throw new Error(`certutil ${args[0]}: ${done.stderr || done.error}`);
  };
  spawnSync("mkdir", ["-p", join(home, ".pki/nssdb")]);
  run("-N", "-d", database, "--empty-password");
  run("-A", "-d", database, "-n", "tests", "-t", "C,,", "-i", authority);
}

/** Adds an authenticator that says yes to everything, as a laptop's fingerprint reader would. */
export async function authenticator(page) {
  const session = await page.context().newCDPSession(page);
  await session.send("WebAuthn.enable");
  const { authenticatorId } = await session.send("WebAuthn.addVirtualAuthenticator", {
    options: {
      protocol: "ctap2",
      transport: "internal",
      hasResidentKey: true,
      hasUserVerification: true,
      isUserVerified: true,
      automaticPresenceSimulation: true,
    },
  });
  return {
    async credentials() {
      return (await session.send("WebAuthn.getCredentials", { authenticatorId })).credentials;
    },
    async add(credential) {
      await session.send("WebAuthn.addCredential", { authenticatorId, credential });
    },
    async remove() {
      await session.send("WebAuthn.removeVirtualAuthenticator", { authenticatorId });
    },
  };
}

/** Registers with the page's own origin as the control origin, whatever the page looks like. */
export async function register(page, body) {
  return page.evaluate(async (body) => {
    const post = async (path, body) => {
      const answer = await fetch(path, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify(body),
      });
      const json = await answer.json();
      if (!answer.ok) throw new Error(`${path}: ${answer.status} ${JSON.stringify(json)}`);
      return json;
    };
    const { ceremony, options } = await post("/auth/register/start", body);
    const publicKey = PublicKeyCredential.parseCreationOptionsFromJSON(options.publicKey ?? options);
    const credential = await navigator.credentials.create({ publicKey });
    return post("/auth/register/finish", { ceremony, credential: credential.toJSON() });
  }, body);
}

/** Waits until a condition in the page or in our hands holds. */
export async function until(what, look) {
  const deadline = Date.now() + PATIENCE_MS;
  for (;;) {
    const found = await look();
    if (found) return found;
    if (Date.now() > deadline) throw new Error(`waited in vain for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** Runs a script: JSON from standard input to `act`, its result as JSON to standard output. */
export async function main(act) {
  let text = "";
  for await (const piece of process.stdin) text += piece;
  const result = await act(JSON.parse(text || "{}"));
  process.stdout.write(`${JSON.stringify(result)}\n`);
}

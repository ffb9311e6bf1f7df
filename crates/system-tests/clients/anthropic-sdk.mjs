// The `@anthropic-ai/sdk` package from npm, as it is, pointed at the gateway by its environment
// alone.

import assert from "node:assert/strict";
import Anthropic, * as sdk from "@anthropic-ai/sdk";

const where = process.argv[2]; // distinguishes what the double counts
const large = 20 << 20;
const tooLarge = 33 << 20;

const client = new Anthropic();
const once = client.withOptions({ maxRetries: 0 });
const tools = [
  {
    name: "weather",
    input_schema: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
];

const user = (text) => [{ role: "user", content: text }];
const body = (text, more = {}) => ({ model: "claude-double", max_tokens: 64, messages: user(text), ...more });
const say = (text, more = {}, options = {}, by = once) => by.messages.create(body(text, more), options);
const ok = (what) => console.log(`ok ${what}`);

async function fails(kind, call) {
  try {
    await call();
  } catch (error) {
    assert(error instanceof kind, `${error?.constructor?.name}: ${error}`);
    return error;
  }
  assert.fail(`no ${kind.name}`);
}

async function all(stream) {
  const events = [];
  for await (const event of stream) events.push(event);
  return events;
}

// Plain.
const listed = (await all(client.models.list())).map((model) => model.id);
assert(listed.includes("claude-double"), `${listed}`);
const answer = await say("hello");
assert.match(answer.content[0].text, /: hello$/);
assert.equal(answer.usage.output_tokens, 7);
assert.match(answer._request_id, /^req_double_/);
const counted = await once.messages.countTokens({ model: "claude-double", messages: user("hello") });
assert.equal(counted.input_tokens, 11);
ok("plain");

// Streaming.
const stream = once.messages.stream(body("hello to the stream"));
const deltas = (await all(stream)).filter((event) => event.type === "content_block_delta");
assert(deltas.length > 4, `${deltas.length}`);
assert.match(await stream.finalText(), /: hello to the stream$/);
const said = [(await say("echo")).content[0].text];
said.push(await once.messages.stream(body("echo")).finalText());
// The key itself is looked for by whoever knows it.
assert(said.every((text) => text.startsWith("the key is ")), `${said}`);
console.log(said);
ok("streaming");

// Tools: asked for, done, and told.
const asked = await once.messages.stream(body("tool", { tools })).finalMessage();
assert.deepEqual(asked.content[0].input, { city: "Paris" });
const result = {
  role: "user",
  content: [{ type: "tool_result", tool_use_id: asked.content[0].id, content: "sunny" }],
};
const messages = [...user("tool"), { role: "assistant", content: asked.content }, result];
const told = await once.messages.create({ ...body("", { tools }), messages });
assert.equal(told.content[0].text, "the tool said: sunny");
ok("tools");

// Errors: the provider's and the gateway's own, each as the class that programs catch.
const refused = await fails(sdk.BadRequestError, () => say("fail 400"));
assert.match(refused.message, /as it was told/);
const limited = await fails(sdk.RateLimitError, () => say("fail 429 after 30"));
assert.equal(limited.headers.get("retry-after"), "30");
const overloaded = await fails(sdk.InternalServerError, () => say("fail 529"));
assert.equal(overloaded.status, 529);
const unknown = await fails(sdk.NotFoundError, () => say("x", { model: "none" }));
assert.match(unknown.message, /claude-double/);
assert(unknown.requestID, "a refusal of the gateway has an id as well");
const stolen = once.withOptions({ apiKey: "choirgw_" + "x".repeat(50) });
await fails(sdk.AuthenticationError, () => say("hello", {}, {}, stolen));
await fails(Error, async () => all(await say(`break ${where}`, { stream: true })));
ok("errors");

// Retries: the gateway's (one more try a call), and the SDK's on top of them.
assert.equal((await say(`fail 503 x1 ${where}`)).content[0].text, "after 1 failures");
const twice = client.withOptions({ maxRetries: 2 });
assert.equal((await say(`fail 500 x3 ${where}`, {}, {}, twice)).content[0].text, "after 3 failures");
ok("retries");

// Cancellation: a stream that is left, and calls that are given up.
let seen = 0;
for await (const _ of await say(`slow ${where}`, { stream: true })) {
  if (++seen === 5) break;
}
console.log(`left slow ${where} at ${Date.now()}`);
const controller = new AbortController();
setTimeout(() => controller.abort(), 1000);
await fails(sdk.APIUserAbortError, () => say(`silent ${where}`, {}, { signal: controller.signal }));
console.log(`left silent ${where} at ${Date.now()}`);
ok("cancellation");

// Large bodies.
const length = Number((await say("x".repeat(large))).content[0].text.split(" ")[1]);
assert(length > large, `${length}`);
const over = await fails(sdk.APIError, () => say("x".repeat(tooLarge)));
assert.equal(over.status, 413, `${over}`);
ok("large bodies");

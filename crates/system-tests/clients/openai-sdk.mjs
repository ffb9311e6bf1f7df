// The `openai` package from npm, as it is, pointed at the gateway by its environment alone.

import assert from "node:assert/strict";
import OpenAI, * as sdk from "openai";

const where = process.argv[2]; // distinguishes what the double counts
const large = 20 << 20;
const tooLarge = 33 << 20;

const client = new OpenAI();
const once = client.withOptions({ maxRetries: 0 });
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };

const user = (text) => [{ role: "user", content: text }];
const chat = (text, more = {}, options = {}, by = once) =>
  by.chat.completions.create({ model: "gpt-double", messages: user(text), ...more }, options);
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
assert(listed.includes("gpt-double") && listed.includes("fast"), `${listed}`);
const answer = await chat("hello");
assert.match(answer.choices[0].message.content, /: hello$/);
assert.equal(answer.usage.prompt_tokens, 11);
assert.match(answer._request_id, /^req_double_/);
const made = await once.responses.create({ model: "gpt-double", input: "hello" });
assert.match(made.output_text, /: hello$/);
const vectors = await once.embeddings.create({ model: "gpt-double", input: "hello" });
assert.deepEqual([...vectors.data[0].embedding], [0.25, 0.25, 0.25, 0.25]);
ok("plain");

// Streaming.
const chunks = await all(
  await chat("hello to the stream", { stream: true, stream_options: { include_usage: true } }),
);
assert.match(chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join(""), /: hello to the stream$/);
assert.equal(chunks.at(-1).usage.completion_tokens, 7);
const stream = once.responses.stream({ model: "gpt-double", input: "hello to the stream" });
const deltas = (await all(stream)).filter((event) => event.type === "response.output_text.delta");
assert(deltas.length > 4, `${deltas.length}`);
const said = [(await chat("echo")).choices[0].message.content];
const echoed = await all(await chat("echo", { stream: true }));
said.push(echoed.map((chunk) => chunk.choices[0]?.delta.content ?? "").join(""));
// The key itself is looked for by whoever knows it.
assert(said.every((text) => text.startsWith("the key is ")), `${said}`);
console.log(said);
ok("streaming");

// Tools: asked for, done, and told.
const tools = [{ type: "function", function: { name: "weather", parameters } }];
const message = (await once.chat.completions.stream({ model: "gpt-double", messages: user("tool"), tools }).finalMessage());
const [asked] = message.tool_calls;
assert.deepEqual(JSON.parse(asked.function.arguments), { city: "Paris" });
const result = { role: "tool", tool_call_id: asked.id, content: "sunny" };
const told = await once.chat.completions.create({
  model: "gpt-double",
  messages: [...user("tool"), message, result],
  tools,
});
assert.equal(told.choices[0].message.content, "the tool said: sunny");
ok("tools");

// Errors: the provider's and the gateway's own, each as the class that programs catch.
const refused = await fails(sdk.BadRequestError, () => chat("fail 400"));
assert.equal(refused.code, "invalid_value");
const limited = await fails(sdk.RateLimitError, () => chat("fail 429 after 30"));
assert.equal(limited.headers.get("retry-after"), "30");
await fails(sdk.InternalServerError, () => chat("fail 500"));
const unknown = await fails(sdk.NotFoundError, () => chat("x", { model: "none" }));
assert.equal(unknown.code, "model_not_found");
assert(unknown.requestID, "a refusal of the gateway has an id as well");
const stolen = once.withOptions({ apiKey: "choirgw_" + "x".repeat(50) });
await fails(sdk.AuthenticationError, () => chat("hello", {}, {}, stolen));
await fails(Error, async () => all(await chat(`break ${where}`, { stream: true })));
ok("errors");

// Retries: the gateway's (one more try a call), and the SDK's on top of them.
assert.equal((await chat(`fail 503 x1 ${where}`)).choices[0].message.content, "after 1 failures");
const twice = client.withOptions({ maxRetries: 2 });
const at_last = await chat(`fail 500 x3 ${where}`, {}, {}, twice);
assert.equal(at_last.choices[0].message.content, "after 3 failures");
ok("retries");

// Cancellation: a stream that is left, and calls that are given up.
let seen = 0;
for await (const _ of await chat(`slow ${where}`, { stream: true })) {
  if (++seen === 5) break;
}
console.log(`left slow ${where} at ${Date.now()}`);
const controller = new AbortController();
setTimeout(() => controller.abort(), 1000);
await fails(sdk.APIUserAbortError, () => chat(`silent ${where}`, {}, { signal: controller.signal }));
console.log(`left silent ${where} at ${Date.now()}`);
ok("cancellation");

// Large bodies.
const length = Number((await chat("x".repeat(large))).choices[0].message.content.split(" ")[1]);
assert(length > large, `${length}`);
const over = await fails(sdk.APIError, () => chat("x".repeat(tooLarge)));
assert.equal(over.status, 413, `${over}`);
ok("large bodies");

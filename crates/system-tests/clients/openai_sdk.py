"""The `openai` package from PyPI, as it is, pointed at the gateway by its environment alone."""

import json
import sys
import time

import openai

WHERE = sys.argv[1]  # distinguishes what the double counts
LARGE = 20 << 20
TOO_LARGE = 33 << 20

client = openai.OpenAI()
once = client.with_options(max_retries=0)
TOOL = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def user(text):
    return [{"role": "user", "content": text}]


def chat(text, client=once, **more):
    return client.chat.completions.create(model="gpt-double", messages=user(text), **more)


def ok(what):
    print(f"ok {what}", flush=True)


def fails(kind, text, call=chat):
    try:
        call(text)
    except kind as error:
        return error
    raise AssertionError(f"{text!r} did not raise {kind.__name__}")


# Plain.
listed = [model.id for model in client.models.list()]
assert "gpt-double" in listed and "fast" in listed, listed
assert client.models.retrieve("gpt-double").id == "gpt-double"
answer = chat("hello")
assert answer.choices[0].message.content.endswith(": hello"), answer
assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (11, 7), answer.usage
assert answer._request_id.startswith("req_double_"), answer._request_id
aliased = once.chat.completions.create(model="fast", messages=user("hello"))
assert aliased.model == "gpt-double", aliased.model
made = once.responses.create(model="gpt-double", input="hello")
assert made.output_text.endswith(": hello") and made.usage.input_tokens == 11, made
vector = once.embeddings.create(model="gpt-double", input="hello").data[0].embedding
assert vector == [0.25] * 4, vector
said = [chat("echo").choices[0].message.content]
ok("plain")

# Streaming.
pieces, usage = [], None
for chunk in chat("hello to the stream", stream=True, stream_options={"include_usage": True}):
    if chunk.choices:
        pieces.append(chunk.choices[0].delta.content or "")
    usage = chunk.usage or usage
assert "".join(pieces).endswith(": hello to the stream") and len(pieces) > 4, pieces
assert usage.completion_tokens == 7, usage
with once.responses.stream(model="gpt-double", input="hello to the stream") as stream:
    kinds = [event.type for event in stream]
    assert kinds.count("response.output_text.delta") > 4, kinds
    assert stream.get_final_response().output_text.endswith(": hello to the stream")
said.append("".join(
    chunk.choices[0].delta.content or "" for chunk in chat("echo", stream=True) if chunk.choices
))
with once.responses.stream(model="gpt-double", input="echo") as stream:
    said.append(stream.get_final_response().output_text)
# The key itself is looked for by whoever knows it.
assert all(text.startswith("the key is ") for text in said), said
print(said, flush=True)
ok("streaming")

# Tools: asked for, done, and told, streamed and not.
tools = [{"type": "function", "function": {"name": "weather", "parameters": TOOL}}]
message = chat("tool", tools=tools).choices[0].message
(asked,) = message.tool_calls
assert json.loads(asked.function.arguments) == {"city": "Paris"}, asked
result = {"role": "tool", "tool_call_id": asked.id, "content": "sunny"}
told = once.chat.completions.create(model="gpt-double", messages=[*user("tool"), message, result], tools=tools)
assert told.choices[0].message.content == "the tool said: sunny", told
with once.chat.completions.stream(model="gpt-double", messages=user("tool"), tools=tools) as stream:
    (asked,) = stream.get_final_completion().choices[0].message.tool_calls
assert json.loads(asked.function.arguments) == {"city": "Paris"}, asked
tools = [{"type": "function", "name": "weather", "parameters": TOOL, "strict": False}]
with once.responses.stream(model="gpt-double", input=user("tool"), tools=tools) as stream:
    (asked,) = stream.get_final_response().output
assert json.loads(asked.arguments) == {"city": "Paris"}, asked
result = {"type": "function_call_output", "call_id": asked.call_id, "output": "sunny"}
asked = {"type": "function_call", "call_id": asked.call_id, "name": "weather", "arguments": asked.arguments}
told = once.responses.create(model="gpt-double", input=[*user("tool"), asked, result], tools=tools)
assert told.output_text == "the tool said: sunny", told
ok("tools")

# Errors: the provider's and the gateway's own, each as the class that programs catch.
refused = fails(openai.BadRequestError, "fail 400")
assert refused.code == "invalid_value" and "as it was told" in refused.message, refused
limited = fails(openai.RateLimitError, "fail 429 after 30")
assert limited.response.headers["retry-after"] == "30", limited.response.headers
assert limited.request_id.startswith("req_double_"), limited.request_id
fails(openai.InternalServerError, "fail 500")
unknown = fails(openai.NotFoundError, "", lambda _: once.chat.completions.create(model="none", messages=user("x")))
assert unknown.code == "model_not_found" and "gpt-double" in unknown.message, unknown
assert unknown.request_id, "a refusal of the gateway has an id as well"
fails(openai.NotFoundError, "", lambda _: once.files.list())
stolen = once.with_options(api_key="choirgw_" + "x" * 50)
fails(openai.AuthenticationError, "hello", lambda text: chat(text, client=stolen))
fails(openai.APIError, f"break {WHERE}", lambda text: list(chat(text, stream=True)))
ok("errors")

# Retries: the gateway's (one more try a call), and the SDK's on top of them.
assert chat(f"fail 503 x1 {WHERE}").choices[0].message.content == "after 1 failures"
twice = client.with_options(max_retries=2)
assert chat(f"fail 500 x3 {WHERE}", client=twice).choices[0].message.content == "after 3 failures"
ok("retries")

# Cancellation: a stream that is left, and a call whose caller loses patience.
stream = chat(f"slow {WHERE}", stream=True)
for _ in range(5):
    next(stream)
stream.close()
print(f"left slow {WHERE} at {time.time_ns() // 1_000_000}", flush=True)
fails(openai.APITimeoutError, f"silent {WHERE}", lambda text: chat(text, timeout=2))
print(f"left silent {WHERE} at {time.time_ns() // 1_000_000}", flush=True)
ok("cancellation")

# Large bodies.
answer = chat("x" * LARGE).choices[0].message.content
assert int(answer.split()[1]) > LARGE, answer
refused = fails(openai.APIStatusError, "x" * TOO_LARGE)
assert refused.status_code == 413 and "max_request_bytes" in refused.message, refused
ok("large bodies")

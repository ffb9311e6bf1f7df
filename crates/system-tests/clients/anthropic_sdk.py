"""The `anthropic` package from PyPI, as it is, pointed at the gateway by its environment alone."""

import sys
import time

import anthropic

WHERE = sys.argv[1]  # distinguishes what the double counts
LARGE = 20 << 20
TOO_LARGE = 33 << 20

client = anthropic.Anthropic()
once = client.with_options(max_retries=0)
TOOLS = [{
    "name": "weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}]


def user(text):
    return [{"role": "user", "content": text}]


def say(text, client=once, **more):
    return client.messages.create(model="claude-double", max_tokens=64, messages=user(text), **more)


def streamed(messages, **more):
    return once.messages.stream(model="claude-double", max_tokens=64, messages=messages, **more)


def ok(what):
    print(f"ok {what}", flush=True)


def fails(kind, text, call=say):
    try:
        call(text)
    except kind as error:
        return error
    raise AssertionError(f"{text!r} did not raise {kind.__name__}")


# Plain.
listed = [model.id for model in client.models.list()]
assert "claude-double" in listed, listed
assert client.models.retrieve("claude-double").id == "claude-double"
answer = say("hello")
assert answer.content[0].text.endswith(": hello"), answer
usage = answer.usage
assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (7, 4, 7), usage
assert answer._request_id.startswith("req_double_"), answer._request_id
counted = once.messages.count_tokens(model="claude-double", messages=user("hello"))
assert counted.input_tokens == 11, counted
once.beta.messages.create(model="claude-double", max_tokens=64, messages=user("hello"), betas=["double-2026-01-01"])
ok("plain")

# Streaming.
with streamed(user("hello to the stream")) as stream:
    pieces = list(stream.text_stream)
    final = stream.get_final_message()
assert "".join(pieces).endswith(": hello to the stream") and len(pieces) > 4, pieces
assert final.usage.output_tokens == 7, final.usage
with streamed(user("echo")) as stream:
    said = [say("echo").content[0].text, stream.get_final_text()]
# The key itself is looked for by whoever knows it.
assert all(text.startswith("the key is ") for text in said), said
print(said, flush=True)
ok("streaming")

# Tools: asked for, done, and told, streamed and not.
asked = say("tool", tools=TOOLS)
assert asked.stop_reason == "tool_use" and asked.content[0].input == {"city": "Paris"}, asked
with streamed(user("tool"), tools=TOOLS) as stream:
    asked = stream.get_final_message()
(block,) = asked.content
assert block.input == {"city": "Paris"}, asked
result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": block.id, "content": "sunny"}]}
with streamed([*user("tool"), {"role": "assistant", "content": asked.content}, result], tools=TOOLS) as stream:
    assert stream.get_final_text() == "the tool said: sunny"
ok("tools")

# Errors: the provider's and the gateway's own, each as the class that programs catch.
refused = fails(anthropic.BadRequestError, "fail 400")
assert refused.type == "invalid_request_error" and "as it was told" in refused.message, refused
limited = fails(anthropic.RateLimitError, "fail 429 after 30")
assert limited.response.headers["retry-after"] == "30", limited.response.headers
assert limited.request_id.startswith("req_double_"), limited.request_id
fails(anthropic.InternalServerError, "fail 500")
overloaded = fails(anthropic.InternalServerError, "fail 529")
assert overloaded.status_code == 529, overloaded
unknown = fails(
    anthropic.NotFoundError, "", lambda _: once.messages.create(model="none", max_tokens=64, messages=user("x"))
)
assert unknown.type == "not_found_error" and "claude-double" in unknown.message, unknown
assert unknown.request_id, "a refusal of the gateway has an id as well"
fails(anthropic.NotFoundError, "", lambda _: once.messages.batches.list())
stolen = once.with_options(api_key="choirgw_" + "x" * 50)
denied = fails(anthropic.AuthenticationError, "hello", lambda text: say(text, client=stolen))
assert denied.type == "authentication_error", denied
fails(Exception, f"break {WHERE}", lambda text: list(streamed(user(text)).__enter__()))
ok("errors")

# Retries: the gateway's (one more try a call), and the SDK's on top of them.
assert say(f"fail 503 x1 {WHERE}").content[0].text == "after 1 failures"
twice = client.with_options(max_retries=2)
assert say(f"fail 500 x3 {WHERE}", client=twice).content[0].text == "after 3 failures"
ok("retries")

# Cancellation: a stream that is left, and a call whose caller loses patience.
with streamed(user(f"slow {WHERE}")) as stream:
    for _ in range(5):
        next(stream)
print(f"left slow {WHERE} at {time.time_ns() // 1_000_000}", flush=True)
fails(anthropic.APITimeoutError, f"silent {WHERE}", lambda text: say(text, timeout=2))
print(f"left silent {WHERE} at {time.time_ns() // 1_000_000}", flush=True)
ok("cancellation")

# Large bodies.
answer = say("x" * LARGE).content[0].text
assert int(answer.split()[1]) > LARGE, answer
refused = fails(anthropic.APIStatusError, "x" * TOO_LARGE)
assert refused.status_code == 413 and "max_request_bytes" in refused.message, refused
ok("large bodies")

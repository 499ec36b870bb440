import asyncio
import json
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medusa_dist.api import convert
from medusa_dist.api.schema.fields import CHAT_FIELDS, COMPLETION_FIELDS
from medusa_dist.api.schema.responses import ErrorReply
from medusa_dist.errors import ConfigError, EngineError, GroupError, OverloadedError, RequestError
from medusa_dist.sampling_params import SamplingParams
from medusa_dist.text import bounded_render
from tests.support.fake_service import FakeService, chat, client_of, completion

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


async def fail(route, service=None, **kwargs):
    async with client_of(service or FakeService()) as client:
        reply = await client.post(route, **kwargs)
    ErrorReply.model_validate(reply.json())
    assert reply.headers["x-request-id"]
    return reply, reply.json()["error"]


def say(**message):
    return chat(messages=[{"role": "user", "content": "x"} | message])


BAD_CHATS = {
    "unknown field": (chat(max_token=3), "max_token", "did you mean max_tokens?"),
    "unknown field, no guess": (chat(zzz=3), "zzz", "unknown field zzz"),
    "unknown option": (chat(stream=True, stream_options={"usage": True}), "stream_options.usage", "include_usage"),
    "unknown in message": (say(nme="x"), "messages[].nme", "did you mean messages[].name?"),
    "no messages": ({"model": "org/tiny"}, "messages", "messages is required"),
    "empty messages": (chat(messages=[]), "messages", "at least 1 item"),
    "text for number": (chat(temperature="0.5"), "temperature", "temperature: Input should be a valid number"),
    "boolean for number": (chat(n=True), "n", "n: Input should be a valid integer"),
    "temperature too high": (chat(temperature=1000), "temperature", "less than or equal to 100"),
    "zero max_completion_tokens": (
        chat(max_completion_tokens=0),
        "max_completion_tokens",
        "greater than or equal to 1",
    ),
    "max_tokens and max_completion_tokens": (
        chat(max_tokens=1, max_completion_tokens=2),
        "max_tokens",
        "two names of one limit",
    ),
    "too many choices": (chat(n=129), "n", "less than or equal to 128"),
    "top_logprobs alone": (chat(top_logprobs=2), "top_logprobs", "requires logprobs"),
    "stream options alone": (chat(stream_options={}), "stream_options", "requires stream"),
    "obfuscation": (chat(stream=True, stream_options={"include_obfuscation": True}), "stream_options", "obfuscation"),
    "huge seed": (chat(seed=2**70), "seed", "seed: "),
    "empty stop": (chat(stop=["a", ""]), "stop", "stop[1]: must not be empty"),
    "bias on a word": (chat(logit_bias={"x": 1}), "logit_bias", "'x' is not a token id"),
    "bias outside the vocabulary": (chat(logit_bias={"99999": 1}), "logit_bias", "outside the vocabulary"),
    "bias too strong": (chat(logit_bias={"1": 101}), "logit_bias", "less than or equal to 100"),
    "bias twice": (chat(logit_bias={"1": 1, "01": 2}), "logit_bias", "the same token id twice"),
    "stop id outside the vocabulary": (chat(stop_token_ids=[-1]), "stop_token_ids", "outside the vocabulary"),
    "min above max": (chat(min_tokens=5, max_tokens=4), "min_tokens", "exceeds max_tokens"),
    "priority too high": (chat(priority=2**31 + 1), "priority", "less than or equal to"),
    "typical and greedy": (chat(acceptance="typical", temperature=0), "acceptance", "at temperature 0"),
    "typical without drafts": (chat(acceptance="typical", speculation="off"), "acceptance", "requires speculation"),
    "typical_delta without typical": (chat(typical_delta=0.5), "typical_delta", 'acceptance "typical"'),
    "unknown acceptance": (chat(acceptance="lossy"), "acceptance", "acceptance: "),
    "empty salt": (chat(cache_salt=""), "cache_salt", "cache_salt: "),
    "an image": (say(content=[{"type": "image_url", "image_url": {}}]), "messages", "'image_url'"),
    "a part without text": (say(content=[{"type": "text"}]), "messages", "messages"),
    "a tool's message without an id": (say(role="tool"), "messages", "needs tool_call_id"),
    "a tool call without a function": (
        say(role="assistant", tool_calls=[{"id": "1"}]),
        "messages",
        "messages[0].tool_calls[0].function is required",
    ),
    "unknown role": (say(role="judge"), "messages", "messages[0].role"),
    "no content": (say(content=None), "messages", "needs content"),
    "messages that the template rejects": (
        chat(messages=[{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]),
        "messages",
        "the system message must come first",
    ),
    "too long": (say(content="x" * 500), "messages", "context length is 200 tokens"),
    "max_tokens beyond the context": (
        chat(max_completion_tokens=199),
        "max_completion_tokens",
        "context length is 200 tokens",
    ),
}


@pytest.mark.parametrize("case", BAD_CHATS)
async def test_invalid_chat_request_is_400_naming_the_field(case):
    body, param, text = BAD_CHATS[case]
    service = FakeService()
    reply, error = await fail(CHAT, service, json=body)
    assert (reply.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param), error
    assert text in error["message"]
    assert not service.requests


BAD_COMPLETIONS = {
    "no prompt": (completion(prompt=[]), "prompt", "prompt is empty"),
    "empty text": (completion(prompt=""), "prompt", "prompt is empty"),
    "id outside the vocabulary": (completion(prompt=[1, 10**6]), "prompt", "outside the vocabulary"),
    "negative id": (completion(prompt=[[1], [-5]]), "prompt", "outside the vocabulary"),
    "text and id mixed": (completion(prompt=["a", 1]), "prompt", "prompt: "),
    "too long": (completion(prompt="x" * 500), "prompt", "context length is 200 tokens"),
    "max_tokens beyond the context": (completion(max_tokens=199), "max_tokens", "context length is 200 tokens"),
    "logprobs too high": (completion(logprobs=21), "logprobs", "less than or equal to 20"),
    "max_tokens zero alone": (
        completion(max_tokens=0, logprobs=1),
        "max_tokens",
        "max_tokens: 0 requires echo or prompt_logprobs",
    ),
    "prompt scores in a stream": (
        completion(prompt_logprobs=1, stream=True),
        "prompt_logprobs",
        "not available with stream",
    ),
    "ids longer than the context": (
        completion(prompt=[1] * 201, max_tokens=0, echo=True),
        "prompt",
        "context length is 200 tokens",
    ),
    "too many choices over prompts": (completion(prompt=["a"] * 100, n=11), "n", "1024 choices"),
}


@pytest.mark.parametrize("case", BAD_COMPLETIONS)
async def test_invalid_completion_request_is_400_naming_the_field(case):
    body, param, text = BAD_COMPLETIONS[case]
    reply, error = await fail(COMPLETIONS, json=body)
    assert (reply.status_code, error["param"]) == (400, param), error
    assert text in error["message"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b'{"model": ', "not valid JSON"),
        (b"", "must be a JSON object"),
        (b"[1]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b"\xff\xfe", "body"),
        (b"[" * 100_000, "body"),
        (b'{"model": "org/tiny", "messages": [{"role": "user", "content": "\\ud800"}]}', "lone surrogate"),
        (b'{"model": "\\ud800", "messages": [{"role": "user", "content": "x"}]}', "lone surrogate"),
        (b'{"\\ud800": 1}', "unknown field"),
    ],
    ids=[
        "cut off",
        "empty",
        "list",
        "null",
        "not utf-8",
        "nested too deep",
        "surrogate as content",
        "surrogate as model",
        "surrogate as field",
    ],
)
async def test_malformed_body_is_400(content, text):
    reply, error = await fail(CHAT, content=content, headers={"content-type": "application/json"})
    assert (reply.status_code, error["type"]) == (400, "invalid_request_error")
    assert text in error["message"]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"temperature": -1}, "decimal_below_min_value"),
        ({"temperature": 101}, "decimal_above_max_value"),
        ({"logit_bias": {"1": 101}}, "decimal_above_max_value"),
        ({"n": 0}, "integer_below_min_value"),
        ({"n": 129}, "integer_above_max_value"),
        ({"seed": 2**70}, "integer_above_max_value"),
        ({"seed": 10**400}, "integer_above_max_value"),
        ({"messages": []}, "empty_array"),
        ({"stop": ["x"] * 17}, "array_above_max_length"),
        ({"stop": ""}, "empty_string"),
        ({"speculation": "maybe"}, "invalid_value"),
        ({"temperature": "1"}, "invalid_type"),
        ({"messages": "x"}, "invalid_type"),
    ],
    ids=str,
)
async def test_a_value_out_of_range_has_openais_code(fields, code):
    reply, error = await fail(CHAT, json=chat(**fields))
    assert (reply.status_code, error["param"], error["code"]) == (400, next(iter(fields)), code), error


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", "NaN"), ("top_p", "-Infinity"), ("n", "NaN"), ("logit_bias", '{"1": Infinity}')],
)
async def test_a_number_that_json_lacks_is_called_not_finite(field, value):
    content = json.dumps(chat()).removesuffix("}") + f', "{field}": {value}}}'
    reply, error = await fail(CHAT, content=content, headers={"content-type": "application/json"})
    assert (reply.status_code, error["param"], error["code"]) == (400, field, "invalid_value")
    assert f"must be a finite number, got {value.removeprefix('{').removesuffix('}').split()[-1]}" in error["message"]


async def test_body_of_another_content_type_is_400_naming_json():
    reply, error = await fail(CHAT, data={"model": "org/tiny"})
    assert reply.status_code == 400 and "content-type: application/json" in error["message"]


async def test_unknown_model_or_route_is_404_and_wrong_method_is_405():
    reply, error = await fail(CHAT, json=chat(model="gpt-x"))
    assert (reply.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "'org/tiny'" in error["message"]
    async with client_of(FakeService()) as client:
        assert (await client.get("/v1/models/other")).status_code == 404
        unknown = await client.get("/v2/nothing")
        assert unknown.status_code == 404 and unknown.json()["error"]["type"] == "invalid_request_error"
        wrong = await client.get(CHAT)
        assert wrong.status_code == 405 and wrong.headers["allow"] == "POST" and "error" in wrong.json()


OWN = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.1, "repetition_penalty": 1.2, "max_tokens": 50}


async def params_of(route, body, own=OWN):
    service = FakeService("ok")
    service.default_sampling_params = own
    async with client_of(service) as client:
        reply = await client.post(route, json=body)
    assert reply.status_code == 200, reply.text
    return service.requests[0].params


async def test_the_models_own_values_apply_to_fields_that_are_left_out():
    left_out = dict.fromkeys(OWN)  # null is the same
    for body in (chat(), chat(**left_out)):
        params = await params_of(CHAT, body)
        assert {name: getattr(params, name) for name in OWN} == OWN
    params = await params_of(COMPLETIONS, completion(**left_out))
    assert {name: getattr(params, name) for name in OWN} == OWN | {"max_tokens": 16}, "OpenAI's default"


async def test_a_field_that_is_sent_wins_also_with_its_neutral_value():
    sent = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "max_tokens": 7}
    for route, make in ((CHAT, chat), (COMPLETIONS, completion)):
        assert await params_of(route, make(**sent)) == SamplingParams(max_tokens=7)
    assert (await params_of(CHAT, chat(max_completion_tokens=9))).max_tokens == 9
    greedy = await params_of(CHAT, chat(temperature=0), {"top_p": 0.9, "top_k": 20, "min_p": 0.1})
    assert not greedy.needs_full_logits, "filters have no effect at temperature 0"


async def test_the_models_own_max_tokens_never_makes_an_error():
    assert (await params_of(CHAT, chat(min_tokens=60))).max_tokens == 60
    assert (await params_of(CHAT, chat(), {"max_tokens": 10**6})).max_tokens is None, "up to the context"
    long = [{"role": "user", "content": "x" * 150}]
    assert (await params_of(CHAT, chat(messages=long))).max_tokens is None


async def test_a_beam_search_takes_no_sampling_from_the_model():
    params = await params_of(CHAT, chat(beam_width=2))
    assert params == SamplingParams(beam_width=2, max_tokens=50, repetition_penalty=1.2)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "kind", "seconds", "millis", "text"),
    [
        (
            OverloadedError("queue full", 2.5),
            429,
            "rate_limit_error",
            "3",
            "2500",
            "queue full",
        ),
        (EngineError("draining"), 503, "server_error", "1", "1000", "draining"),
        (
            GroupError("10.0.0.7 died", 0.0),
            503,
            "server_error",
            "1",
            "1",
            "the model is restarting; try again",
        ),
    ],
    ids=["overloaded", "engine", "group"],
)
async def test_unavailable_engine_is_429_or_503_with_retry_after(stream, error, status, kind, seconds, millis, text):
    service = FakeService()
    service.before = error
    reply, body = await fail(CHAT, service, json=chat(stream=stream, n=2))
    assert (reply.status_code, body["type"], body["message"]) == (status, kind, text)
    assert (reply.headers["retry-after"], reply.headers["retry-after-ms"]) == (seconds, millis)
    assert "x-should-retry" not in reply.headers


async def test_request_error_from_the_engine_is_400_naming_the_field():
    service = FakeService()
    service.before = RequestError("no", "seed")
    reply, error = await fail(CHAT, service, json=chat())
    assert (reply.status_code, error["param"]) == (400, "seed")


@pytest.mark.parametrize("error", [RuntimeError("secret path"), ConfigError("secret path"), KeyError("secret path")])
async def test_unexpected_exception_is_500_with_request_id_and_no_internals(error, caplog):
    service = FakeService()
    service.before = error
    headers = {"x-request-id": "abc-1"}
    reply, body = await fail(CHAT, service, json=chat(), headers=headers)
    assert reply.status_code == 500 and "abc-1" in body["message"] and "secret" not in reply.text
    assert reply.headers["x-request-id"] == "abc-1" and reply.headers["x-should-retry"] == "false"
    assert "secret path" in caplog.text and "abc-1" in caplog.text


async def test_chat_without_a_chat_template_is_400_pointing_to_completions():
    service = FakeService()
    service.tokenizer = type(service.tokenizer)(tokenizer_object=service.tokenizer.backend_tokenizer)
    reply, error = await fail(CHAT, service, json=chat())
    assert reply.status_code == 400 and "/v1/completions" in error["message"]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ 1 / 0 }}", "rejects these messages: ZeroDivisionError"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "did not end within"),
    ],
)
async def test_a_template_that_fails_or_never_ends_is_a_400(monkeypatch, template, words):
    monkeypatch.setattr(convert, "run_bounded", partial(bounded_render.run_bounded, cpu_s=0.1))
    service = FakeService()
    service.tokenizer = type(service.tokenizer)(tokenizer_object=service.tokenizer.backend_tokenizer)
    service.tokenizer.chat_template = template
    reply, error = await fail(CHAT, service, json=chat())
    assert reply.status_code == 400 and words in error["message"] and error["param"] == "messages"


NUMBERS = st.integers() | st.floats() | st.sampled_from([0, -1, 1, 2**31, 2**63, 1e308, 10**400])
STRINGS = st.text(max_size=5) | st.sampled_from(["\ud800", "user", "text", "off", "org/tiny", "5"])
KEYS = STRINGS | st.sampled_from(["role", "content", "type"])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | STRINGS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_random_field_values_never_give_a_500(data):
    route, rules, make = data.draw(
        st.sampled_from([(CHAT, CHAT_FIELDS, chat), (COMPLETIONS, COMPLETION_FIELDS, completion)])
    )
    odd = data.draw(st.dictionaries(st.sampled_from(sorted(rules)), VALUES, min_size=1, max_size=3))

    async def send():
        async with client_of(FakeService("ok")) as client:
            content = json.dumps(make(**odd)).encode()
            return await client.post(route, content=content, headers={"content-type": "application/json"})

    reply = asyncio.run(send())
    assert reply.status_code in (200, 400, 404), (odd, reply.text)
    if reply.status_code != 200:
        assert reply.json()["error"]["message"]

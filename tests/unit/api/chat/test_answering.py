"""Fields about thinking, in the three APIs, and answers that are read by a response template."""

import json

import pytest
from tokenizers import AddedToken

from medusa_dist.errors import ConfigError
from medusa_dist.text.harmony.channel_reader import MARKS
from medusa_dist.text.tools.chat_format import chat_format
from tests.support.fake_service import FakeService, client_of
from tests.support.tiny_tokenizers import HAS_RESPONSE_TEMPLATES, byte_tokenizer

SWITCHED = (
    "{{ messages[-1].content }}{% if enable_thinking is defined and not enable_thinking %}|off</think>"
    "{% else %}|on{% endif %}"
)
PLAIN = "{{ messages[-1].content }}"
TURN = [{"role": "user", "content": "Hi"}]
ROUTES = {  # with a body for each, and its field for an effort
    "/v1/chat/completions": ({"messages": TURN}, lambda effort: {"reasoning_effort": effort}),
    "/v1/responses": ({"input": "Hi"}, lambda effort: {"reasoning": {"effort": effort, "summary": "auto"}}),
    "/v1/messages": ({"messages": TURN, "max_tokens": 50}, lambda effort: {"output_config": {"effort": effort}}),
}


def service_with(template, text="<think>hm</think>ok"):
    service = FakeService(text)
    service.tokenizer = byte_tokenizer()
    service.tokenizer.chat_template = template
    service.vocab_size = len(service.tokenizer)
    service.chat_format = chat_format(service.tokenizer, "auto", "auto")
    return service


async def answer(service, route, body):
    async with client_of(service) as client:
        reply = await client.post(route, json=body)
    assert reply.status_code == 200, reply.text
    return reply


def prompt_of(service):
    return service.tokenizer.decode(service.requests[-1].prompt_ids)


@pytest.mark.parametrize("route", ROUTES)
async def test_effort_none_turns_thinking_off_in_each_api(route):
    base, field = ROUTES[route]
    service = service_with(SWITCHED)
    reply = await answer(service, route, base | field("none") if route != "/v1/messages" else base)
    if route == "/v1/messages":
        reply = await answer(service, route, base | {"thinking": {"type": "disabled"}})
    assert prompt_of(service) == "Hi|off</think>" and "warnings" not in reply.json()


@pytest.mark.parametrize("route", ROUTES)
async def test_an_effort_without_an_effect_is_told_in_each_api_whole_and_streamed(route):
    base, field = ROUTES[route]
    service = service_with(PLAIN)
    expected = ["thinking has no effect: the model does not reason"]
    assert (await answer(service, route, base | field("high"))).json()["warnings"] == expected
    text = (await answer(service, route, base | field("high") | {"stream": True})).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    first = {"/v1/responses": lambda e: e["response"], "/v1/messages": lambda e: e["message"]}
    assert first.get(route, lambda e: e)(events[0])["warnings"] == expected
    assert prompt_of(service) == "Hi"


@pytest.mark.parametrize("route", ROUTES)
async def test_an_unknown_effort_is_refused_by_the_apis_own_name(route):
    base, field = ROUTES[route]
    async with client_of(service_with(PLAIN)) as client:
        reply = await client.post(route, json=base | field("huge"))
    names = {"/v1/responses": "reasoning.effort", "/v1/messages": "output_config.effort"}
    assert reply.status_code == 400
    assert names.get(route, "reasoning_effort") in reply.json()["error"]["message"]


async def test_variables_that_the_request_sets_itself_count():
    service = service_with(SWITCHED)
    body = {"messages": TURN, "reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}}
    await answer(service, "/v1/chat/completions", body)
    assert prompt_of(service) == "Hi|on"


async def test_thinking_of_chat_turns_thinking_off_and_effort_does_not_turn_it_on():
    service = service_with(SWITCHED)
    body = {"messages": TURN, "thinking": {"type": "disabled"}, "reasoning_effort": "high"}
    reply = await answer(service, "/v1/chat/completions", body)
    assert prompt_of(service) == "Hi|off</think>" and "effort 'high'" in reply.json()["warnings"][0]


async def test_a_variable_with_a_similar_name_does_not_refuse_messages_without_thinking():
    service = service_with("{{ messages[-1].content }}{% if thinking %}|on{% endif %}")
    await answer(service, "/v1/messages", ROUTES["/v1/messages"][0] | {"thinking": {"type": "disabled"}})
    assert prompt_of(service) == "Hi"


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_reasoning_is_left_out_if_it_is_not_to_be_included(is_streamed):
    body = {"messages": TURN, "include_reasoning": False, "stream": is_streamed}
    reply = await answer(service_with(SWITCHED), "/v1/chat/completions", body)
    assert "hm" not in reply.text and "reasoning_content" not in reply.text and '"ok"' in reply.text


async def test_omitted_thinking_is_no_block_of_a_message():
    body = ROUTES["/v1/messages"][0] | {"thinking": {"type": "adaptive", "display": "omitted"}}
    message = (await answer(service_with(SWITCHED), "/v1/messages", body)).json()
    assert message["content"] == [{"type": "text", "text": "ok"}]


needs_templates = pytest.mark.skipif(not HAS_RESPONSE_TEMPLATES, reason="transformers before 5.13")
WITH_TOOLS = "{% for t in tools or [] %}{{ t.function.name }};{% endfor %}{{ messages[-1].content }}<bot>"
SPEC = {  # in a form that none of our formats has
    "start_anchor": "<bot>",
    "fields": {
        "content": {},
        "reasoning_content": {"open": "<mull>", "close": "</mull>"},
        "tool_calls": {
            "open": "<call>",
            "close": "</call>",
            "content": "json",
            "repeats": True,
            "transform": {"type": "function", "function": {"name": "{content.n}", "arguments": "{content.a}"}},
        },
    },
}
TOOLS = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]
CALLING = '<mull>hm</mull>I look.<call>{"n": "f", "a": {"x": 1}}</call>'


def service_with_spec(text=CALLING):
    service = service_with(WITH_TOOLS, text)
    service.tokenizer.response_template = SPEC
    service.chat_format = chat_format(service.tokenizer, "auto", "auto")
    return service


@needs_templates
async def test_calls_of_an_unknown_format_are_read_by_the_tokenizers_response_template():
    service = service_with_spec()
    reply = await answer(service, "/v1/chat/completions", {"messages": TURN, "tools": TOOLS})
    choice = reply.json()["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "f", "arguments": '{"x": 1}'} and choice["finish_reason"] == "tool_calls"
    assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == ("hm", "I look.")
    assert prompt_of(service) == "f;g;Hi<bot>" and service.requests[-1].params.grammar is None
    assert service.chat_format.name == "response_template"


@needs_templates
async def test_a_stream_read_by_a_response_template_has_the_same_message():
    body = {"messages": TURN, "tools": TOOLS, "stream": True}
    text = (await answer(service_with_spec(), "/v1/chat/completions", body)).text
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in text.splitlines() if line.startswith("data: {")]
    joined = {key: "".join(delta.get(key) or "" for delta in deltas) for key in ("content", "reasoning_content")}
    assert joined == {"content": "I look.", "reasoning_content": "hm"}
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert [call["function"] for call in calls] == [{"name": "f", "arguments": ""}, {"arguments": '{"x": 1}'}]


@needs_templates
async def test_without_tools_a_response_template_tells_reasoning_alone():
    reply = await answer(service_with_spec("<mull>hm</mull>ok"), "/v1/chat/completions", {"messages": TURN})
    message = reply.json()["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "ok", "refusal": None, "reasoning_content": "hm"}


@needs_templates
@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]},
                }
            },
            "tool_choice",
        ),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
async def test_what_a_response_template_cannot_enforce_is_refused_by_name(fields, name):
    service = service_with_spec()
    async with client_of(service) as client:
        reply = await client.post("/v1/chat/completions", json={"messages": TURN, "tools": TOOLS, **fields})
    error = reply.json()["error"]
    assert reply.status_code == 400 and error["param"] == name and "tool_format" in error["message"]
    assert not service.requests


@needs_templates
@pytest.mark.parametrize(("tool_format", "reasoning_format"), [("none", "auto"), ("auto", "none")])
def test_a_response_template_is_not_used_where_the_config_names_another_way(tool_format, reasoning_format):
    service = service_with_spec()
    found = chat_format(service.tokenizer, tool_format, reasoning_format)
    assert found.name is None and not found.reasons


IN_CHANNELS = (  # the shape of gpt-oss's template
    "{% if tools %}{{ 'namespace functions {' }}{% for t in tools %}{{ 'type ' + t.function.name }}{% endfor %}"
    "{% endif %}{{ 'Reasoning: ' + reasoning_effort if reasoning_effort is defined }}{% for m in messages %}"
    "{% if m.tool_calls %}{% set c = m.tool_calls[0].function %}{% if m.thinking %}{% if m.content %}"
    "{{ raise_exception('both') }}{% endif %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + "
    "'<|end|>' }}{% endif %}{{ '<|start|>assistant to=functions.' + c.name + "
    "'<|channel|>commentary json<|message|>' + c.arguments | tojson + '<|call|>' }}{% else %}{{ '<|start|>' + m.role + "
    "'<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}{{ '<|start|>assistant' if add_generation_prompt }}"
    "{# <|channel|>analysis and <|channel|>final #}"
)
IN_HARMONY = (
    "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json"
    '<|message|>{"x": 1}'
)


def service_in_channels(text):
    service = service_with(IN_CHANNELS, text)
    tokenizer = service.tokenizer
    tokenizer.add_tokens([AddedToken(mark, special=True) for mark in MARKS])
    service.vocab_size = len(tokenizer)
    service.chat_format = chat_format(tokenizer, "auto", "auto")
    service.tokens = lambda _: (*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)
    return service


async def test_harmony_is_read_and_enforced_by_its_channels():
    service = service_in_channels(IN_HARMONY)
    body = {"messages": TURN, "tools": TOOLS, "reasoning_effort": "low"}
    choice = (await answer(service, "/v1/chat/completions", body)).json()["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "f", "arguments": '{"x": 1}'} and choice["finish_reason"] == "tool_calls"
    assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == ("hm", None)
    assert "commentary to=functions.g " in service.requests[-1].params.grammar.text
    assert service.chat_format.name == "harmony"
    prompt = prompt_of(service)
    assert "type f" in prompt and "Reasoning: low" in prompt and prompt.endswith("<|start|>assistant")
    history = [*TURN, choice["message"], {"role": "tool", "tool_call_id": call["id"], "content": "ok"}]
    await answer(service, "/v1/chat/completions", {"messages": history, "tools": TOOLS})
    call_text = '<|start|>assistant to=functions.f<|channel|>commentary json<|message|>{"x": 1}<|call|>'
    assert "<|start|>assistant<|channel|>analysis<|message|>hm<|end|>" + call_text in prompt_of(service)


def test_harmony_can_be_named_where_the_template_does_not_show_it():
    tokenizer = service_in_channels("").tokenizer
    plain = IN_CHANNELS.replace("{# <|channel|>analysis and <|channel|>final #}", "")
    assert chat_format(tokenizer, "auto", "auto", plain).name is None
    assert chat_format(tokenizer, "harmony", "auto", plain).name == "harmony"
    with pytest.raises(ConfigError, match="tool_format: harmony needs a chat template with tools"):
        chat_format(tokenizer, "harmony", "auto", "{{ messages }}")
    with pytest.raises(ConfigError, match="reasoning_format: harmony has its reasoning in a channel"):
        chat_format(tokenizer, "harmony", "think", plain)
    with pytest.raises(ConfigError, match=r"tool_format: harmony needs the token <\|start\|>"):
        chat_format(service_with(IN_CHANNELS, "").tokenizer, "harmony", "auto")


async def test_structured_output_in_harmony_is_the_final_channel_and_reasoning_stays_apart():
    service = service_in_channels(
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>{}"
    )
    body = {"messages": TURN, "response_format": {"type": "json_object"}}
    message = (await answer(service, "/v1/chat/completions", body)).json()["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "{}", "refusal": None, "reasoning_content": "hm"}
    grammar = service.requests[-1].params.grammar
    assert grammar.param == "response_format" and "@body" in grammar.text
    await answer(service, "/v1/chat/completions", {"messages": TURN})
    assert service.requests[-1].params.grammar is None

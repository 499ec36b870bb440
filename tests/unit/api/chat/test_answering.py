"""Fields about thinking, in the three APIs: what the prompt and the answer are."""

import json

import pytest

from medusa_dist.text.tools.chat_format import chat_format
from tests.support.fake_service import FakeService, client_of
from tests.support.tiny_tokenizers import byte_tokenizer

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

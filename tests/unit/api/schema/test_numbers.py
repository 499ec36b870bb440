"""Whole numbers may be written with a decimal point, everywhere."""

import pytest

from medusa_dist.api.schema.requests import ChatRequest, CompletionRequest
from tests.support.fake_service import FakeService, chat, client_of, completion

WHOLE = {
    **{"n": 2, "max_tokens": 9, "min_tokens": 3, "top_k": 5, "seed": 7, "stop_token_ids": [65, 66]},
    **{"allowed_token_ids": [65, 66], "prompt_logprobs": 2, "truncate_prompt_tokens": 2, "priority": -3},
}
ROUTES = {
    "chat": ("/v1/chat/completions", chat, WHOLE | {"max_completion_tokens": 9, "top_logprobs": 2, "logprobs": True}),
    "completions": ("/v1/completions", completion, WHOLE | {"logprobs": 2}),
    "ids": ("/v1/completions", completion, {"prompt": [65, 66, 67]}),
    "lists of ids": ("/v1/completions", completion, {"prompt": [[65, 66], [67]]}),
    "beams": ("/v1/completions", completion, {"beam_width": 3}),
}


def pointed(value):
    if isinstance(value, list):
        return [pointed(item) for item in value]
    return value if isinstance(value, bool) else float(value)


@pytest.mark.parametrize("case", ROUTES)
async def test_16_0_is_16(case):
    route, make, fields = ROUTES[case]
    requests = []
    for sent in (fields, {name: pointed(value) for name, value in fields.items()}):
        service = FakeService("ok")
        async with client_of(service) as client:
            reply = await client.post(route, json=make(**{"seed": 7} | sent))
        assert reply.status_code == 200, reply.text
        requests.append([(r.prompt_ids, r.params, r.seed, r.priority) for r in service.requests])
    assert requests[0] == requests[1]


@pytest.mark.parametrize("value", ["1.5", "true", '"5"', "[1]", "1e400", "-0.5"])
@pytest.mark.parametrize("name", ["max_tokens", "n", "seed", "top_k", "priority"])
async def test_no_other_value_becomes_a_whole_number(name, value):
    async with client_of(FakeService("ok")) as client:
        headers = {"content-type": "application/json"}
        content = f'{{"prompt": "x", "{name}": {value}}}'
        reply = await client.post("/v1/completions", content=content, headers=headers)
    assert reply.status_code == 400 and reply.json()["error"]["param"] == name, reply.text


def test_every_whole_number_of_the_bodies_is_read_alike():
    for model in (ChatRequest, CompletionRequest):
        properties = model.model_json_schema()["properties"]
        whole = {
            name
            for name, about in properties.items()
            if any(
                "integer" in (o.get("type"), (o.get("items") or {}).get("type")) for o in about.get("anyOf", [about])
            )
        }
        tested = {name for _, _, fields in ROUTES.values() for name in fields}
        assert whole <= tested, whole - tested

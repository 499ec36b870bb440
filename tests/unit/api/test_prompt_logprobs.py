"""Scores of a prompt: beside an echo as OpenAI writes them, as `prompt_logprobs` as vLLM does, as lm_eval reads."""

import json

import pytest

from medusa_dist.api.prompt_logprobs import LOWEST_LOGPROB, echoed, prompt_logprobs, token_key, top_table
from medusa_dist.api.schema.responses import ChatReply, CompletionReply
from medusa_dist.outputs import TokenLogprobs
from tests.support.fake_service import TOKENIZER, FakeService, chat, client_of, completion, ids_of

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PROMPT = "Ab 😀"  # seven tokens, the last four of one character
A, B = ids_of("AB")


async def post(route, body):
    service = FakeService("ok")
    async with client_of(service) as client:
        reply = await client.post(route, json=body)
    return reply, service


async def test_echo_with_logprobs_scores_the_prompt_tokens():
    reply, service = await post(COMPLETIONS, completion(prompt=PROMPT, echo=True, logprobs=2))
    body = reply.json()
    CompletionReply.model_validate(body)
    assert (service.requests[0].params.logprobs, service.requests[0].params.prompt_logprobs) == (2, 2)
    choice = body["choices"][0]
    logprobs, ids = choice["logprobs"], ids_of(PROMPT)
    assert choice["text"] == PROMPT + "ok" and "prompt_logprobs" not in choice
    assert {len(values) for values in logprobs.values()} == {len(ids) + 3}  # o, k, and the end
    assert logprobs["tokens"][:7] == ["A", "b", " ", "bytes:\\xf0", "bytes:\\x9f", "bytes:\\x98", "bytes:\\x80"]
    assert logprobs["token_logprobs"][:7] == [None, *(-t / 100 for t in ids[1:])]
    assert logprobs["top_logprobs"][0] is None and logprobs["top_logprobs"][1] == {
        "A": -0.01,
        "B": -0.01,
        "b": -ids[1] / 100,
    }
    assert logprobs["text_offset"] == [0, 1, 2, 3, 3, 3, 3, 4, 5, 6]
    assert logprobs["token_logprobs"][7:] == [-0.5] * 3


async def test_stream_starts_with_the_scored_echo_and_equals_the_plain_reply():
    whole, _ = await post(COMPLETIONS, completion(prompt=PROMPT, echo=True, logprobs=1, seed=1))
    streamed, _ = await post(COMPLETIONS, completion(prompt=PROMPT, echo=True, logprobs=1, seed=1, stream=True))
    lines = [line.removeprefix("data: ") for line in streamed.text.split("\n\n") if line.startswith("data: {")]
    pieces = [json.loads(line)["choices"][0] for line in lines]
    assert pieces[0]["text"] == PROMPT and len(pieces[0]["logprobs"]["tokens"]) == 7
    choice = whole.json()["choices"][0]
    assert "".join(piece["text"] for piece in pieces) == choice["text"]
    for key, values in choice["logprobs"].items():
        assert [value for piece in pieces for value in piece["logprobs"][key]] == values


@pytest.mark.parametrize("logprobs", [None, 0, 3])
async def test_max_tokens_zero_returns_the_prompt_alone_with_its_scores(logprobs):
    reply, service = await post(COMPLETIONS, completion(prompt=PROMPT, echo=True, max_tokens=0, logprobs=logprobs))
    body = reply.json()
    CompletionReply.model_validate(body)
    choice = body["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (PROMPT, "length")
    assert body["usage"]["completion_tokens"] == 0 and service.requests[0].params.max_tokens == 0
    if logprobs is None:
        assert choice["logprobs"] is None
    else:
        assert len(choice["logprobs"]["tokens"]) == 7
        assert [len(top) for top in choice["logprobs"]["top_logprobs"][1:]] == [logprobs + 1] * 6


async def test_lm_eval_loglikelihood_can_be_read_from_the_echo():
    """Its loglikelihood: token ids, echo, one token more, which it leaves out; greedy if no token was likelier."""
    context, continuation = ids_of("The cat"), ids_of("sat")
    ids = [*context, *continuation]
    reply, _ = await post(COMPLETIONS, completion(prompt=[ids], echo=True, logprobs=1, max_tokens=1, temperature=0))
    logprobs = reply.json()["choices"][0]["logprobs"]
    values = logprobs["token_logprobs"][len(context) : -1]
    assert sum(values) == pytest.approx(sum(-t / 100 for t in continuation))
    tops = logprobs["top_logprobs"][len(context) : -1]
    assert [value == max(top.values()) for value, top in zip(values, tops, strict=True)] == [False] * 3


@pytest.mark.parametrize(("route", "make"), [(CHAT, chat), (COMPLETIONS, completion)])
async def test_prompt_logprobs_have_vllms_format(route, make):
    reply, service = await post(route, make(prompt_logprobs=2))
    body = reply.json()
    (ChatReply if route == CHAT else CompletionReply).model_validate(body)
    tables = (body if route == CHAT else body["choices"][0])["prompt_logprobs"]
    ids = service.requests[0].prompt_ids
    assert len(tables) == len(ids) and tables[0] is None
    for token_id, table in zip(ids[1:], tables[1:], strict=True):
        assert set(table) == {str(A), str(B), str(token_id)}
        assert table[str(A)] == {"logprob": -0.01, "rank": 1, "decoded_token": "A"}
        assert table[str(token_id)]["logprob"] == pytest.approx(-token_id / 100)
        assert table[str(token_id)]["rank"] is None


async def test_prompt_logprobs_and_logprobs_keep_their_own_counts():
    body = completion(prompt=PROMPT, echo=True, logprobs=1, prompt_logprobs=3)
    reply, service = await post(COMPLETIONS, body)
    choice = reply.json()["choices"][0]
    assert service.requests[0].params.prompt_logprobs == 3
    assert len(choice["prompt_logprobs"][2]) == 4 and len(choice["logprobs"]["top_logprobs"][2]) == 2


def test_infinite_logprobs_become_the_lowest_json_number():
    entry = TokenLogprobs(B, -float("inf"), (A,), (0.0,))
    assert top_table(TOKENIZER, entry) == {"A": 0.0, "B": LOWEST_LOGPROB}
    assert prompt_logprobs(TOKENIZER, [entry], 1)[0][str(B)]["logprob"] == LOWEST_LOGPROB
    assert echoed(TOKENIZER, "B", [B], [entry], 0)["token_logprobs"] == [LOWEST_LOGPROB]


def test_token_keys_are_distinct_for_all_bytes():
    keys = [token_key(TOKENIZER, token_id) for token_id in range(256)]
    assert len(set(keys)) == 256
    assert token_key(TOKENIZER, ids_of("😀")[0]) == "bytes:\\xf0"

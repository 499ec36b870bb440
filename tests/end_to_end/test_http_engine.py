"""HTTP and engine together: prompts are scored as by transformers, salts show in the usage, rules are named."""

import asyncio

import httpx
import pytest
import torch
from transformers import LlamaForCausalLM

from medusa_dist import LLM, SamplingParams
from medusa_dist.api.routes import build_api
from medusa_dist.api.schema.responses import ChatReply, CompletionReply
from tests.support.engine_service import EngineService
from tests.support.tiny_llm import TREE, save_llm

pytestmark = pytest.mark.usefixtures("one_thread")
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TEXT = "the cat sat, and the other one too"


class Served:
    """A tiny model behind the routes, and transformers' own."""

    def __init__(self, folder) -> None:
        self.original = LlamaForCausalLM.from_pretrained(folder).eval()
        keys = {"dtype": "float32", "kv_cache_tokens": 1024, "max_batched_tokens": 16, "max_running": 4}
        self.llm = LLM(str(folder), heads=str(folder / "heads"), speculation=TREE, **keys)
        self.service = EngineService(self.llm)

    def post(self, route: str, **body) -> dict:
        """The answer's body; it fits the documented form."""

        async def send() -> dict:
            transport = httpx.ASGITransport(build_api(lambda: self.service))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                reply = await client.post(route, json={"model": "tiny", **body})
            assert reply.status_code == 200, reply.text
            return reply.json()

        answer = asyncio.run(send())
        (ChatReply if route == CHAT else CompletionReply).model_validate(answer)
        return answer

    def log_p(self, ids: list[int]) -> torch.Tensor:
        """[tokens - 1, V]: of each token but the first."""
        with torch.inference_mode():
            return torch.log_softmax(self.original(torch.tensor([ids])).logits[0, :-1], dim=-1)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Served:
    return Served(save_llm(tmp_path_factory.mktemp("bytes")))


@pytest.mark.parametrize("max_tokens", [0, 1, 9])
def test_echo_logprobs_equal_those_of_transformers(served: Served, max_tokens: int) -> None:
    """lm_eval's call, prompts side by side; the prompt takes several chunks of 16 rows."""
    prompts = [served.llm.tokenizer(text)["input_ids"] for text in (TEXT, TEXT[::-1], "ab")]
    body = served.post(COMPLETIONS, prompt=prompts, echo=True, logprobs=1, max_tokens=max_tokens, temperature=0)
    for ids, choice in zip(prompts, body["choices"], strict=True):
        values, tops = choice["logprobs"]["token_logprobs"], choice["logprobs"]["top_logprobs"]
        expected = served.log_p(ids)
        assert values[0] is None and tops[0] is None and len(values) >= len(ids) + min(1, max_tokens)
        own = expected.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
        assert values[1 : len(ids)] == pytest.approx(own, abs=1e-4)
        assert [max(top.values()) for top in tops[1 : len(ids)]] == pytest.approx(expected.amax(1).tolist(), abs=1e-4)
        is_greedy = [value == max(top.values()) for value, top in zip(values[1:], tops[1:], strict=True)]
        assert is_greedy[: len(ids) - 1] == [bool(row.argmax() == t) for row, t in zip(expected, ids[1:], strict=True)]
        assert all(is_greedy[len(ids) - 1 :]), "what was generated is greedy"
    assert body["usage"]["prompt_tokens"] == sum(map(len, prompts))
    assert not served.service.engine.has_work


@pytest.mark.parametrize("as_text", [False, True])
def test_a_prompt_of_exactly_the_context_length_is_scored(served: Served, as_text: bool) -> None:
    ids = [5 + i % 30 for i in range(128)]  # no pair of them is a token
    text = served.llm.tokenizer.decode(ids)
    assert served.llm.facts["max_model_len"] == len(served.llm.tokenizer(text)["input_ids"]) == 128
    prompt = text if as_text else ids
    body = served.post(COMPLETIONS, prompt=prompt, echo=True, logprobs=1, max_tokens=0)
    (choice,) = body["choices"]
    values = choice["logprobs"]["token_logprobs"]
    expected = served.log_p(ids).gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    assert values[0] is None and values[1:] == pytest.approx(expected, abs=1e-4)
    assert (choice["text"], choice["finish_reason"], body["usage"]["completion_tokens"]) == (text, "length", 0)
    params = SamplingParams(max_tokens=0, prompt_logprobs=0)
    assert [entry.logprob for entry in served.llm.generate([ids], params)[0].prompt_logprobs[1:]] == values[1:]


@pytest.mark.parametrize("route", [CHAT, COMPLETIONS])
def test_prompt_logprobs_by_token_id_equal_transformers(served: Served, route: str) -> None:
    words = {"messages": [{"role": "user", "content": TEXT}]} if route == CHAT else {"prompt": TEXT}
    body = served.post(route, **words, prompt_logprobs=2, max_tokens=3, seed=1)
    tables = (body if route == CHAT else body["choices"][0])["prompt_logprobs"]
    assert tables[0] is None and len(tables) == body["usage"]["prompt_tokens"]
    if route == COMPLETIONS:
        ids = served.llm.tokenizer(TEXT)["input_ids"]
        for token_id, table, row in zip(ids[1:], tables[1:], served.log_p(ids), strict=True):
            likeliest = row.topk(2)
            assert set(table) == {str(i) for i in (token_id, *likeliest.indices.tolist())}
            assert table[str(token_id)]["logprob"] == pytest.approx(float(row[token_id]), abs=1e-4)
            assert table[str(int(likeliest.indices[1]))]["rank"] == 2


def test_cache_salt_shows_in_the_cached_tokens_of_the_usage(served: Served) -> None:
    cached = []
    for salt in (None, "tenant a", "tenant b", "tenant a", None):
        body = served.post(COMPLETIONS, prompt="salted " + TEXT, max_tokens=2, temperature=0, cache_salt=salt)
        cached.append(body["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert cached == [0, 0, 0, 32, 32]


def test_reply_names_the_acceptance_rule_and_priority_is_accepted(served: Served) -> None:
    fields = {"prompt": TEXT, "max_tokens": 12, "seed": 1, "ignore_eos": True}
    assert served.post(COMPLETIONS, **fields, priority=-2)["acceptance"] == "exact"
    lossy = served.post(COMPLETIONS, **fields, acceptance="typical", typical_epsilon=1e-6, typical_delta=1e-6)
    assert lossy["acceptance"] == "typical"
    assert lossy["metrics"]["speculative_decoding"]["mean_acceptance_length"] > 2.0

"""Log-probabilities of prompts: transformers' own, in any chunking, and once. (On two ranks: test_equivalence.py.)"""

import random
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from medusa_dist.engine.runner import prompt_logprobs as prompt_scores
from medusa_dist.engine.runner.prompt_logprobs import gather_prompt_logprobs
from medusa_dist.engine.startup.bootstrap import EngineRank
from medusa_dist.ops.sampling import token_logprobs
from medusa_dist.ops.tp_group import TPGroup
from medusa_dist.outputs import FinishReason, Output, TokenLogprobs
from medusa_dist.request import Request
from tests.support.tiny_engine import VOCAB, Run, Setting, decode, engine_over, request, save_model, tiny_config

pytestmark = pytest.mark.usefixtures("one_thread")
LENGTHS = [40, 1, 2, 17, 64, 33]
MAX_TOKENS = [6, 40, 7, 40, 0, 8]
TOPS: list[int | None] = [3, 2, 0, None, 5, 20]


def requests() -> list[Request]:
    """Prompts of many lengths, some of which ask for scores; one for nothing else. The first and last are alike."""
    rng = random.Random(3)
    made = []
    for i, (length, top) in enumerate(zip(LENGTHS, TOPS, strict=True)):
        prompt = [rng.randrange(VOCAB) for _ in range(length)]
        fields = {"max_tokens": MAX_TOKENS[i], "temperature": 0.0, "ignore_eos": True}
        made.append(request(f"r{i}", prompt if i < 5 else made[0].prompt_ids[:33], prompt_logprobs=top, **fields))
    return made


class Model:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.original: PreTrainedModel = save_model("llama", folder)
        self.rank = EngineRank(tiny_config(folder), folder)

    def expected(self, one: Request) -> list[TokenLogprobs | None]:
        """From transformers' logits, by the rule for output tokens."""
        with torch.inference_mode():
            logits = self.original(torch.tensor([one.prompt_ids])).logits[0]
        top = one.params.prompt_logprobs or 0
        return [None, *(token_logprobs(row, t, top) for row, t in zip(logits, one.prompt_ids[1:], strict=False))]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Model:
    return Model(tmp_path_factory.mktemp("llama"))


def check(model: Model, outputs: dict[str, Output]) -> None:
    for one in requests():
        got = outputs[one.request_id].prompt_logprobs
        if one.params.prompt_logprobs is None:
            assert got == ()
            continue
        expected = model.expected(one)
        assert len(got) == len(expected) == len(one.prompt_ids) and got[0] is None
        for a, b in zip(got[1:], expected[1:], strict=True):
            assert a is not None and b is not None
            assert (a.token_id, a.top_ids) == (b.token_id, b.top_ids)
            assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
            assert a.top_logprobs == pytest.approx(b.top_logprobs, abs=1e-4)


SETTINGS = {
    "as they are": Setting(),
    "chunks of 16": Setting(max_batched_tokens=16),
    "preempted": Setting(num_blocks=9, max_batched_tokens=16),  # r4, when 56 of its 64 rows are scored
    "trees": Setting(nodes=15),
}


def plain(model: Model) -> Run:
    return decode(engine_over(model.rank, Setting()), [r for r in requests() if r.params.max_tokens])


@pytest.mark.parametrize("name", SETTINGS)
def test_prompt_logprobs_equal_transformers_in_any_setting(model: Model, name: str) -> None:
    engine = engine_over(model.rank, SETTINGS[name])
    deliveries: list[str] = []
    step = engine.step

    def watched() -> list[Output]:
        outputs = step()
        deliveries.extend(output.request_id for output in outputs if output.prompt_logprobs)
        return outputs

    engine.step = watched  # type: ignore[method-assign]
    run = decode(engine, requests(), arrivals=[0, 0, 1, 1, 15, 40])
    check(model, run.outputs)
    assert sorted(deliveries) == ["r0", "r1", "r2", "r4", "r5"], "delivered once"
    assert (run.num_preemptions > 0) == (name == "preempted")
    # Scores of the prompt change no token; and every bit of them is the same in all settings.
    reference = plain(model)
    assert {n: run.outputs[n].token_ids for n in reference.outputs} == {
        n: output.token_ids for n, output in reference.outputs.items()
    }
    assert all(run.outputs[n].prompt_logprobs == output.prompt_logprobs for n, output in reference.outputs.items())


def test_max_tokens_zero_scores_the_prompt_in_no_decoding_step(model: Model) -> None:
    output = decode(engine_over(model.rank, Setting()), requests()).outputs["r4"]
    assert output.token_ids == output.heads == () and output.finish_reason is FinishReason.LENGTH
    assert output.stats.num_steps == 0 and len(output.prompt_logprobs) == 64


def test_prompt_that_fills_context_and_cache_is_scored(model: Model) -> None:
    """No place for a single token more, and none is asked for."""
    engine = engine_over(model.rank, Setting(num_blocks=5))
    limits = engine.scheduler.limits
    engine.scheduler.limits = type(limits)(**(vars(limits) | {"max_model_len": 64}))
    whole = request("x", [5] * 64, max_tokens=0, prompt_logprobs=0)
    assert len(decode(engine, [whole]).outputs["x"].prompt_logprobs) == 64


def test_scored_prompt_skips_the_prefix_cache_and_fills_it(model: Model) -> None:
    engine = engine_over(model.rank, Setting())
    prompt = list(range(20)) * 2
    cached = []
    for i, top in enumerate((None, 2, None)):
        one = request(f"r{i}", prompt, max_tokens=3, prompt_logprobs=top)
        output = decode(engine, [one]).outputs[f"r{i}"]
        cached.append((output.num_cached_tokens, len(output.prompt_logprobs)))
    assert cached == [(0, 0), (0, 40), (32, 0)]


def test_prompt_logprobs_are_not_delivered_again_after_a_restart(model: Model) -> None:
    one = request("x", range(20), max_tokens=8, temperature=0.0, ignore_eos=True, prompt_logprobs=1)
    whole = decode(engine_over(model.rank, Setting()), [one]).outputs["x"]
    for known in (0, 1, 5):
        before = {"x": whole.token_ids[:known]}
        again = decode(engine_over(model.rank, Setting(nodes=7)), [one], known=before).outputs["x"]
        assert before["x"] + again.token_ids == whole.token_ids
        assert again.prompt_logprobs == (() if known else whole.prompt_logprobs)


@pytest.mark.parametrize("rows", [1, 4, 5, 9])
def test_prompt_logprobs_of_several_pieces_equal_those_of_each_row(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(prompt_scores, "PIECE_ROWS", 4)
    logits = torch.randn(rows, 13)
    logits[:, 11:] = 99.0  # padding of the vocabulary is never seen
    targets = torch.arange(rows).numpy() % 11
    found = gather_prompt_logprobs(logits, targets, 3, 11, TPGroup())
    assert found is not None
    assert found.entries(0, rows, 2) == [token_logprobs(logits[i, :11], int(targets[i]), 2) for i in range(rows)]
    assert found.entries(rows - 1, 1, 0) == [token_logprobs(logits[-1, :11], int(targets[-1]), 0)]

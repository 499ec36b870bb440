"""The bench: its arithmetic, and a whole run on a tiny model."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from medusa_dist import LLM, SamplingParams
from medusa_dist.errors import ConfigError, EngineError
from medusa_dist.jobs.bench import PROMPTS, as_json, bench, bootstrap_interval
from medusa_dist.medusa.heads_file import BaseModelFacts, HeadsDescription, HeadsFile, expected_shapes
from tests.model.tiny_models import configs
from tests.tiny_tokenizers import byte_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory):
    made = tmp_path_factory.mktemp("bench")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(made)
    config = configs()["llama"]
    config.vocab_size, config.max_position_embeddings, config.intermediate_size = len(tokenizer), 256, 64
    torch.manual_seed(2)
    LlamaForCausalLM(config).save_pretrained(made)
    base = BaseModelFacts(name="bytes", fingerprint=None, hidden_size=config.hidden_size, vocab_size=len(tokenizer))
    about = HeadsDescription(form="hidden", num_heads=2, offsets=(1, 2), dtype="float32", base=base)
    HeadsFile(about, {n: 0.1 * torch.randn(s) for n, s in expected_shapes(about).items()}).save(made / "heads")
    with LLM(str(made), heads=str(made / "heads"), speculation=[[0], [1]], kv_cache_tokens=2048) as llm:
        yield llm


def test_interval_holds_the_mean_and_shrinks_with_agreement() -> None:
    assert bootstrap_interval([1.2] * 10) == (pytest.approx(1.2), pytest.approx(1.2))
    low, high = bootstrap_interval([1.0, 1.1, 1.2, 1.3, 1.4])
    assert 1.0 < low < 1.19 < high < 1.4


def test_a_run_compares_both_sides_of_the_same_tokens(llm: LLM, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a\nbc\ndef\n")
    params = SamplingParams(max_tokens=9, temperature=0.0, ignore_eos=True)
    report = bench(llm, [1, 2], 2, params, prompts, lambda _: None)
    assert [row.batch for row in report.rows] == [1, 2]
    for row in report.rows:
        assert row.off.tokens_per_step == 1.0 <= row.on.tokens_per_step and row.low <= row.speedup <= row.high
        assert sum(row.on.phase_shares.values()) == pytest.approx(1.0, abs=1e-3)
    assert json.loads(as_json(report))["prompts_sha256"] == report.prompts_sha256


def test_tokens_that_differ_are_an_error_and_not_a_number(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    chooser = llm._backend.engine.chooser
    honest = chooser._choose

    def dishonest(scores, rows, places):
        chosen = honest(scores, rows, places)
        drafted = places[0][0].request.params.speculation
        return [(token + 1) % 50 for token in chosen] if drafted else chosen

    monkeypatch.setattr(chooser, "_choose", dishonest)
    params = SamplingParams(max_tokens=5, temperature=0.0, ignore_eos=True)
    with pytest.raises(EngineError, match="changed the tokens"):
        bench(llm, [1], 1, params, PROMPTS, lambda _: None)
    for sequence in (*llm._backend.engine.scheduler.running, *llm._backend.engine.scheduler.waiting):
        llm._backend.engine.abort(sequence.request.request_id)


def test_more_sequences_than_prompts(llm: LLM, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\n")
    with pytest.raises(ConfigError, match="1 prompts"):
        bench(llm, [2], 2, SamplingParams(), prompts, lambda _: None)

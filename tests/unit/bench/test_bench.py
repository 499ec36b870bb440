"""The bench: its arithmetic, whole runs on a tiny model, and a peer."""

import hashlib
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from medusa_dist import LLM
from medusa_dist.bench.bench import _ORDERS, PROMPTS, PromptSource, Setting, bench, bootstrap_interval
from medusa_dist.bench.peers import PeerOptions, open_peers
from medusa_dist.bench.report import as_json
from medusa_dist.errors import ConfigError, EngineError
from tests.support.tiny_tool_llm import save_llm

PHASES = ["schedule", "broadcast", "prepare", "copy", "forward", "sample", "accept", "emit", "draft"]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory):
    made = tmp_path_factory.mktemp("bench")
    save_llm(made)
    with LLM(str(made), heads=str(made / "heads"), speculation=[[0], [1]], kv_cache_tokens=2048) as llm:
        yield llm


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a\nbc\n\ndef\n")
    return path


def setting(prompts: Path, **changed: object) -> Setting:
    usual = {"batches": [1, 2], "temperatures": [0.0], "pairs": 2, "waves": 3, "max_tokens": 9}
    return Setting(**(usual | changed), prompts=prompts)


def test_bootstrap_interval_holds_the_mean_and_shrinks_with_agreement() -> None:
    assert bootstrap_interval([1.2] * 10) == (pytest.approx(1.2), pytest.approx(1.2))
    low, high = bootstrap_interval([1.0, 1.1, 1.2, 1.3, 1.4])
    assert 1.0 < low < 1.19 < high < 1.4


def test_bench_reports_speedup_and_phases_per_batch_and_temperature(llm: LLM, prompts: Path) -> None:
    said: list[str] = []
    report = bench(llm, setting(prompts, temperatures=[0.0, 1.0]), [], said.append)
    name = "batch 2, temperature 1"
    assert said[-3:] == [f"{name}: warming up", f"{name}: 0 of 2 pairs", f"{name}: 1 of 2 pairs"]
    assert [(row.temperature, row.batch) for row in report.rows] == [(0.0, 1), (0.0, 2), (1.0, 1), (1.0, 2)]
    for row in report.rows:
        assert row.off.tokens_per_step == 1.0 <= row.on.tokens_per_step and row.low <= row.speedup <= row.high
        assert 0.0 < row.roof_share < 1.0
        for side in (row.on, row.off):
            assert list(side.phase_ms) == PHASES
            # Parts of the step; how much lies between steps depends on how busy the machine is.
            assert 0.0 < side.phase_ms["forward"] < sum(side.phase_ms.values()) <= 1.01 * side.ms_per_step
            expected = 1 - side.phase_ms["forward"] / sum(side.phase_ms.values())
            assert side.outside_forward == pytest.approx(expected, abs=0.01)
    assert json.loads(as_json(report))["prompts_sha256"] == hashlib.sha256(prompts.read_bytes()).hexdigest()


def test_a_batch_larger_than_the_file_gets_numbered_prompts(llm: LLM, prompts: Path, tmp_path: Path) -> None:
    source = PromptSource(llm, prompts)
    texts = [llm.tokenizer.decode(ids, skip_special_tokens=True) for ids in source.take(2, 7)]
    assert texts == ["def", "a", "bc", "2. def", "2. a", "2. bc", "3. def"]
    (report,) = bench(llm, setting(prompts, batches=[4], pairs=1), [], lambda _: None).rows
    assert report.batch == 4
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ConfigError, match="no prompts"):
        PromptSource(llm, tmp_path / "empty.txt")


def test_tokens_changed_by_speculation_are_an_error(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    token_selector = llm.engine.token_selector
    honest = token_selector._choose

    def dishonest(scores, rows, places):
        chosen = honest(scores, rows, places)
        drafted = places[0][0].request.params.speculation
        return [(token + 1) % 50 for token in chosen] if drafted else chosen

    monkeypatch.setattr(token_selector, "_choose", dishonest)
    with pytest.raises(EngineError, match="temperature 0, pair 0: speculation changed the tokens"):
        bench(llm, setting(PROMPTS, batches=[1], pairs=1), [], lambda _: None)
    assert not llm.engine.has_work


def test_transformers_peer_gets_a_ratio_and_gives_the_same_answers(llm: LLM, prompts: Path) -> None:
    with open_peers(PeerOptions(("transformers",)), llm, lambda _: None) as peers:
        said: list[str] = []
        report = bench(llm, setting(prompts, batches=[1], pairs=3), peers, said.append)
    assert said[-1].startswith("transformers 5.") and said[-1].endswith(", batch 1: 2 of 3 rounds")
    assert [(row.batch, row.drafts, row.rounds) for row in report.peers] == [(1, True, 3), (1, False, 3)]
    for row in report.peers:
        assert row.peer.startswith("transformers 5.") and row.low <= row.ratio <= row.high
        assert row.same_answers == row.num_answers == 3
        assert row.ratio == pytest.approx(row.tokens_per_s / row.peer_tokens_per_s, rel=0.01)


def test_each_side_follows_every_other_equally_often() -> None:
    """Over a cycle of rounds, which follow each other without a break."""
    sides = [side for order in _ORDERS * 2 for side in order][: 3 * len(_ORDERS) + 1]
    pairs = Counter(pair for pair in pairwise(sides) if pair[0] != pair[1])
    assert len(_ORDERS) == 6 and len(pairs) == 6 and max(pairs.values()) <= min(pairs.values()) + 1

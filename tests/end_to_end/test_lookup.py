"""Lookup changes the speed, never a token: alone and next to heads, greedy and sampled, in one batch with others."""

from pathlib import Path

import pytest

from medusa_dist.engine.startup.bootstrap import EngineRank
from medusa_dist.request import Request
from tests.support.equivalence import SITUATIONS, same, speculated
from tests.support.tiny_engine import Run, Setting, decode, engine_over, request, save_model, tiny_config

pytestmark = pytest.mark.usefixtures("one_thread")
PHRASE = [5, 9, 4, 17, 22, 8, 13, 5, 28, 3]


def requests() -> list[Request]:
    """A random model repeats itself where it may only choose among few tokens."""
    again = {"max_tokens": 30, "ignore_eos": True}
    return [
        request("greedy", PHRASE * 3, temperature=0.0, allowed_token_ids=(5, 9, 4), **again),
        request("repeating", PHRASE * 2, seed=3, temperature=0.2, allowed_token_ids=(5, 9, 4), **again),
        request("logprobs", PHRASE * 2, temperature=0.0, logprobs=2, **again),
        request("hot", PHRASE * 2, seed=8, temperature=1.0, **again),
        request("declines", PHRASE * 2, temperature=0.0, speculation=False, **again),
        request("short", [7, 7], seed=5, temperature=1.2, **again),
        request("stops", PHRASE, temperature=0.0, stop_token_ids=(3,), max_tokens=30),
        request("penalised", PHRASE * 2, temperature=0.7, presence_penalty=0.5, **again),
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("lookup")
    save_model("llama", made)
    return made


@pytest.fixture(scope="module")
def reference(folder: Path, one_thread: None) -> Run:
    rank = EngineRank(tiny_config(folder, speculation={"mode": "off"}), folder)
    whole = Run()
    for one in requests():
        whole.outputs |= decode(engine_over(rank, Setting()), [one]).outputs
    return whole


@pytest.mark.parametrize("drafters", [["lookup"], ["heads", "lookup"]], ids=["lookup", "with heads"])
@pytest.mark.parametrize("situation", SITUATIONS)
def test_output_with_lookup_equals_output_without(
    folder: Path, reference: Run, drafters: list[str], situation: str
) -> None:
    speculation = {"mode": "auto", "max_nodes": 15, "drafters": drafters}
    rank = EngineRank(tiny_config(folder, speculation=speculation), folder)
    assert set(rank.engine.drafters) == set(drafters)
    setting, arrivals = SITUATIONS[situation]
    engine = engine_over(rank, Setting(15, (), None, setting.num_blocks, setting.max_batched_tokens))
    run = decode(engine, requests(), arrivals=arrivals)
    same(run, reference)
    speculated(run)
    by = {name: output.stats.accepted_by for name, output in run.outputs.items()}
    assert by["greedy"]["lookup"] > 0 < by["repeating"]["lookup"], f"it was accepted, greedy and sampled: {by}"
    assert not run.outputs["declines"].stats.num_drafted
    for output in run.outputs.values():
        assert sum(output.stats.accepted_by.values()) >= output.stats.num_accepted
    stats = engine.stats()
    assert stats.accepted_by["lookup"] == sum(each["lookup"] for each in by.values())

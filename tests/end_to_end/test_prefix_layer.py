"""Heads that read the whole text through a layer of their own: what they start from, and that they change no token."""

import random
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from medusa_dist.config import Config
from medusa_dist.engine.drafters.head_drafter import HeadDrafter
from medusa_dist.engine.runner.worker import Scores
from medusa_dist.engine.startup.bootstrap import EngineRank
from medusa_dist.engine.state.sequence import StepResult
from medusa_dist.medusa.heads.heads_file import HeadsFile, read_heads
from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS
from medusa_dist.request import Request
from tests.support.prefix_oracle import prefix_states
from tests.support.tiny_engine import VOCAB, Run, Setting, decode, engine_over, request, save_model, tiny_config
from tests.support.tiny_heads import save_heads

pytestmark = pytest.mark.usefixtures("one_thread")
FEW = 6  # blocks: too few for all sequences at once
PREFIX = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 6, "inner": 20}


def requests() -> list[Request]:
    """Two of them share the first blocks of their prompts."""
    rng = random.Random(2)
    fields = {"max_tokens": 24, "ignore_eos": True}
    shared = [rng.randrange(VOCAB) for _ in range(2 * BLOCK_TOKENS + 3)]
    return [
        request("greedy", [5, 9, 3], temperature=0.0, **fields),
        request("first", [*shared, 7, 1], seed=4, temperature=0.8, **fields),
        request("second", [*shared, 2], temperature=0.0, **fields),
        request("whole", [7], seed=-2, top_p=0.9, **fields),
    ]


def heads_config(folder: Path, **keys: object) -> Config:
    """Heads alone draft, so that all that is drafted is theirs."""
    return tiny_config(folder, speculation={"mode": "auto", "max_nodes": 15, "drafters": ["heads"]}, **keys)


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, one_thread: None
) -> tuple[Path, PreTrainedModel, EngineRank]:
    folder = tmp_path_factory.mktemp(request.param)
    model = save_model(request.param, folder)
    shape = {"form": "sequential", "width": 24, "tapped_layers": (-1, 0), "prefix": PREFIX}
    save_heads(folder / "heads", model.config.hidden_size, VOCAB, 0.2, **shape)
    return folder, model, EngineRank(heads_config(folder), folder)


def tokens(run: Run) -> dict[str, tuple[int, ...]]:
    return {name: output.token_ids for name, output in run.outputs.items()}


@pytest.mark.parametrize("nodes", [15, None])
def test_they_change_no_token(made: tuple, nodes: int | None) -> None:
    off = decode(engine_over(made[2], Setting()), requests())
    on = decode(engine_over(made[2], Setting(nodes=nodes)), requests(), arrivals=[0, 2, 3, 5])
    assert tokens(on) == tokens(off) and 0 < on.accepted < on.drafted and off.drafted == 0


@pytest.mark.parametrize("chunk", [64, 12])
@pytest.mark.parametrize("blocks", [128, FEW])
def test_they_start_from_what_a_fresh_pass_over_the_text_gives(
    made: tuple, chunk: int, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With trees and accepted drafts, prompts in chunks, shared blocks, and after preemption."""
    folder, theirs, rank = made
    started: list[tuple[list[int], torch.Tensor]] = []
    draft = HeadDrafter.draft

    def recorded(self: HeadDrafter, results: list[StepResult], scores: Scores) -> list:
        for result in results:
            if result.sequence.finish_reason is None:
                started.append((list(result.sequence.tokens[:-1]), scores.hidden[result.last_row].clone()))
        return draft(self, results, scores)

    monkeypatch.setattr(HeadDrafter, "draft", recorded)
    setting = Setting(nodes=15, max_batched_tokens=chunk, num_blocks=blocks)
    run = decode(engine_over(rank, setting), requests(), arrivals=[0, 1, 9, 9])
    assert len(started) > 30 and run.accepted and (run.num_preemptions > 0) == (blocks == FEW)
    file = read_heads(folder / "heads")
    for ids, row in started:
        with torch.no_grad():
            states = theirs(torch.tensor([ids]), output_hidden_states=True).hidden_states
        expected = prefix_states(file, torch.cat([states[2][0], states[1][0]], dim=-1))[-1]
        torch.testing.assert_close(row, expected, atol=2e-4, rtol=2e-4)


def test_the_layer_changes_drafts(made: tuple, tmp_path: Path) -> None:
    folder, _, rank = made
    file = read_heads(folder / "heads")
    louder = {name: 20 * file.tensors[name] for name in ("prefix.o_proj.weight", "prefix.down_proj.weight")}
    HeadsFile(file.description, file.tensors | louder).save(tmp_path / "heads")
    other = EngineRank(heads_config(folder, heads={"source": str(tmp_path / "heads")}), folder)
    runs = [decode(engine_over(each, Setting(nodes=7)), requests()) for each in (rank, other)]
    assert tokens(runs[0]) == tokens(runs[1])
    assert [o.heads for o in runs[0].outputs.values()] != [o.heads for o in runs[1].outputs.values()]


def test_its_keys_and_values_are_part_of_a_kv_block(made: tuple) -> None:
    drafter = made[2].engine.drafters["heads"]
    assert drafter.kv_block_bytes == 2 * PREFIX["num_kv_heads"] * PREFIX["head_dim"] * BLOCK_TOKENS * 4

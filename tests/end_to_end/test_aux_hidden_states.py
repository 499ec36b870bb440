"""Heads that are told states of inner layers, served: what they read, that they change drafts, and never a token."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from transformers import PreTrainedModel

from medusa_dist.config import Config
from medusa_dist.engine.drafters.head_drafter import HeadDrafter
from medusa_dist.engine.runner.worker import Scores
from medusa_dist.engine.startup.bootstrap import EngineRank
from medusa_dist.engine.startup.process_group import join_store, open_store
from medusa_dist.engine.state.sequence import StepResult
from medusa_dist.errors import HeadsError
from medusa_dist.medusa.heads.description import BaseModelFacts
from medusa_dist.medusa.heads.heads_file import HeadsFile, read_heads
from medusa_dist.request import Request
from tests.support.tiny_engine import VOCAB, Run, Setting, decode, engine_over, request, save_model, tiny_config
from tests.support.tiny_heads import save_heads

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ["llama", "gemma2", "opt"]


def requests() -> list[Request]:
    fields = {"max_tokens": 24, "ignore_eos": True}
    return [
        request("greedy", [5, 9, 3], temperature=0.0, **fields),
        request("warm", range(3, 28), seed=4, temperature=0.8, **fields),
        request("whole", [7], seed=-2, top_p=0.9, **fields),
    ]


def make(name: str, folder: Path) -> PreTrainedModel:
    model = save_model(name, folder)
    width = model.config.hidden_size
    save_heads(folder / "heads", width, VOCAB, 0.2, form="sequential", width=24, tapped_layers=(-1, 0, 1))
    return model


def heads_config(folder: Path, **keys: object) -> Config:
    """Heads alone draft, so that all that is drafted is theirs."""
    return tiny_config(folder, speculation={"mode": "auto", "max_nodes": 15, "drafters": ["heads"]}, **keys)


@pytest.fixture(scope="module")
def models(
    tmp_path_factory: pytest.TempPathFactory, one_thread: None
) -> dict[str, tuple[Path, PreTrainedModel, EngineRank]]:
    made = {}
    for name in NAMES:
        folder = tmp_path_factory.mktemp(name)
        model = make(name, folder)
        made[name] = folder, model, EngineRank(heads_config(folder), folder)
    return made


def tokens(run: Run) -> dict[str, tuple[int, ...]]:
    return {name: output.token_ids for name, output in run.outputs.items()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("nodes", [15, None])
def test_heads_that_read_aux_states_change_no_token(models: dict, name: str, nodes: int | None) -> None:
    rank = models[name][2]
    off = decode(engine_over(rank, Setting()), requests())
    on = decode(engine_over(rank, Setting(nodes=nodes)), requests(), arrivals=[0, 2, 3])
    assert tokens(on) == tokens(off) and 0 < on.accepted < on.drafted and off.drafted == 0


@pytest.mark.parametrize("name", NAMES)
def test_heads_read_the_hidden_states_of_transformers(models: dict, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every step of decoding with trees: the row of the last token whose state is known."""
    _, theirs, rank = models[name]
    read: list[tuple[list[int], torch.Tensor]] = []
    draft = HeadDrafter.draft

    def recorded(self: HeadDrafter, verdicts: list[StepResult], scores: Scores) -> list:
        for verdict in verdicts:
            if verdict.sequence.finish_reason is None:
                read.append((list(verdict.sequence.tokens[:-1]), scores.hidden[verdict.last_row].clone()))
        return draft(self, verdicts, scores)

    monkeypatch.setattr(HeadDrafter, "draft", recorded)
    decode(engine_over(rank, Setting(nodes=15)), requests())
    assert len(read) > 20
    width = theirs.config.hidden_size
    for ids, row in read:
        with torch.no_grad():
            states = theirs(torch.tensor([ids]), output_hidden_states=True).hidden_states
        assert row.shape == (3 * width,)
        torch.testing.assert_close(row[:width], states[2][0, -1], atol=1e-4, rtol=1e-4)  # behind the final norm
        torch.testing.assert_close(row[width : 2 * width], states[1][0, -1], atol=1e-4, rtol=1e-4)


def test_tapped_layers_change_drafts_and_no_token(models: dict, tmp_path: Path) -> None:
    folder, _, rank = models["llama"]
    file = read_heads(folder / "heads")
    HeadsFile(file.description, file.tensors | {"taps.weight": torch.zeros_like(file.tensors["taps.weight"])}).save(
        tmp_path / "heads"
    )
    deaf = EngineRank(heads_config(folder, heads={"source": str(tmp_path / "heads")}), folder)
    runs = [decode(engine_over(each, Setting(nodes=7)), requests()) for each in (rank, deaf)]
    assert tokens(runs[0]) == tokens(runs[1])
    assert [o.heads for o in runs[0].outputs.values()] != [o.heads for o in runs[1].outputs.values()]


def test_tapped_layer_that_the_model_lacks_is_refused(models: dict, tmp_path: Path) -> None:
    folder, theirs, _ = models["llama"]
    width = theirs.config.hidden_size
    save_heads(tmp_path, width, VOCAB, form="sequential", width=24, tapped_layers=(-1, 2))
    with pytest.raises(HeadsError, match="tapped_layers has layer 2, but the model's are 0 to 1"):
        EngineRank(heads_config(folder, heads={"source": str(tmp_path)}), folder)


def test_layers_wider_than_the_output_matrix_are_tapped(tmp_path: Path) -> None:
    """OPT with projections: heads as wide as the output matrix, states between layers twice as wide."""
    save_model("opt-projected", tmp_path)
    base = BaseModelFacts(name="tiny", fingerprint=None, hidden_size=24, vocab_size=VOCAB, layer_width=48)
    fields = {"form": "sequential", "width": 24, "tapped_layers": (-1, 0)}
    save_heads(tmp_path / "heads", 24, VOCAB, 0.2, base=base, **fields)
    rank = EngineRank(heads_config(tmp_path), tmp_path)
    off, on = (decode(engine_over(rank, Setting(nodes=nodes)), requests()) for nodes in (0, 15))
    assert tokens(on) == tokens(off) and on.accepted > 0
    save_heads(tmp_path / "heads", 24, VOCAB, base=base.model_copy(update={"layer_width": None}), **fields)
    with pytest.raises(HeadsError, match=r"base\.layer_width"):
        EngineRank(heads_config(tmp_path), tmp_path)


def _rank(rank: int, folders: dict[str, Path], root: Path, port: int) -> None:
    """One of two ranks; rank 0 decodes with and without the heads."""
    torch.set_num_threads(1)
    store = join_store("127.0.0.1", port, 2, 60)
    for generation, (name, folder) in enumerate(folders.items()):
        made = EngineRank(heads_config(folder, tensor_parallel_size=2), folder, rank, store, generation)
        if rank:
            made.follow()
        else:
            runs = [decode(engine_over(made, Setting(nodes=nodes)), requests()) for nodes in (0, 15)]
            made.engine.stop()
            torch.save([(tokens(run), [o.heads for o in run.outputs.values()]) for run in runs], root / name)
        dist.destroy_process_group()


def test_two_ranks_draft_and_answer_like_one(models: dict, tmp_path: Path) -> None:
    store = open_store(2, "127.0.0.1", 60)
    folders = {name: models[name][0] for name in ("llama", "gemma2")}
    mp.spawn(_rank, (folders, tmp_path, store.port), nprocs=2)
    for name in folders:
        (off, _), (on, heads) = torch.load(tmp_path / name)
        alone = decode(engine_over(models[name][2], Setting(nodes=15)), requests())
        assert off == on == tokens(alone)
        assert heads == [output.heads for output in alone.outputs.values()] and any(map(any, heads))

"""On equals off: ways of sampling x trees x batches x ranks x architectures, token for token, on CPUs in float32.

One reference per model and way of sampling: each request alone, without drafts. A lean selection is in the default
suite; all of it is marked slow (`make test-matrix`). Not here: preemption, chunks, resuming (test_equivalence.py).
"""

import itertools
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from medusa_dist.engine.startup.bootstrap import EngineRank
from medusa_dist.engine.startup.process_group import join_store, open_store
from medusa_dist.grammar import Grammar
from medusa_dist.named_trees import NAMED_TREES
from medusa_dist.request import Request, choice_seed
from tests.support.tiny_engine import EOS, VOCAB, Run, Setting, decode, engine_over, request, save_model, tiny_config
from tests.support.tiny_tokenizers import json_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ["llama", "llama-tied", "qwen3", "mistral", "gemma2", "gemma3", "phi3", "gpt-neox", "gpt2", "opt"]
TWO_RANKS = ["llama", "gemma2", "gpt2", "qwen3"]
SCHEMA = {
    "type": "object",
    "properties": {
        "ab": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 4},
        "b": {"enum": [True, False, None]},
    },
    "required": ["ab", "b"],
    "additionalProperties": False,
}
KINDS: dict[str, dict] = {
    "greedy": {"temperature": 0.0},
    "T=0.7": {"temperature": 0.7},
    "top_p": {"top_p": 0.9},
    "top_k": {"top_k": 5, "temperature": 1.3},
    "min_p": {"min_p": 0.05},
    "penalties": {"presence_penalty": 0.8, "frequency_penalty": 0.4, "repetition_penalty": 1.2},
    "logit_bias": {"logit_bias": ((3, 2.0), (EOS, 1.5), (7, -100.0)), "ignore_eos": False, "min_tokens": 4},
    "bans": {"bad_words": ((5,), (3, 8), (7, 7)), "allowed_token_ids": (*range(0, VOCAB, 2), 3, 5, 7)},
    "JSON": {"grammar": Grammar.json_schema(SCHEMA), "max_tokens": 60, "ignore_eos": False},
    "n=3": {"temperature": 1.0},
}


TREES: dict[str, Setting] = {
    "none": Setting(),
    "chain": Setting(nodes=None, paths=NAMED_TREES["chain4"], skill=0.8),
    "3": Setting(nodes=3, skill=0.6),
    "15": Setting(nodes=15, skill=0.6),
    "static 63": Setting(nodes=None, paths=NAMED_TREES["mc_sim_7b_63"], skill=0.6),
}
# Requests, and the step before which each comes: one alone; five at once; twelve that join while others leave.
BATCHES: dict[int, list[int]] = {1: [0], 5: [0] * 5, 12: [0, 0, 1, 2, 2, 3, 5, 8, 9, 9, 14, 20]}
LENGTHS = [3, 41, 17, 1, 29, 58, 9, 33, 2, 20, 12, 47]
MAX_TOKENS = [21, 12, 24, 7, 18, 22, 4, 16, 9, 25, 5, 14]
assert len(TREES["static 63"].paths) == 63


def requests(kind: str, count: int) -> list[Request]:
    """The first `count` of twelve. "n=3": three choices of each prompt, as many prompts as make `count` or more."""
    rng = random.Random(4)
    made = []
    for i in range(12):
        prompt = [rng.randrange(VOCAB) for _ in range(LENGTHS[i])]
        seed = rng.getrandbits(64) - 2**63
        fields = {"max_tokens": MAX_TOKENS[i], "ignore_eos": True} | KINDS[kind]
        choices = range(3) if kind == "n=3" else range(1)
        made += [request(f"r{i}.{choice}", prompt, choice_seed(seed, choice), **fields) for choice in choices]
    return made[: -(-count // 3) * 3 if kind == "n=3" else count]


def ids(run: Run) -> dict[str, tuple[int, ...]]:
    return {name: output.token_ids for name, output in run.outputs.items()}


@dataclass(frozen=True)
class Cell:
    """One place of the matrix, but for the model."""

    kind: str
    tree: str
    batch: int

    @property
    def setting(self) -> Setting:
        return Setting(**(vars(TREES[self.tree]) | {"max_running": 12, "max_batched_tokens": 1024}))


CELLS = [Cell(*cell) for cell in itertools.product(KINDS, TREES, BATCHES)]


class Model:
    """A tiny model with its engine, and what each of its requests gets alone without drafts."""

    def __init__(self, rank: EngineRank) -> None:
        self.rank = rank
        self._truth: dict[str, dict[str, tuple[int, ...]]] = {}

    def truth(self, kind: str) -> dict[str, tuple[int, ...]]:
        if kind not in self._truth:
            alone = [ids(decode(engine_over(self.rank, Setting()), [one])) for one in requests(kind, 12)]
            self._truth[kind] = {name: tokens for part in alone for name, tokens in part.items()}
        return self._truth[kind]

    def run(self, cell: Cell) -> tuple[dict[str, tuple[int, ...]], Run]:
        """What comes out of this cell, and what should."""
        each = requests(cell.kind, cell.batch)
        arrivals = [BATCHES[cell.batch][i * cell.batch // len(each)] for i in range(len(each))]
        truth = self.truth(cell.kind)
        run = decode(engine_over(self.rank, cell.setting, truth), each, arrivals=arrivals)
        return {one.request_id: truth[one.request_id] for one in each}, run


def check(model: Model, cell: Cell) -> Counter[str]:
    """Tokens are equal. Returns how many drafts there were, by what became of them."""
    expected, run = model.run(cell)
    assert ids(run) == expected
    return Counter(accepted=run.accepted, rejected=run.drafted - run.accepted)


def check_all(model: Model, cells: list[Cell]) -> None:
    """Each cell, and that each tree had drafts of both fates for each way of sampling (one short answer may not)."""
    fates: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for cell in cells:
        fates[cell.kind, cell.tree] += check(model, cell)
    for (kind, tree), fate in fates.items():
        assert (fate["accepted"] and fate["rejected"]) if tree != "none" else not fate, (kind, tree)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> "Iterator[Models]":
    yield Models(tmp_path_factory.mktemp("models"))


class Models:
    """Models by name, made when they are first asked for."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._made: dict[str, Model] = {}

    def folder(self, name: str) -> Path:
        folder = self._root / name
        if not folder.exists():
            save_model(name, folder)
            json_tokenizer().save_pretrained(folder)
        return folder

    def __getitem__(self, name: str) -> Model:
        if name not in self._made:
            folder = self.folder(name)
            self._made[name] = Model(EngineRank(tiny_config(folder, max_running=12), folder))
        return self._made[name]


def test_choices_of_n_differ(models: Models) -> None:
    truth = models["llama"].truth("n=3")
    for i in range(3):
        assert len({truth[f"r{i}.{choice}"] for choice in range(3)}) == 3


def test_finished_json_answers_fit_the_schema(models: Models) -> None:
    """The row has a meaning: most answers come to their end, and fit the schema."""
    texts = [json_tokenizer().decode(tokens) for tokens in models["llama"].truth("JSON").values()]
    answers = [text for text in texts if text.endswith("}")]
    assert len(answers) >= 4
    for answer in answers:
        found = json.loads(answer)
        assert 2 <= len(found["ab"]) <= 4 and found["b"] in (True, False, None)


# Every way of sampling with a long and with a wide tree; every architecture in a batch that changes.
LEAN = [("llama", kind, tree, 5) for kind in KINDS for tree in ("chain", "static 63")]
LEAN += [(name, kind, "15", 12) for name, kind in zip(NAMES, itertools.cycle(["T=0.7", "penalties"]), strict=False)]
LEAN += [("gemma2", "min_p", "3", 1), ("gpt2", "top_k", "3", 5)]


@pytest.mark.parametrize(("name", "kind", "tree", "batch"), LEAN)
def test_speculation_on_equals_off_in_selected_cells(
    models: Models, name: str, kind: str, tree: str, batch: int
) -> None:
    check_all(models[name], [Cell(kind, tree, batch)])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_speculation_on_equals_off_in_all_cells(models: Models, name: str) -> None:
    check_all(models[name], CELLS)


def _rank(rank: int, folder: Path, port: int, cells: list[Cell], out: Path) -> None:
    """One of two ranks. Rank 0 works through the cells, against references of two ranks, too."""
    torch.set_num_threads(1)
    store = join_store("127.0.0.1", port, 2, 60)
    made = EngineRank(tiny_config(folder, max_running=12, tensor_parallel_size=2), folder, rank, store, 0)
    if rank:
        made.follow()
    else:
        model = Model(made)
        check_all(model, cells)
        torch.save({kind: model.truth(kind) for kind in KINDS}, out)
        made.engine.stop()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("name", TWO_RANKS)
def test_speculation_on_equals_off_in_all_cells_on_two_ranks(models: Models, name: str, tmp_path: Path) -> None:
    store = open_store(2, "127.0.0.1", 60)
    mp.spawn(_rank, (models.folder(name), store.port, CELLS, tmp_path / "truth.pt"), nprocs=2)
    truth = torch.load(tmp_path / "truth.pt")
    assert truth == {kind: models[name].truth(kind) for kind in KINDS}

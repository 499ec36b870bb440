"""A row's logits do not depend on its company: bitwise the same alone and among 2 to 64 sequences with trees.

On a CPU in float32, this is what makes speculation exact without a tolerance. Whole models here; attention alone, over
more lengths and shapes: tests/unit/ops/attention/test_padded.py.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from medusa_dist.config import parse_config
from medusa_dist.engine.runner.plan import Op, Plan
from medusa_dist.engine.runner.worker import Worker
from medusa_dist.medusa.trees.tree import ROOT
from medusa_dist.model.fused_modules import choose_kernels
from medusa_dist.model.load import ShardedModel, load_model
from medusa_dist.model.source.resolve_model import model_folder
from medusa_dist.ops.arrays import Ints
from medusa_dist.ops.attention.kv_cache import KVCache
from medusa_dist.ops.attention.paged_cpu import PagedCpuBackend
from medusa_dist.ops.cpu.packed_weights import int8_refusal
from medusa_dist.ops.tp_group import TPGroup
from tests.support.plan_helpers import ints, random_parents
from tests.support.tiny_engine import VOCAB, save_model
from tests.support.tiny_models import configs

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
needs_int8 = pytest.mark.skipif(int8_refusal() is not None, reason=f"8-bit products: {int8_refusal()}")
DENSE = [
    "llama",
    "llama-tied",
    "qwen3",
    "mistral",
    "gemma2",
    "gemma3",
    "phi3",
    "gpt-neox",
    "gpt2",
    "opt",
    "opt-projected",
]
DENSE += ["bert-generation"]
ROUTED = ["mixtral", "qwen2-moe"]
BLOCKS_EACH = 12


@dataclass(frozen=True)
class Part:
    """One sequence: tokens known, the last of them the root, and a tree behind it."""

    known: list[int]
    drafted: list[int]
    parents: tuple[int, ...]

    def path(self, node: int) -> list[int]:
        """What the row of a node (ROOT: of the root) is computed from."""
        below: list[int] = []
        while node != ROOT:
            below.append(self.drafted[node])
            node = self.parents[node]
        return [*self.known, *reversed(below)]


def random_parts(count: int, seed: int, vocab: int = VOCAB) -> list[Part]:
    rng = random.Random(seed)
    parts = []
    for _ in range(count):
        parents = random_parents(rng, rng.choice([0, 0, 1, 5, 15]))
        known = rng.choices(range(vocab), k=rng.choice([1, 4, 17, 41, 64, 101]))
        parts.append(Part(known, rng.choices(range(vocab), k=len(parents)), parents))
    return parts


class Bench:
    """A worker with a cache for so many sequences, in shuffled blocks."""

    def __init__(self, model: ShardedModel, count: int) -> None:
        pool = KVCache.allocate(
            *(model.num_layers, model.num_kv_heads, model.head_dim, 1 + count * BLOCKS_EACH, model.dtype, CPU),
            keys_in_columns=True,
        )
        pool.rows.normal_(generator=torch.Generator().manual_seed(3))  # what others left there
        self.worker = Worker(model, pool, count, BLOCKS_EACH, PagedCpuBackend())
        blocks = torch.randperm(count * BLOCKS_EACH, generator=torch.Generator().manual_seed(4)) + 1
        self.worker._tables[:] = blocks.view(count, BLOCKS_EACH).numpy()
        self.worker.choice._whole[:] = 1

    def logits(self, parts: list[Part]) -> list[Tensor]:
        """[1 + nodes, V] of each: known tokens but the root in one pass of all, then a step of all."""
        prompts = [i for i, part in enumerate(parts) if len(part.known) > 1]
        if prompts:
            self._pass(prompts, [0] * len(prompts), [parts[i].known[:-1] for i in prompts], [()] * len(prompts), False)
        starts = [len(part.known) - 1 for part in parts]
        tokens = [[part.known[-1], *part.drafted] for part in parts]
        whole = self._pass(list(range(len(parts))), starts, tokens, [part.parents for part in parts], True)
        rows = torch.stack([whole[row] for row in range(len(whole))])
        return list(rows.split([1 + len(part.parents) for part in parts]))

    def _pass(
        self, slots: list[int], starts: list[int], tokens: list[list[int]], parents: list[tuple[int, ...]], wanted: bool
    ) -> dict[int, Tensor]:
        nodes = [len(tree) for tree in parents]
        nothing: Ints = np.zeros(len(slots), dtype=np.int64)
        plan = Plan(
            Op.STEP,
            0,
            0,
            batch_indices=ints(slots),
            num_computed_tokens=ints(starts),
            num_new_tokens=ints([len(rows) - tree for rows, tree in zip(tokens, nodes, strict=True)]),
            num_draft_tokens=ints(nodes),
            needs_logits=ints([int(wanted)] * len(slots)),
            num_kept_blocks=nothing,
            num_new_blocks=nothing,
            token_ids=ints([token for rows in tokens for token in rows]),
            parents=ints([parent for tree in parents for parent in tree]),
        )
        return self.worker.execute(plan).full_logits


def differing(model: ShardedModel, count: int, sample: int = 8, vocab: int = VOCAB) -> list[float]:
    """By how much rows among `count` sequences differ from the same rows alone: those that do, of `sample` rows."""
    parts = random_parts(count, count, vocab)
    together = Bench(model, count).logits(parts)
    every = [(i, node) for i, part in enumerate(parts) for node in range(ROOT, len(part.parents))]
    found = []
    for i, node in random.Random(count).sample(every, min(sample, len(every))):
        alone = Bench(model, 1).logits([Part(parts[i].path(node), [], ())])[0][0]
        if not torch.equal(together[i][1 + node], alone):
            found.append(float((together[i][1 + node] - alone).abs().max()))
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def tiny(name: str, root: Path, dtype: torch.dtype = torch.float32, quantization: str = "none") -> ShardedModel:
    folder = root / name
    if not folder.exists():
        save_model(name, folder)
    return served(folder, dtype, quantization)


def served(folder: Path, dtype: torch.dtype, quantization: str) -> ShardedModel:
    """As a rank on a CPU loads it."""
    kernels = choose_kernels("paged_cpu", CPU, dtype)
    return load_model(folder, dtype=dtype, device=CPU, parallel=TPGroup(), kernels=kernels, quantization=quantization)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", DENSE)
def test_logits_of_a_row_are_bitwise_equal_alone_and_in_a_batch(name: str, dtype: torch.dtype, root: Path) -> None:
    model = tiny(name, root, dtype)
    assert [count for count in (2, 7, 33) if differing(model, count)] == []


@needs_int8
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "phi3", "gpt2", "opt"])
def test_logits_of_a_row_in_8_bits_are_bitwise_equal_alone_and_in_a_batch(
    name: str, dtype: torch.dtype, root: Path
) -> None:
    model = tiny(name, root, dtype, "int8")
    assert [count for count in (2, 7, 33) if differing(model, count)] == []


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", DENSE)
def test_logits_of_a_row_are_bitwise_equal_in_any_batch_up_to_64(name: str, dtype: torch.dtype, root: Path) -> None:
    model = tiny(name, root, dtype)
    assert [count for count in range(1, 65) if differing(model, count, 40)] == []


@pytest.mark.parametrize("name", ["llama", pytest.param("gemma2", marks=pytest.mark.slow)])
def test_logits_of_a_row_are_bitwise_equal_with_two_threads(name: str, root: Path) -> None:
    model = tiny(name, root)
    torch.set_num_threads(2)
    try:
        assert [count for count in (2, 33) if differing(model, count, 3)] == []
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral"])
def test_logits_of_a_row_are_bitwise_equal_with_an_intermediate_size_of_67(name: str, tmp_path: Path) -> None:
    """torch's element-wise functions compute what remains of 32 numbers by other code; our loops do not."""
    config = configs()[name]
    config.intermediate_size = 67
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = served(tmp_path, torch.float32, "none")
    assert [count for count in (5, 11, 33) if differing(model, count, 40, config.vocab_size)] == []


@pytest.mark.parametrize("name", ROUTED)
def test_rows_of_routed_models_differ_in_the_last_bits_only(name: str, root: Path) -> None:
    """Not promised: experts see as many rows as are routed to them. How far it goes is."""
    model = tiny(name, root)
    assert max((most for count in (3, 16) for most in differing(model, count)), default=0.0) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("quantization", ["none", pytest.param("int8", marks=needs_int8)])
@pytest.mark.slow
@pytest.mark.real
def test_logits_of_the_demo_model_are_bitwise_equal_in_a_batch(
    quantization: str, threads: int, dtype: torch.dtype
) -> None:
    config = parse_config({"model": "demo:smollm2-135m"})
    torch.set_num_threads(threads)
    try:
        model = served(model_folder(config), dtype, quantization)
        counts = (2, 3, 4, 8, 31, 32, 33, 64)
        assert [count for count in counts if differing(model, count, 8, model.vocab_size)] == []
    finally:
        torch.set_num_threads(1)

"""One rank executing plans by hand: block tables, copies before writes, choices, and what is gathered whole."""

from dataclasses import replace

import pytest
import torch

from medusa_dist.engine.runner.plan import Op, Plan, bits_of
from medusa_dist.engine.runner.token_choice import TokenChoice, best_of_shards
from medusa_dist.engine.runner.worker import Worker
from medusa_dist.engine.startup.bootstrap import EngineRank
from medusa_dist.ops.arrays import Ints
from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS, KVCache
from medusa_dist.ops.attention.paged_cpu import PagedCpuBackend
from medusa_dist.ops.noise import NoiseColumns, gumbel
from medusa_dist.ops.tp_group import TPGroup
from tests.support.attention_cases import needs_triton
from tests.support.plan_helpers import ints
from tests.support.tiny_engine import VOCAB, save_model, tiny_config

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("llama")
    save_model("llama", folder)
    return EngineRank(tiny_config(folder), folder).engine.ranks.worker.model


@pytest.fixture
def worker(model) -> Worker:
    shape = model.num_layers, model.num_kv_heads, model.head_dim
    pool = KVCache.allocate(*shape, 12, torch.float32, CPU, keys_in_columns=True)
    return Worker(model, pool, max_running=4, max_blocks=6, attention=PagedCpuBackend())


def step(slot: int, start: int, tokens: list[int], **fields: object) -> Plan:
    """One sequence; its tree, blocks and copies in `fields`."""
    parents: Ints = ints(fields.pop("parents", []))
    blocks: Ints = ints(fields.pop("blocks", []))
    keys = {
        "batch_indices": ints([slot]),
        "num_computed_tokens": ints([start]),
        "num_new_tokens": ints([len(tokens) - parents.size]),
        "num_draft_tokens": ints([parents.size]),
        "needs_logits": ints([1]),
        "num_kept_blocks": ints([fields.pop("num_kept_blocks", 0)]),
        "num_new_blocks": ints([blocks.size]),
        "token_ids": ints(tokens),
        "parents": parents,
        "blocks": blocks,
    }
    return Plan(Op.STEP, 0, 0, **(keys | fields))


def admit(index: int, seed: int = 0, temperature: float = 0.0, full_logits: int = 0) -> dict:
    names = ("indices", "seeds", "temperatures", "full_logits")
    values = (index, seed, bits_of(temperature), full_logits)
    return {f"admitted_{name}": ints([value]) for name, value in zip(names, values, strict=True)}


def logits_of(worker: Worker, tokens: list[int]) -> torch.Tensor:
    """[V] after the last token, from a pass of its own in the pool's last block."""
    whole = worker.execute(step(3, 0, tokens, blocks=[11], **admit(3, full_logits=1))).full_logits
    return whole[0]


def test_greedy_choices_come_without_full_logits(worker: Worker) -> None:
    scores = worker.execute(step(1, 0, [3, 4, 5], blocks=[2], **admit(1)))
    assert scores.full_logits == {} and scores.hidden.shape == (1, worker.model.hidden_size)
    assert scores.choices.tolist() == [int(logits_of(worker, [3, 4, 5]).argmax())]


def test_tree_choices_equal_those_of_each_path_alone(worker: Worker) -> None:
    scores = worker.execute(step(1, 0, [3, 4, 8, 9, 10], parents=[-1, -1, 1], blocks=[2], **admit(1)))
    paths = ([3, 4], [3, 4, 8], [3, 4, 9], [3, 4, 9, 10])
    assert scores.choices.tolist() == [int(logits_of(worker, path).argmax()) for path in paths]


def test_full_logits_come_for_sequences_that_need_them(worker: Worker) -> None:
    scores = worker.execute(step(1, 0, [3, 4], blocks=[2], **admit(1, full_logits=1)))
    assert scores.choices.tolist() == [-1]
    assert torch.equal(scores.full_logits[0], logits_of(worker, [3, 4])) and scores.full_logits[0].shape == (VOCAB,)


def test_sampling_parameters_stay_until_the_next_admission(worker: Worker) -> None:
    worker.execute(step(1, 0, [3], blocks=[2], **admit(1, full_logits=1)))
    assert worker.execute(step(1, 1, [4])).choices.tolist() == [-1]
    assert worker.execute(step(1, 0, [3], blocks=[2], **admit(1))).choices.tolist() != [-1]


def test_plain_scores_are_logits_by_temperature_plus_noise(worker: Worker) -> None:
    worker.choice._seeds[[0, 2]], worker.choice._temperatures[[0, 2]] = (-9, 5), (0.5, 2.0)
    logits = torch.randn(4, VOCAB)
    slots, positions = ints([0, 1, 2, 0]), torch.tensor([7, 8, 9, 7])
    got = worker.choice._plain_scores(logits, slots, positions)
    columns = NoiseColumns.of_range(0, VOCAB, CPU)
    for row, (seed, temperature) in enumerate([(-9, 0.5), (0, 0.0), (5, 2.0), (-9, 0.5)]):
        expected = logits[row]
        if temperature:
            expected = expected / temperature + gumbel(torch.tensor([seed]), positions[row : row + 1], columns)[0]
        assert torch.equal(got[row], expected)


class Alone(TPGroup):
    """One of two ranks, whose shard happens to be everything: choices are made where the logits are."""

    def gather_to_rank0(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x]


def test_shard_choices_have_the_noise_of_the_chosen_position(worker: Worker) -> None:
    rank = Worker(replace(worker.model, parallel=Alone(0, 2)), worker.pool, 4, 6, PagedCpuBackend())
    plan = step(1, 0, [3, 4, 8, 9, 10], parents=[-1, -1, 1], blocks=[2], **admit(1, seed=6, temperature=2.5))
    scores = rank.execute(plan)
    assert scores.full_logits == {}
    columns = NoiseColumns.of_range(0, VOCAB, CPU)
    for choice, path in zip(scores.choices, ([3, 4], [3, 4, 8], [3, 4, 9], [3, 4, 9, 10]), strict=True):
        noise = gumbel(torch.tensor([6]), torch.tensor([len(path)]), columns)[0]  # of the token behind the path
        assert choice == int((logits_of(worker, path) / 2.5 + noise).argmax())


@needs_triton
@pytest.mark.parametrize("temperature", [0.0, 0.7, 2.5])
def test_kernel_selects_the_same_tokens(worker: Worker, temperature: float) -> None:
    """One rank: without the kernel, sampled rows would be returned whole."""
    plain = Worker(replace(worker.model, parallel=Alone(0, 2)), worker.pool, 4, 6, PagedCpuBackend())
    kernel = Worker(worker.model, worker.pool, 4, 6, PagedCpuBackend(), kernels=True)
    plan = step(1, 0, [3, 4, 8, 9, 10], parents=[-1, -1, 1], blocks=[2], **admit(1, 6, temperature))
    found = kernel.execute(plan)
    assert found.full_logits == {} and found.choices.tolist() == plain.execute(plan).choices.tolist()


def test_kv_rows_are_copied_before_any_is_written(worker: Worker) -> None:
    """The block that a moved row leaves can be another's in the same plan."""
    worker.execute(step(1, 0, [3, 4, 8, 9], parents=[-1, -1], blocks=[2], **admit(1)))
    expected = worker.execute(step(2, 0, [3, 4, 9, 6], blocks=[5], **admit(2))).choices
    # Accept node 1 (9, column 3) into column 2, whose slot a new sequence's block does not touch, while that
    # sequence takes over the slot the row comes from.
    source, target = 2 * BLOCK_TOKENS + 3, 7 * BLOCK_TOKENS + 2
    first_two = [2 * BLOCK_TOKENS, 2 * BLOCK_TOKENS + 1]
    both = Plan(
        Op.STEP,
        0,
        0,
        **admit(0),
        batch_indices=ints([1, 0]),
        num_computed_tokens=ints([3, 0]),
        num_new_tokens=ints([1, 5]),
        num_draft_tokens=ints([0, 0]),
        needs_logits=ints([1, 1]),
        num_kept_blocks=ints([0, 0]),
        num_new_blocks=ints([1, 1]),
        token_ids=ints([6, 20, 21, 22, 23, 24]),
        blocks=ints([7, 2]),
        copy_sources=ints([*first_two, source]),
        copy_targets=ints([7 * BLOCK_TOKENS, 7 * BLOCK_TOKENS + 1, target]),
    )
    choices = worker.execute(both).choices
    assert choices[0] == expected[0]
    assert choices[1] == int(logits_of(worker, [20, 21, 22, 23, 24]).argmax())


def test_block_tables_are_extended_by_new_blocks(worker: Worker) -> None:
    prompt = [(5 * i) % VOCAB for i in range(20)]
    worker.execute(step(1, 0, prompt[:16], blocks=[4], **admit(1)))
    got = worker.execute(step(1, 16, prompt[16:], num_kept_blocks=1, blocks=[9])).choices
    assert worker._tables[1, :2].tolist() == [4, 9]
    again = worker.execute(step(2, 0, prompt, blocks=[5, 3], **admit(2))).choices
    assert got.tolist() == again.tolist()


def test_plan_of_copies_only_copies_and_chooses_nothing(worker: Worker) -> None:
    rows = torch.full((1, worker.model.num_kv_heads, worker.model.head_dim), 3.0)
    for layer in range(worker.model.num_layers):
        worker.pool.write(layer, torch.tensor([20]), rows, rows + 1)
    nothing = worker.execute(Plan(Op.STEP, 0, 0, copy_sources=ints([20]), copy_targets=ints([40])))
    assert nothing.choices.size == 0
    for layer in range(worker.model.num_layers):
        keys, values = worker.pool.read(layer, torch.tensor([40]))
        assert torch.equal(keys, rows) and torch.equal(values, rows + 1)


def test_best_of_shards_takes_the_lowest_id_and_shows_nan() -> None:
    nan = float("nan")
    pairs = torch.tensor(
        [[[1.0, 3.0], [5.0, 9.0], [2.0, 4.0], [nan, 31.0]], [[2.0, 20.0], [5.0, 16.0], [1.0, 17.0], [0.0, 16.0]]]
    ).double()
    chosen = best_of_shards(pairs)
    assert chosen[:3].tolist() == [20, 9, 4]
    assert not 0 <= chosen[3] < VOCAB, "NaN in one shard must not hide behind the other"


def test_padding_of_a_vocabulary_shard_is_never_chosen(model) -> None:
    """A rank's logits may be wider than its tokens."""
    choice = TokenChoice(model, max_running=1, kernels=False)
    choice._num_valid = VOCAB - 4
    logits = torch.zeros(1, VOCAB)
    logits[0, -4:] = 100.0
    assert choice._plain_scores(logits, ints([0]), torch.tensor([1])).shape == (1, VOCAB - 4)

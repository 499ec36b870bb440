"""ContextDrafter: for whom it drafts, and for how many at once."""

import pytest
import torch

from medusa_dist.engine.drafters.context_drafter import ContextDrafter
from medusa_dist.engine.runner.worker import Scores
from medusa_dist.engine.state.sequence import StepResult
from medusa_dist.engine.state.single_sequence import SingleSequence
from medusa_dist.medusa.eagle3.layer import Eagle3, kv_block_bytes
from medusa_dist.medusa.trees.accept import Accepted
from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS
from medusa_dist.ops.attention.paged_cpu import PagedCpuBackend
from medusa_dist.outputs import FinishReason
from medusa_dist.request import Request
from medusa_dist.sampling_params import SamplingParams
from tests.support.tiny_eagle3 import HIDDEN, KNOWN, VOCAB, in_memory

pytestmark = pytest.mark.usefixtures("one_thread")


def drafter(static: tuple[tuple[int, ...], ...] | None = None) -> ContextDrafter:
    file = in_memory("official")
    heads = Eagle3(file, None, torch.float32, torch.device("cpu"))
    return ContextDrafter(heads, file.tensors["embed_tokens.weight"], VOCAB, static)


def result(length: int, row: int, **params: object) -> StepResult:
    """A sequence of so many tokens, whose context is in the blocks from 1 on."""
    request = Request(
        request_id=f"r{row}",
        prompt_ids=tuple(i % VOCAB for i in range(length)),
        params=SamplingParams(**params),
        seed=row,
    )
    sequence = SingleSequence(request, ()).root
    sequence.block_table = list(range(1, 2 + length // BLOCK_TOKENS))
    return StepResult(sequence, Accepted((), (1,)), (), row)


def scores(num_rows: int) -> Scores:
    hidden = torch.randn(num_rows, HIDDEN, generator=torch.Generator().manual_seed(2))
    return Scores(torch.zeros(num_rows).long().numpy(), {}, hidden)


def test_sequences_are_drafted_alike_in_groups_of_any_size() -> None:
    """The cache decides how many contexts are gathered at once: all here, one by one there."""
    results = [result(length, row, temperature=row % 2 * 0.7) for row, length in enumerate((30, 5, 17, 30, 9))]
    made = []
    for num_blocks in (40, 3):
        made.append(drafter())
        cache = made[-1].follow_rows(num_blocks, PagedCpuBackend()).cache
        values = torch.randn(cache.rows[:, :, :, : 3 * BLOCK_TOKENS].shape, generator=torch.Generator().manual_seed(6))
        cache.rows[:, :, :, : 3 * BLOCK_TOKENS] = values
    assert [len(group) for group in made[1]._groups(results)] == [2, 1, 1, 1]
    assert [len(group) for group in made[0]._groups(results)] == [5]
    together, apart = (each.draft(results, scores(5)) for each in made)
    for one, other in zip(together, apart, strict=True):
        assert one is not None and other is not None
        assert one.tokens[0].tolist() == other.tokens[0].tolist()
        torch.testing.assert_close(torch.from_numpy(one.confidences[0]), torch.from_numpy(other.confidences[0]))


def test_finished_and_unwilling_sequences_are_not_drafted_for() -> None:
    each = drafter()
    each.follow_rows(4, PagedCpuBackend())
    results = [result(4, 0), result(4, 1, speculation=False), result(4, 2)]
    results[2].sequence.finish_reason = FinishReason.STOP
    assert [candidates is not None for candidates in each.draft(results, scores(3))] == [True, False, False]
    assert each.draft([], scores(0)) == []


def test_sizes_are_those_of_the_heads() -> None:
    each = drafter()
    assert (each.max_depth, each.top_k) == (5, 10) and KNOWN > 10
    assert (
        each.kv_block_bytes
        == 2 * 2 * 2 * 6 * BLOCK_TOKENS * 4
        == kv_block_bytes(in_memory("official").config, torch.float32)
    )
    assert each.follow_rows(7, PagedCpuBackend()).cache.num_blocks == 7
    assert each.measure(2, torch.float32, num_rounds=1) > 0


def test_a_static_tree_is_drafted_completely() -> None:
    each = drafter(static=((0,), (1,), (0, 3), (0, 3, 2)))
    each.follow_rows(4, PagedCpuBackend())
    (candidates,) = each.draft([result(6, 0)], scores(1))
    assert candidates is not None
    assert candidates.follows is not None
    second = candidates.list_after(0, 0)
    assert candidates.list_after(0, 1) == -1 and candidates.list_after(second, 3) >= 0

"""How the scores of a step become choices, and choices become accepted paths.

Owns the model's own choice for rows that need more than each shard's argmax (filters, penalties, bias, logprobs): they
are judged level by level, each node with its own path. Not here: the walk (medusa/accept.py), the order of the filters
(ops/sampling.py).
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch

from medusa_dist.engine.plan import Ints, Plan
from medusa_dist.engine.sequence import Sequence
from medusa_dist.engine.worker import Scores
from medusa_dist.errors import EngineError
from medusa_dist.medusa.accept import Accepted, Stand, accept
from medusa_dist.ops.noise import NoiseColumns, gumbel
from medusa_dist.ops.sampling import History, adjust, lowest_argmax, token_logprobs
from medusa_dist.request import TokenLogprobs


@dataclass(frozen=True)
class Verdict:
    """What a step decided for one sequence: the accepted path, and one logprob entry per token if asked for."""

    sequence: Sequence
    accepted: Accepted
    logprobs: tuple[TokenLogprobs, ...]
    last_row: int  # wanted row of the deepest accepted node (or the root): what the heads read next


class Chooser:
    """Judges rows on rank 0. eos_ids: tokens that end a sequence (banned while min_tokens is not reached)."""

    def __init__(self, vocab_size: int, eos_ids: tuple[int, ...], device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._eos_ids = eos_ids
        self._columns = NoiseColumns.of_range(0, vocab_size, device)

    def judge(self, plan: Plan, scores: Scores, sequences: Seq[Sequence]) -> list[Verdict]:
        """sequences: those of the plan with wanted scores, in the plan's order."""
        first_rows = _first_rows(plan)

        def choose(stands: list[Stand]) -> list[int]:
            return [self._choose(scores, first_rows[i] + 1 + node, sequences[i], path) for i, node, path in stands]

        walks = accept([sequence.tree for sequence in sequences], choose)
        return [
            Verdict(
                sequence,
                walk,
                self._logprobs(scores, first, sequence, walk),
                int(first) + 1 + walk.last_node,
            )
            for sequence, walk, first in zip(sequences, walks, first_rows, strict=True)
        ]

    def _choose(self, scores: Scores, row: int, sequence: Sequence, path: tuple[int, ...]) -> int:
        logits = scores.whole.get(row)
        token = int(scores.choices[row]) if logits is None else self._choose_whole(logits, sequence, path)
        if not 0 <= token < self._vocab_size:
            raise EngineError(
                f"request {sequence.request.request_id}: the model's logits are not numbers (NaN); try a wider dtype"
            )
        return token

    def _choose_whole(self, logits: torch.Tensor, sequence: Sequence, path: tuple[int, ...]) -> int:
        params, device = sequence.request.params, logits.device
        output = [*sequence.tokens[sequence.num_prompt :], *path]
        history = History(
            torch.tensor(sequence.request.prompt_ids, dtype=torch.int64, device=device),
            torch.tensor(output, dtype=torch.int64, device=device),
        )
        row = adjust(logits, params, history, self._eos_ids)
        if params.temperature > 0.0:
            seeds = torch.tensor([sequence.request.seed], device=device)
            positions = torch.tensor([len(sequence.tokens) + len(path)], device=device)
            row = row + gumbel(seeds, positions, self._columns)[0]
        return int(lowest_argmax(row[None])[1])

    def _logprobs(self, scores: Scores, first: int, sequence: Sequence, walk: Accepted) -> tuple[TokenLogprobs, ...]:
        num_top = sequence.request.params.logprobs
        if num_top is None:
            return ()
        rows = [first, *(first + 1 + node for node in walk.nodes)]
        return tuple(
            token_logprobs(scores.whole[int(row)], token, num_top) for row, token in zip(rows, walk.tokens, strict=True)
        )


def _first_rows(plan: Plan) -> Ints:
    """Wanted row of each wanted sequence's root. [sequences with wanted scores]."""
    counts = (plan.nodes + 1)[plan.wanted == 1]
    firsts: Ints = np.cumsum(counts) - counts
    return firsts

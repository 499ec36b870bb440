"""TokenSelector: turns the scores of a step into selected tokens and accepted paths.

Owns the model's own choice for each row. Not here: tree traversal (medusa/trees/accept.py), the inputs of the typical
rule (typical.py), the order of filters (ops/sampling.py).
Rows that need more than the argmax of each shard (filters, penalties, bias, logprobs) are resolved level by level, each
node with its own path.
"""

from collections.abc import Callable
from collections.abc import Sequence as Seq

import numpy as np
import torch

from medusa_dist.engine.beam.select import select_beams
from medusa_dist.engine.runner.plan import Plan
from medusa_dist.engine.runner.worker import Scores
from medusa_dist.engine.spec.typical import typical_bounds, weights_of
from medusa_dist.engine.state.sequence import Sequence, StepResult
from medusa_dist.errors import EngineError
from medusa_dist.medusa.trees.accept import Accepted, Frontier, Weights, accept, accept_typical
from medusa_dist.ops.arrays import Ints
from medusa_dist.ops.noise import NoiseColumns, gumbel
from medusa_dist.ops.sampling import History, adjust, lowest_argmax, token_logprobs
from medusa_dist.outputs import TokenLogprobs

TreePosition = tuple[
    Sequence, tuple[int, ...]
]  # a node: its sequence, and the tokens selected in this step on the path to it

Choose = Callable[[list[Frontier]], list[int]]


class TokenSelector:
    """Selects tokens on rank 0. eos_ids: tokens that end a sequence (banned until min_tokens is reached)."""

    def __init__(self, vocab_size: int, eos_ids: tuple[int, ...], device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._eos_ids = eos_ids
        self._columns = NoiseColumns.of_range(0, vocab_size, device)

    def select(self, plan: Plan, scores: Scores, sequences: Seq[Sequence]) -> list[StepResult]:
        """sequences: those of the plan that need logits, in the plan's order. Results of beams come last."""
        firsts = list(zip(sequences, _first_rows(plan).tolist(), strict=True))
        beams = [pair for pair in firsts if pair[0].is_beam]
        alone = [pair for pair in firsts if not pair[0].is_beam]
        return self._judge_alone(scores, alone) + select_beams(scores, beams, self._eos_ids)

    def _judge_alone(self, scores: Scores, firsts: list[tuple[Sequence, int]]) -> list[StepResult]:
        """firsts: (sequence, logits row of its root)."""

        def choose(frontiers: list[Frontier]) -> list[int]:
            rows = [firsts[tree][1] + 1 + node for tree, node, _ in frontiers]
            return self._choose(scores, rows, [(firsts[tree][0], path) for tree, _, path in frontiers])

        results = self._walk(scores, firsts, choose)
        return [
            StepResult(
                sequence,
                accepted,
                self._logprobs(scores, first, sequence, accepted),
                first + 1 + accepted.last_node,
            )
            for (sequence, first), accepted in zip(firsts, results, strict=True)
        ]

    def _walk(self, scores: Scores, firsts: list[tuple[Sequence, int]], choose: Choose) -> list[Accepted]:
        """Accepted paths, by the acceptance rule of each request."""
        trees = [sequence.tree for sequence, _ in firsts]
        bounds = [typical_bounds(sequence.request.params) for sequence, _ in firsts]
        lossy = [i for i, pair in enumerate(bounds) if pair is not None]
        if not lossy:
            return accept(trees, choose)

        def weigh(frontiers: list[Frontier]) -> list[Weights]:
            drafted = [list(trees[lossy[tree]].children[node]) for tree, node, _ in frontiers]
            entries = [(firsts[lossy[tree]], node, path) for tree, node, path in frontiers]
            rows = [
                self._adjusted(scores.full_logits[first + 1 + node], (sequence, path))
                for (sequence, first), node, path in entries
            ]
            return weights_of(rows, drafted)

        exact = [i for i, pair in enumerate(bounds) if pair is None]
        accepted = dict(zip(exact, accept([trees[i] for i in exact], _of(exact, choose)), strict=True))
        pairs = [pair for pair in bounds if pair is not None]
        typical = accept_typical([trees[i] for i in lossy], pairs, weigh, _of(lossy, choose))
        accepted |= zip(lossy, typical, strict=True)
        return [accepted[i] for i in range(len(firsts))]

    def _choose(self, scores: Scores, rows: list[int], tree_positions: list[TreePosition]) -> list[int]:
        """The model's choice after each row; all rows are at one level of their trees."""
        chosen = [int(scores.choices[row]) for row in rows]
        open_rows = [i for i, row in enumerate(rows) if row in scores.full_logits]
        if open_rows:
            tokens = self._choose_whole(
                [scores.full_logits[rows[i]] for i in open_rows], [tree_positions[i] for i in open_rows]
            )
            for i, token in zip(open_rows, tokens, strict=True):
                chosen[i] = token
        for token, (sequence, _) in zip(chosen, tree_positions, strict=True):
            if not 0 <= token < self._vocab_size:
                name = sequence.request.request_id
                raise EngineError(f"request {name}: the model's logits are NaN; try a wider dtype")
        return chosen

    def _choose_whole(self, logits: list[torch.Tensor], tree_positions: list[TreePosition]) -> list[int]:
        """Selected tokens from full rows [V] of logits: adjusted one by one, noise and argmax for all together."""
        scores = torch.empty(len(logits), self._vocab_size, dtype=torch.float32, device=logits[0].device)
        for score, row, tree_position in zip(scores, logits, tree_positions, strict=True):
            score.copy_(self._adjusted(row, tree_position))
        sampled = [i for i, (sequence, _) in enumerate(tree_positions) if sequence.request.params.temperature > 0.0]
        if sampled:
            keys = [
                (tree_positions[i][0].request.seed, len(tree_positions[i][0].tokens) + len(tree_positions[i][1]))
                for i in sampled
            ]
            seeds, positions = torch.tensor(keys, dtype=torch.int64, device=scores.device).unbind(1)
            noise = gumbel(seeds, positions, self._columns)
            if len(sampled) == len(tree_positions):
                scores += noise
            else:
                scores[sampled] += noise
        ids: list[int] = lowest_argmax(scores)[1].tolist()
        return ids

    def _adjusted(self, logits: torch.Tensor, tree_position: TreePosition) -> torch.Tensor:
        sequence, path = tree_position
        params = sequence.request.params
        if not params.needs_full_logits:
            return logits / params.temperature if params.temperature > 0.0 else logits
        output = [*sequence.tokens[sequence.num_prompt_tokens :], *path]
        history = History(
            torch.tensor(sequence.request.prompt_ids, dtype=torch.int64, device=logits.device),
            torch.tensor(output, dtype=torch.int64, device=logits.device),
        )
        return adjust(logits, params, history, self._eos_ids, _allowed(tree_position, logits.device))

    def _logprobs(
        self, scores: Scores, first: int, sequence: Sequence, accepted: Accepted
    ) -> tuple[TokenLogprobs, ...]:
        num_top = sequence.request.params.logprobs
        if num_top is None:
            return ()
        rows = [first, *(first + 1 + node for node in accepted.nodes)]
        return tuple(
            token_logprobs(scores.full_logits[int(row)], token, num_top)
            for row, token in zip(rows, accepted.tokens, strict=True)
        )


def _of(indices: list[int], choose: Choose) -> Choose:
    """choose, restricted to some of the trees: tree i of these is tree indices[i] of all."""
    return lambda frontiers: choose([(indices[tree], node, path) for tree, node, path in frontiers])


def _first_rows(plan: Plan) -> Ints:
    """Logits row of the root of each sequence that needs logits. [sequences that need logits]."""
    counts = (plan.num_draft_tokens + 1)[plan.needs_logits == 1]
    firsts: Ints = np.cumsum(counts) - counts
    return firsts


def _allowed(tree_position: TreePosition, device: torch.device) -> torch.Tensor | None:
    """Tokens that the grammar allows next [V]; None without a grammar, and after the end of the text."""
    sequence, path = tree_position
    state = None if sequence.matcher is None else sequence.matcher.state(path)
    if state is None or state.is_over:
        return None
    return torch.from_numpy(state.allowed).to(device)

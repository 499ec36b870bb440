"""Selects the next beams from the scores of a step.

Owns beam log-probabilities: rows, and processors in transformers' order. Not here: the search (medusa/beam/search.py),
what a fork does to KV blocks (group.py), drafts (beam_drafter.py).
Also keeps the results of a level that was verified only in part, from which the drafter continues.
"""

import math
from collections.abc import Sequence as Seq

import torch

from medusa_dist.engine.beam.group import BeamGroup, beam_groups
from medusa_dist.engine.beam.result import BeamResult, Known, Memory
from medusa_dist.engine.runner.worker import Scores
from medusa_dist.engine.state.sequence import Sequence
from medusa_dist.errors import EngineError
from medusa_dist.medusa.beam.beam_tree import BeamPath
from medusa_dist.medusa.beam.search import BeamFrontier, BeamState, BeamTraversal, Ranked, traverse_beams
from medusa_dist.medusa.trees.accept import Accepted
from medusa_dist.medusa.trees.tree import Tree
from medusa_dist.ops.sampling import History, adjust, top_tokens


def select_beams(scores: Scores, beams: Seq[tuple[Sequence, int]], eos_ids: tuple[int, ...]) -> list[BeamResult]:
    """beams: (sequence, logits row of its root), all beams of each request. Returns one result per resulting beam."""
    first_rows = dict(beams)
    groups = beam_groups(first_rows)

    def likeliest(frontiers: list[BeamFrontier]) -> list[Ranked]:
        """One topk for all beams at this level."""
        log_p = _log_probabilities(torch.stack([scores.full_logits[row].float() for row in rows_of(frontiers)]))
        for i, frontier in enumerate(frontiers):
            log_p[i] = _processed(log_p[i], groups[frontier.group], frontier.output, eos_ids)
        values, ids = top_tokens(log_p, max(groups[frontier.group].rules.num_candidates for frontier in frontiers))
        pairs = zip(ids.tolist(), values.tolist(), frontiers, strict=True)
        return [
            list(zip(tokens, row, strict=True))[: groups[frontier.group].rules.num_candidates]
            for tokens, row, frontier in pairs
        ]

    def rows_of(frontiers: list[BeamFrontier]) -> list[int]:
        return [first_rows[groups[frontier.group].beams[frontier.source]] + 1 + frontier.node for frontier in frontiers]

    def rank(frontiers: list[BeamFrontier]) -> list[Ranked]:
        ranked = likeliest(frontiers)
        for frontier, row in zip(frontiers, ranked, strict=True):
            if any(math.isnan(value) for _, value in row):
                name = groups[frontier.group].request.request_id
                raise EngineError(f"request {name}: the model's logits are NaN; try a wider dtype")
        return ranked

    states = [BeamState(group.search, group.rules, tuple(beam.tree for beam in group.beams)) for group in groups]
    traversals = traverse_beams(states, rank)
    memories = [_kept(group.memory, traversal) for group, traversal in zip(groups, traversals, strict=True)]
    verified = [
        one for index, traversal in enumerate(traversals) for one in _verified(traversal, states[index].trees, index)
    ]
    if verified:
        frontiers = [frontier for _, frontier in verified]
        hidden = scores.hidden[torch.tensor(rows_of(frontiers), device=scores.hidden.device)]
        for (key, frontier), ranked, read in zip(verified, likeliest(frontiers), hidden, strict=True):
            memories[frontier.group][key] = Known(ranked, read)
    each = zip(groups, traversals, memories, strict=True)
    return [verdict for group, traversal, memory in each for verdict in _verdicts(group, traversal, first_rows, memory)]


def _verified(traversal: BeamTraversal, trees: Seq[Tree], group: int) -> list[tuple[BeamPath, BeamFrontier]]:
    """The verified nodes where a beam continues, and their verified descendants: the next step may need them again."""
    made: list[tuple[BeamPath, BeamFrontier]] = []
    # no forks once the search is over
    for beam, (fork, output) in enumerate(zip(traversal.forks, traversal.search.outputs, strict=False)):
        open_nodes: list[tuple[int, tuple[int, ...]]] = [] if fork.ahead is None else [(fork.ahead, ())]
        while open_nodes:
            node, path = open_nodes.pop()
            made.append(((beam, path), BeamFrontier(group, fork.source, node, (*output, *path))))
            children = trees[fork.source].children.get(node, {})
            open_nodes += [(child, (*path, token)) for token, child in children.items()]
    return made


def _kept(before: Memory, traversal: BeamTraversal) -> Memory:
    """Results of earlier steps that are still on an active beam."""
    if not before or traversal.search.is_over:
        return {}
    made: Memory = {}
    for beam, (source, tokens) in enumerate(traversal.chosen[-1]):
        for (owner, path), known in before.items():
            if owner == source and path[: len(tokens)] == tokens:
                made[beam, path[len(tokens) :]] = known
    return made


def _log_probabilities(rows: torch.Tensor) -> torch.Tensor:
    """log softmax of each row [R, V] float32. The normaliser is summed in float64, so that it does not depend on the
    number of rows: fused float32 kernels may differ in the last bit."""
    return rows - torch.logsumexp(rows.double(), dim=-1, keepdim=True).float()


def _processed(
    log_p: torch.Tensor, group: BeamGroup, output: tuple[int, ...], eos_ids: tuple[int, ...]
) -> torch.Tensor:
    """transformers applies its processors to log-probabilities [V] and does not normalise them again."""
    params = group.request.params
    if not (params.logit_bias or params.min_tokens > len(output) or params.repetition_penalty != 1.0):
        return log_p
    prompt, known = (
        torch.tensor(ids, dtype=torch.int64, device=log_p.device) for ids in (group.request.prompt_ids, output)
    )
    return adjust(log_p, params, History(prompt, known), eos_ids)


def _verdicts(
    group: BeamGroup, traversal: BeamTraversal, first_rows: dict[Sequence, int], memory: Memory
) -> list[BeamResult]:
    """Which sequence continues which beam. A beam's first continuation stays in its sequence, so that nothing is
    copied; the others take free sequences."""
    members, used = [*group.beams, *group.idle], [*traversal.used, *((),) * len(group.idle)]
    used_by = {member: nodes for member, nodes in zip(members, used, strict=True)}

    def result_of(member: Sequence, source: Sequence, accepted: Accepted) -> BeamResult:
        row = first_rows[source] + 1 + accepted.last_node
        return BeamResult(member, accepted, (), row, source, traversal, used_by[member], memory)

    if traversal.search.is_over:
        return [result_of(beam, beam, Accepted((), ())) for beam in group.beams]
    parents = {fork.source for fork in traversal.forks}
    free = [member for i, member in enumerate(members) if i not in parents]
    made = []
    for fork, output in zip(traversal.forks, traversal.search.outputs, strict=True):
        source = group.beams[fork.source]
        member = free.pop(0) if fork.source not in parents else source
        parents.discard(fork.source)
        made.append(result_of(member, source, Accepted(fork.nodes, output[len(output) - traversal.num_levels :])))
    return made

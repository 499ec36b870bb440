"""How the scores of a step become the next beams.

Owns log-probabilities for beams: which row is asked, with which processors, in transformers' order; and what is
remembered of a level that was verified in part. Not here: the search (medusa/beam/search.py), what a fork does to KV
blocks (beam.py), what is drafted from memory (beam_drafter.py).
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
    """beams: (sequence, wanted row of its root), all beams of each request among them. One verdict per beam after."""
    first_rows = dict(beams)
    groups = beam_groups(first_rows)

    def likeliest(stands: list[BeamFrontier]) -> list[Ranked]:
        """One topk for all beams that stand at this level."""
        log_p = _log_probabilities(torch.stack([scores.full_logits[row].float() for row in rows_of(stands)]))
        for i, stand in enumerate(stands):
            log_p[i] = _processed(log_p[i], groups[stand.group], stand.output, eos_ids)
        values, ids = top_tokens(log_p, max(groups[stand.group].rules.num_candidates for stand in stands))
        pairs = zip(ids.tolist(), values.tolist(), stands, strict=True)
        return [
            list(zip(tokens, row, strict=True))[: groups[stand.group].rules.num_candidates]
            for tokens, row, stand in pairs
        ]

    def rows_of(stands: list[BeamFrontier]) -> list[int]:
        return [first_rows[groups[stand.group].beams[stand.source]] + 1 + stand.node for stand in stands]

    def rank(stands: list[BeamFrontier]) -> list[Ranked]:
        ranked = likeliest(stands)
        for stand, row in zip(stands, ranked, strict=True):
            if any(math.isnan(value) for _, value in row):
                name = groups[stand.group].request.request_id
                raise EngineError(f"request {name}: the model's logits are not numbers (NaN); try a wider dtype")
        return ranked

    states = [BeamState(group.search, group.rules, tuple(beam.tree for beam in group.beams)) for group in groups]
    walks = traverse_beams(states, rank)
    memories = [_kept(group.memory, walk) for group, walk in zip(groups, walks, strict=True)]
    found = [one for index, walk in enumerate(walks) for one in _verified(walk, states[index].trees, index)]
    if found:
        stands = [stand for _, stand in found]
        hidden = scores.hidden[torch.tensor(rows_of(stands), device=scores.hidden.device)]
        for (place, stand), ranked, read in zip(found, likeliest(stands), hidden, strict=True):
            memories[stand.group][place] = Known(ranked, read)
    each = zip(groups, walks, memories, strict=True)
    return [verdict for group, walk, memory in each for verdict in _verdicts(group, walk, first_rows, memory)]


def _verified(walk: BeamTraversal, trees: Seq[Tree], group: int) -> list[tuple[BeamPath, BeamFrontier]]:
    """The verified nodes at which a beam goes on, and those behind them: the next step may ask for them again."""
    made: list[tuple[BeamPath, BeamFrontier]] = []
    for beam, (fork, output) in enumerate(zip(walk.forks, walk.search.outputs, strict=False)):  # no forks: it is over
        open_nodes: list[tuple[int, tuple[int, ...]]] = [] if fork.ahead is None else [(fork.ahead, ())]
        while open_nodes:
            node, path = open_nodes.pop()
            made.append(((beam, path), BeamFrontier(group, fork.source, node, (*output, *path))))
            children = trees[fork.source].children.get(node, {})
            open_nodes += [(child, (*path, token)) for token, child in children.items()]
    return made


def _kept(before: Memory, walk: BeamTraversal) -> Memory:
    """What is remembered from earlier steps and still lies on a beam that goes on."""
    if not before or walk.search.is_over:
        return {}
    made: Memory = {}
    for beam, (source, tokens) in enumerate(walk.chosen[-1]):
        for (owner, path), known in before.items():
            if owner == source and path[: len(tokens)] == tokens:
                made[beam, path[len(tokens) :]] = known
    return made


def _log_probabilities(rows: torch.Tensor) -> torch.Tensor:
    """log softmax of each row [R, V] float32. The normaliser is summed in float64, so that it does not depend on how
    many rows there are: fused float32 kernels may differ in the last bit."""
    return rows - torch.logsumexp(rows.double(), dim=-1, keepdim=True).float()


def _processed(
    log_p: torch.Tensor, group: BeamGroup, output: tuple[int, ...], eos_ids: tuple[int, ...]
) -> torch.Tensor:
    """transformers applies its processors to log-probabilities [V], and does not normalise them again."""
    params = group.request.params
    if not (params.logit_bias or params.min_tokens > len(output) or params.repetition_penalty != 1.0):
        return log_p
    prompt, known = (
        torch.tensor(ids, dtype=torch.int64, device=log_p.device) for ids in (group.request.prompt_ids, output)
    )
    return adjust(log_p, params, History(prompt, known), eos_ids)


def _verdicts(
    group: BeamGroup, walk: BeamTraversal, first_rows: dict[Sequence, int], memory: Memory
) -> list[BeamResult]:
    """Who goes on as what. A beam's first continuation takes its place, so it need not move; others take free ones."""
    places, used = [*group.beams, *group.idle], [*walk.used, *((),) * len(group.idle)]
    of_place = {place: nodes for place, nodes in zip(places, used, strict=True)}

    def verdict(place: Sequence, source: Sequence, accepted: Accepted) -> BeamResult:
        row = first_rows[source] + 1 + accepted.last_node
        return BeamResult(place, accepted, (), row, source, walk, of_place[place], memory)

    if walk.search.is_over:
        return [verdict(beam, beam, Accepted((), ())) for beam in group.beams]
    parents = {fork.source for fork in walk.forks}
    free = [place for i, place in enumerate(places) if i not in parents]
    made = []
    for fork, output in zip(walk.forks, walk.search.outputs, strict=True):
        source = group.beams[fork.source]
        place = free.pop(0) if fork.source not in parents else source
        parents.discard(fork.source)
        made.append(verdict(place, source, Accepted(fork.nodes, output[len(output) - walk.num_levels :])))
    return made

"""Traces one request step by step: draft tokens, the model's choices, accepted tokens.

Owns the tracing, through the engine's own step. Not here: how it is drawn (explain.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from medusa_dist.config import HEADS, SpeculationConfig
from medusa_dist.engine.engine import Engine
from medusa_dist.engine.spec.tree_policy import TreePolicy
from medusa_dist.engine.state.sequence import StepResult
from medusa_dist.heads_tools.record_drafts import watched_engine
from medusa_dist.medusa.trees.replay import node_chances
from medusa_dist.medusa.trees.tree import Tree, check_paths
from medusa_dist.request import Request
from medusa_dist.sampling_params import SamplingParams


@dataclass(frozen=True)
class TracedStep:
    """tree: the draft tokens below the root. chances[i]: of node i, given that its parent is accepted. nodes: the
    accepted ones. tokens: emitted by the step: the accepted tokens, then the model's own choice. drafters[i]: who
    guessed node i."""

    root: int
    tree: Tree
    chances: tuple[float, ...]
    nodes: tuple[int, ...]
    tokens: tuple[int, ...]
    drafters: tuple[tuple[str, ...], ...]

    @property
    def values(self) -> list[float]:
        """Probability that each node is accepted; the sum is the expected number of accepted drafts."""
        values: list[float] = []
        for parent, chance in zip(self.tree.parents, self.chances, strict=True):
            values.append(chance * (1.0 if parent < 0 else values[parent]))
        return values


class _Watching:
    """Serves as configured, and keeps the last step's result with its tree."""

    def __init__(self, config: SpeculationConfig) -> None:
        self._policy = TreePolicy(config)
        self.counts = self._policy.counts
        self.measured_cost = self._policy.measured_cost
        self.trees = self._policy.trees
        self.observe = self._policy.observe
        self.observe_drafting = self._policy.observe_drafting
        self.select_for_drafting = self._policy.select_for_drafting
        self.is_paused = self._policy.is_paused
        self.last: TracedStep | None = None

    def learn(self, results: Sequence[StepResult]) -> None:
        """Look before the calibration changes and the tree is dropped."""
        for result in results:
            sequence, accepted = result.sequence, result.accepted
            self.last = TracedStep(
                root=sequence.tokens[-1],
                tree=sequence.tree,
                chances=tuple(node_chances(sequence.tree, sequence.tree_values[: len(sequence.tree)])),
                nodes=accepted.nodes,
                tokens=accepted.tokens,
                drafters=tuple(sequence.tree_drafters[: len(sequence.tree)]),
            )
        self._policy.learn(results)


def watch(
    engine: Engine, prompt: Sequence[int], params: SamplingParams, config: SpeculationConfig
) -> Iterator[TracedStep]:
    """The steps of one answer. Every step verifies as many drafts as config allows, whether they pay or not.

    Raises ConfigError for a static tree that these heads cannot draft, RequestError for an invalid prompt.
    """
    if config.tree is not None and HEADS in engine.drafters:
        check_paths(config.tree, engine.drafters[HEADS].max_depth, engine.drafters[HEADS].top_k)
    watching = _Watching(config)
    watched = watched_engine(engine, watching)
    watched.submit(Request(request_id="watched", prompt_ids=tuple(prompt), params=params, seed=params.seed or 0))
    try:
        while watched.has_work:
            watching.last = None
            watched.step()
            if watching.last is not None:
                yield watching.last
    finally:
        watched.abort("watched")

"""Heads for beam search that know what comes: an oracle over a search's own trace."""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from medusa_dist.engine.engine import Engine
from medusa_dist.engine.runner.worker import Scores
from medusa_dist.engine.state.sequence import Sequence, StepResult
from medusa_dist.medusa.beam import search as beam
from medusa_dist.medusa.trees.candidates import Candidates
from medusa_dist.outputs import Output
from medusa_dist.request import Request
from tests.support.tiny_engine import VOCAB

Trace = set[tuple[int, ...]]  # outputs of all beams of a search, at all lengths


@contextmanager
def traced() -> Iterator[Trace]:
    """Collect the outputs that `advance` lets go on."""
    trace: Trace = set()
    real = beam.advance

    def advance(search, rules, ranked):
        after, parents = real(search, rules, ranked)
        trace.update(after.outputs)
        return after, parents

    beam.advance = advance
    try:
        yield trace
    finally:
        beam.advance = real


class BeamOracle:
    """Stands in for the heads: of a beam's true continuations it drafts each token with chance `skill`."""

    num_heads, num_guesses = 4, 6

    def __init__(self, traces: dict[str, Trace], skill: float, seed: int = 5) -> None:
        self.skill, self.rng = skill, random.Random(seed)
        self.coming: dict[str, dict[tuple[int, ...], list[set[int]]]] = {}
        for name, trace in traces.items():
            table: dict = defaultdict(lambda: [set() for _ in range(self.num_heads)])
            for output in trace:
                for depth in range(1, min(self.num_heads, len(output)) + 1):
                    table[output[: len(output) - depth]][depth - 1].add(output[-1])
            self.coming[name] = table

    def draft(self, verdicts: list[StepResult], _scores: Scores) -> list[Candidates | None]:
        made: dict[Sequence, Candidates] = {}
        for sequence in (v.sequence for v in verdicts if v.sequence.finish_reason is None):
            if sequence.request.request_id not in self.coming or not sequence.request.params.speculation:
                continue
            output = tuple(sequence.tokens[sequence.num_prompt_tokens :])
            lists = [self._guesses(tokens) for tokens in self.coming[sequence.request.request_id][output]]
            chances = np.linspace(0.95, 0.6, self.num_guesses, dtype=np.float32)
            made[sequence] = Candidates(np.array(lists), np.tile(chances, (self.num_heads, 1)))
        return [made.get(v.sequence) for v in verdicts]

    def _guesses(self, true: set[int]) -> list[int]:
        guesses = [token for token in sorted(true) if self.rng.random() < self.skill][: self.num_guesses]
        others = [token for token in range(VOCAB) if token not in guesses]
        guesses += self.rng.sample(others, self.num_guesses - len(guesses))
        self.rng.shuffle(guesses)
        return guesses


def search(
    engine: Engine,
    requests: list[Request],
    after_step: Callable[[Engine], None] = lambda _: None,
    known: dict[str, tuple[int, ...]] | None = None,
) -> dict[str, Output]:
    """Run all requests to their ends, checking the engine's state after each step."""
    outputs: dict[str, Output] = {}
    for request in requests:
        engine.submit(request, (known or {}).get(request.request_id, ()))
    for _ in range(3000):
        if not engine.has_work:
            break
        for output in engine.step():
            before = outputs.get(output.request_id)
            outputs[output.request_id] = output if before is None else before.merged(output)
        engine.scheduler.check_integrity()
        after_step(engine)
    assert outputs.keys() == {request.request_id for request in requests}
    assert engine.scheduler.pool.num_free == engine.scheduler.pool.num_usable
    return outputs

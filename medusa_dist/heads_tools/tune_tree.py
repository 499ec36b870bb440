"""`medusa-dist tune-tree`: finds the fastest trees for these heads on this machine.

Owns the measurement and its result. Not here: recording (record_drafts.py), the arithmetic (medusa/trees/tune.py), what
is printed and written (tune_report.py).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from medusa_dist.config import SpeculationConfig
from medusa_dist.engine.engine import Engine
from medusa_dist.engine.spec.tree_policy import TreePolicy
from medusa_dist.errors import ConfigError, EngineError
from medusa_dist.heads_tools.record_drafts import engine_with_heads, record, watched_engine
from medusa_dist.llm import LLM
from medusa_dist.medusa.trees.replay import Path, best_static, fit, path_chances, static_curve
from medusa_dist.medusa.trees.tune import Point, budgeted, fastest, fixed, plain
from medusa_dist.request import Request
from medusa_dist.sampling_params import SamplingParams
from medusa_dist.tools.progress import ProgressText

MAX_NODES = 63
CAPS = (1, 2, 3, 5, 7, 10, 15, 23, 31, 47, 63)  # values of max_nodes that are tried
_TIMED_ROUNDS = 2


@dataclass(frozen=True)
class Choice:
    """The best tree of one kind for one batch size. measured: its speed-up over no drafts, in the engine."""

    point: Point
    gain: float
    measured: float | None = None
    tree: tuple[Path, ...] = ()  # of a static tree


@dataclass(frozen=True)
class BatchResult:
    """One batch size: without drafts, with static trees, and with dynamic trees by their cap."""

    plain: Point
    static: list[Point]  # [n - 1]
    dynamic: list[Point]  # as CAPS
    best_static: Choice
    best_dynamic: Choice


@dataclass(frozen=True)
class Tuning:
    """All results; batches ascending."""

    model: str
    dtype: str
    device: str
    places: int
    batches: list[BatchResult]


def tune_tree(
    llm: LLM,
    prompts: Sequence[tuple[Sequence[int], str]],
    batches: Sequence[int],
    params: SamplingParams,
    report: Callable[[str], None],
) -> Tuning:
    """Record, replay, choose, and time the choices. Raises ConfigError without heads or a cost curve."""
    engine = engine_with_heads(llm)
    cost = engine.policy.measured_cost
    if cost is None:
        raise ConfigError("tune-tree: the config does not allow a step of several rows; raise max_batched_tokens")
    answers = record(engine, prompts, params, report)
    report("replaying")
    calibration = fit(answers)
    static, chances = static_curve(answers, MAX_NODES), path_chances(answers)
    results = []
    for number, batch in enumerate(sorted(batches)):
        report(ProgressText("trying trees", number, len(batches), "batch sizes", f"now {batch}"))
        dynamic = [budgeted(answers, calibration, cost, batch, cap) for cap in CAPS]
        points = fixed(static, batch, cost)
        base, best = plain(batch, cost), fastest(points)
        tree = tuple(best_static(chances, best.nodes))
        cap = fastest(dynamic)
        timer = _Timer(engine, [ids for ids, _ in prompts], batch, params)
        as_static = TreePolicy(SpeculationConfig(mode="static", tree=tree), cost)
        as_dynamic = TreePolicy(SpeculationConfig(mode="auto", max_nodes=cap.nodes), cost)
        results.append(
            BatchResult(
                plain=base,
                static=points,
                dynamic=dynamic,
                best_static=Choice(best, best.tokens_per_s / base.tokens_per_s, timer.gain(as_static), tree),
                best_dynamic=Choice(cap, cap.tokens_per_s / base.tokens_per_s, timer.gain(as_dynamic)),
            )
        )
    num_positions = sum(len(answer.guesses) for answer in answers)
    return Tuning(llm.config.model, llm.facts["dtype"], llm.facts["device"], num_positions, results)


class _Timer:
    """Times the same prompts with and without drafts, alternating, a whole batch at a time."""

    def __init__(self, engine: Engine, prompts: list[Sequence[int]], batch: int, params: SamplingParams) -> None:
        self._engine = engine
        self._params = params
        rounds = [prompts[i : i + batch] for i in range(0, len(prompts) - batch + 1, batch)]
        self._rounds = rounds[: max(_TIMED_ROUNDS, 4 // batch)]

    def gain(self, speculation: TreePolicy) -> float | None:
        """Seconds without drafts over seconds with; None if there are too few prompts for one batch."""
        seconds = {True: 0.0, False: 0.0}
        for turn, prompts in enumerate(self._rounds):
            tokens = {}
            for drafting in (True, False) if turn % 2 == 0 else (False, True):
                begin = time.perf_counter()
                tokens[drafting] = self._run(speculation, prompts, drafting)
                seconds[drafting] += time.perf_counter() - begin
            if tokens[True] != tokens[False]:
                raise EngineError("speculation changed the tokens; this is a bug, please report it")
        return seconds[False] / seconds[True] if self._rounds else None

    def _run(self, speculation: TreePolicy, prompts: list[Sequence[int]], drafting: bool) -> list[list[int]]:
        self._engine.scheduler.pool.reset_prefix_cache()  # else the second run would hit the first one's prompts
        watched = watched_engine(self._engine, speculation)
        tokens: list[list[int]] = [[] for _ in prompts]
        # All answers have the same length, so that the batch is full from start to end.
        params = replace(self._params, speculation=drafting, ignore_eos=True)
        for i, ids in enumerate(prompts):
            watched.submit(Request(request_id=str(i), prompt_ids=tuple(ids), params=params, seed=i))
        while watched.has_work:
            for output in watched.step():
                tokens[int(output.request_id)] += output.token_ids
        return tokens

"""`medusa-dist bench --null-model`: the engine's own time per step, with a model that does nothing.

Owns what is counted, and the table. Not here: the model and the engine around it (null_model.py).
Counted are steps in which all sequences decode, each with a full tree. The report has the first decile and the median
of all steps of all runs: other load on the machine only adds time.
"""

import gc
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from medusa_dist.bench.machine import machine
from medusa_dist.bench.null_model import VOCAB, null_engine
from medusa_dist.engine.engine import Engine
from medusa_dist.engine.steps.record import LoggedStep
from medusa_dist.request import Request
from medusa_dist.sampling_params import SamplingParams
from medusa_dist.tools.progress import ProgressText

_PROMPT = 512  # tokens
_WARM_UP = 24  # steps that are not counted
_MODEL = "forward"  # the phase that is not the engine's


@dataclass(frozen=True)
class NullSetting:
    """batches, nodes: sequences of a step, and draft tokens of each. steps: counted in each run."""

    batches: Sequence[int]
    nodes: int
    runs: int
    steps: int


@dataclass(frozen=True)
class NullRow:
    """Milliseconds of a step of `batch` sequences. quiet_ms, median_ms: first decile and median of all steps, without
    the model's part; phase_ms: first decile of each phase."""

    batch: int
    nodes: int
    tokens_per_step: float  # per sequence
    quiet_ms: float
    median_ms: float
    phase_ms: dict[str, float]


@dataclass(frozen=True)
class NullReport:
    """All that is needed to quote the numbers."""

    machine: dict[str, Any]
    prompt_tokens: int
    runs: int
    steps: int
    rows: list[NullRow]


def null_bench(setting: NullSetting, report: Callable[[str], None]) -> NullReport:
    """Measure all batch sizes. report: called with the current activity."""
    rows = [_row(setting, batch, report) for batch in setting.batches]
    where = null_engine(1, 1, 32).ranks.worker.model.device
    return NullReport(machine(where), _PROMPT, setting.runs, setting.steps, rows)


def _row(setting: NullSetting, batch: int, report: Callable[[str], None]) -> NullRow:
    most = (1 + setting.nodes) * (setting.steps + 2 * _WARM_UP)  # tokens; more than can be accepted
    engine = null_engine(batch, setting.nodes, _PROMPT + most)
    steps: list[LoggedStep] = []
    for number in range(setting.runs):
        report(ProgressText(f"{batch} sequences of {setting.nodes} nodes", number, setting.runs, "runs"))
        steps += _run(engine, batch, batch * (1 + setting.nodes), setting.steps + _WARM_UP, most)[_WARM_UP:]
    totals = [sum(seconds for phase, seconds in step.seconds.items() if phase != _MODEL) for step in steps]
    num_tokens = sum(len(tree.tokens) for step in steps for tree in step.trees)
    return NullRow(
        batch,
        setting.nodes,
        round(num_tokens / (batch * len(steps)), 2),
        round(1e3 * _quiet(totals), 3),
        round(1e3 * statistics.median(totals), 3),
        {phase: round(1e3 * _quiet([step.seconds[phase] for step in steps]), 3) for phase in steps[0].seconds},
    )


def _quiet(seconds: list[float]) -> float:
    """The first decile: other load on the machine only adds time."""
    return sorted(seconds)[len(seconds) // 10]


def _run(engine: Engine, batch: int, num_rows: int, num_steps: int, most: int) -> list[LoggedStep]:
    """So many steps of num_rows rows, of requests that go on for at most `most` tokens; others are not counted."""
    steps: list[LoggedStep] = []
    engine.recorder.observers.append(steps.append)
    gc.collect()
    params = SamplingParams(max_tokens=most, temperature=0.0, ignore_eos=True)
    for index in range(batch):
        prompt = tuple((index + 7 * place) % VOCAB for place in range(_PROMPT))
        engine.submit(Request(request_id=str(index), prompt_ids=prompt, params=params, seed=index))
    while len(steps) < num_steps:
        assert engine.has_work, "trees were smaller than expected"
        engine.step()
        if steps[-1].num_rows != num_rows:
            steps.pop()
    for index in range(batch):
        engine.abort(str(index))
    engine.recorder.observers.clear()
    return steps


def null_json(report: NullReport) -> str:
    """The report as JSON."""
    return json.dumps(asdict(report), indent=2)


def null_table(report: NullReport) -> Table:
    """The report as a table."""
    names = list(report.rows[0].phase_ms)
    about = report.machine
    table = Table(title=f"Milliseconds of a step without a model; {about['cpu']}, Python {about['python']}")
    table.title_justify = "left"
    for name in ("sequences", "nodes each", "tokens/step", "first decile", "median", *names):
        table.add_column(name, justify="right")
    for row in report.rows:
        parts = (f"{row.phase_ms[name]:.3f}" for name in names)
        totals = f"{row.quiet_ms:.3f}", f"{row.median_ms:.3f}"
        table.add_row(str(row.batch), str(row.nodes), f"{row.tokens_per_step:.2f}", *totals, *parts)
    table.caption = (
        f"{report.runs} runs of {report.steps} steps; first decile and median of all, without `{_MODEL}`, which stands "
        "for the model's pass. Phases: first deciles."
    )
    return table

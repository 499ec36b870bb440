"""`medusa-dist bench`: what speculation is worth on this machine, measured side by side.

Owns the measurement and its report. Not here: decoding (llm.py).
One engine, one process: the same prompts are decoded with and without drafts, alternating, so that load on the machine
hits both alike; a pair whose tokens differ is an error, since exactness is the promise. The baseline is our own engine
with its lone rows padded like the others. Ratios are per pair; the interval is a bootstrap over pairs.
"""

import hashlib
import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from medusa_dist.errors import ConfigError, EngineError
from medusa_dist.llm import LLM, LocalBackend, RequestOutput
from medusa_dist.request import SamplingParams

PROMPTS = Path(__file__).parents[1] / "data" / "bench_prompts.txt"
_BOOTSTRAP_ROUNDS = 2000


@dataclass(frozen=True)
class Side:
    """One side of the comparison at one batch size; totals over all pairs."""

    tokens_per_s: float
    tokens_per_step: float  # per sequence: 1 without drafts
    ms_per_step: float
    phase_shares: dict[str, float]  # of the step's time: schedule, verify, accept, emit, draft


@dataclass(frozen=True)
class Row:
    """One batch size: both sides, and the speed-up with its 95 % interval."""

    batch: int
    pairs: int
    on: Side
    off: Side
    speedup: float
    low: float
    high: float


@dataclass(frozen=True)
class Report:
    """All that is needed to quote the numbers."""

    machine: dict[str, Any]
    model: str
    dtype: str
    temperature: float
    max_tokens: int
    prompts: str
    prompts_sha256: str
    rows: list[Row]
    step_cost_ms: dict[int, float]
    roof_share: float | None  # of a one-sequence step: weight bytes / measured read bandwidth / step time


def bench(
    llm: LLM, batches: Sequence[int], pairs: int, params: SamplingParams, prompts: Path, report: Callable[[str], None]
) -> Report:
    """Measure all batch sizes. Raises EngineError if any pair's tokens differ, ConfigError for an unfit prompt file."""
    texts = [line for line in prompts.read_text().splitlines() if line.strip()]
    if len(texts) < max(batches):
        raise ConfigError(f"{prompts} has {len(texts)} prompts, a batch of {max(batches)} needs as many")
    has_template = bool(getattr(llm.tokenizer, "chat_template", None))
    ids = [
        llm.chat_ids([{"role": "user", "content": t}]) if has_template else llm.tokenizer(t)["input_ids"] for t in texts
    ]
    meter = _Meter(llm, params)
    rows = []
    for batch in batches:
        report(f"batch {batch}: {pairs} pairs")
        rows.append(_row(meter, ids, batch, pairs))
    cost = meter.engine.speculation.cost
    lone = next((row.off.ms_per_step for row in rows if row.batch == 1), None)
    roof_s = llm.facts["weight_bytes"] / read_bandwidth() if torch.device(llm.facts["device"]).type == "cpu" else None
    return Report(
        machine={
            "cpu": _cpu_name(),
            "threads": torch.get_num_threads(),
            "device": llm.facts["device"],
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        model=llm.config.model,
        dtype=llm.config.dtype,
        temperature=params.temperature,
        max_tokens=params.max_tokens or 0,
        prompts=prompts.name,
        prompts_sha256=hashlib.sha256(prompts.read_bytes()).hexdigest(),
        rows=rows,
        step_cost_ms={}
        if cost is None
        else {n: round(1e3 * s, 2) for n, s in zip(cost.rows, cost.seconds, strict=True)},
        roof_share=None if lone is None or roof_s is None else round(1e3 * roof_s / lone, 3),
    )


@dataclass
class _Run:
    seconds: float
    outputs: list[RequestOutput]
    num_steps: int
    phases: dict[str, float]


class _Meter:
    """Runs one side and reads the engine's own clock."""

    def __init__(self, llm: LLM, params: SamplingParams) -> None:
        backend = llm._backend
        if not isinstance(backend, LocalBackend):
            raise ConfigError("bench measures one process; use tensor_parallel_size 1")
        self.engine = backend.engine
        self._llm = llm
        self._params = params

    def run(self, ids: list[list[int]], speculation: bool) -> _Run:
        """Decode the prompts together, with or without drafts; prefill is in the time of both."""
        # Each prompt its own seed, the same on both sides.
        params = [replace(self._params, seed=i, speculation=speculation) for i, _ in enumerate(ids)]
        self.engine.scheduler.pool.forget_idle()  # else the second of a pair would find the first one's prompts
        before, steps = dict(self.engine.phase_seconds), self.engine.stats().num_steps
        begin = time.perf_counter()
        outputs = self._llm.generate(ids, params)
        seconds = time.perf_counter() - begin
        phases = {k: v - before.get(k, 0.0) for k, v in self.engine.phase_seconds.items()}
        return _Run(seconds, outputs, self.engine.stats().num_steps - steps, phases)


def _row(meter: _Meter, ids: list[list[int]], batch: int, pairs: int) -> Row:
    sides: dict[bool, list[_Run]] = {True: [], False: []}
    meter.run(ids[:batch], True)  # kernels and the policy's averages warm up
    for pair in range(pairs):
        chosen = [ids[(pair * batch + i) % len(ids)] for i in range(batch)]
        for speculation in (True, False) if pair % 2 == 0 else (False, True):
            sides[speculation].append(meter.run(chosen, speculation))
        on, off = sides[True][-1], sides[False][-1]
        if [o.token_ids for o in on.outputs] != [o.token_ids for o in off.outputs]:
            raise EngineError(
                f"batch {batch}, pair {pair}: speculation changed the tokens; this is a bug, please report it"
            )
    ratios = [off.seconds / on.seconds for on, off in zip(sides[True], sides[False], strict=True)]
    low, high = bootstrap_interval(ratios)
    return Row(batch, pairs, _side(sides[True]), _side(sides[False]), statistics.geometric_mean(ratios), low, high)


def _side(runs: list[_Run]) -> Side:
    outputs = [output for run in runs for output in run.outputs]
    tokens, seconds = sum(len(o.token_ids) for o in outputs), sum(run.seconds for run in runs)
    phases: dict[str, float] = {}
    for run in runs:
        for name, value in run.phases.items():
            phases[name] = phases.get(name, 0.0) + value
    total = sum(phases.values())
    return Side(
        tokens_per_s=round(tokens / seconds, 2),
        tokens_per_step=round(tokens / sum(o.stats.num_steps for o in outputs), 3),
        ms_per_step=round(1e3 * seconds / sum(run.num_steps for run in runs), 2),
        phase_shares={name: round(value / total, 4) for name, value in phases.items()},
    )


def bootstrap_interval(ratios: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % interval of the geometric mean, by resampling pairs."""
    rng = random.Random(seed)
    means = sorted(statistics.geometric_mean(rng.choices(ratios, k=len(ratios))) for _ in range(_BOOTSTRAP_ROUNDS))
    return means[int(0.025 * _BOOTSTRAP_ROUNDS)], means[int(0.975 * _BOOTSTRAP_ROUNDS) - 1]


def read_bandwidth(num_bytes: int = 1 << 29) -> float:
    """Bytes per second that this process can read from memory: the best of a few sums over a large array."""
    data = torch.ones(num_bytes // 4, dtype=torch.float32)
    best = float("inf")
    for _ in range(4):
        begin = time.perf_counter()
        data.sum()
        best = min(best, time.perf_counter() - begin)
    return num_bytes / best


def as_json(report: Report) -> str:
    """The report for machines."""
    return json.dumps(asdict(report), indent=2)


def as_table(report: Report) -> Table:
    """The report for people."""
    what = f"{report.model}, {report.dtype}, temperature {report.temperature:g}, {report.max_tokens} tokens"
    where = f"{report.machine['cpu']}, {report.machine['threads']} threads, {report.machine['device']}"
    table = Table(title=f"{what}; {where}")
    for name in (
        "batch",
        "tokens/step",
        "ms/step on",
        "off",
        "tokens/s on",
        "off",
        "speed-up",
        "95 %",
        "outside forward",
    ):
        table.add_column(name, justify="right")
    for row in report.rows:
        outside = 1.0 - row.on.phase_shares.get("verify", 0.0)
        table.add_row(
            str(row.batch),
            f"{row.on.tokens_per_step:.2f}",
            f"{row.on.ms_per_step:.1f}",
            f"{row.off.ms_per_step:.1f}",
            f"{row.on.tokens_per_s:.1f}",
            f"{row.off.tokens_per_s:.1f}",
            f"{row.speedup:.2f}",
            f"{row.low:.2f} to {row.high:.2f}",
            f"{100 * outside:.1f} %",
        )
    return table


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()

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
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from medusa_dist.errors import ConfigError, EngineError
from medusa_dist.llm import LLM, LocalBackend
from medusa_dist.request import Request, SamplingParams

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
    """One side of one pair: tokens of every request, and counts of the time in which the batch was full."""

    tokens: list[tuple[int, ...]]
    seconds: float
    num_tokens: int
    num_choices: int  # steps of single sequences, so num_tokens / num_choices is tokens per step
    num_steps: int
    phases: dict[str, float]

    @property
    def rate(self) -> float:
        """Tokens per second while the batch was full."""
        return self.num_tokens / self.seconds


class _Meter:
    """Runs one side and reads the engine's own clock."""

    def __init__(self, llm: LLM, params: SamplingParams) -> None:
        backend = llm._backend
        if not isinstance(backend, LocalBackend):
            raise ConfigError("bench measures one process; use tensor_parallel_size 1")
        self.engine = backend.engine
        self._params = params

    def run(self, ids: list[list[int]], batch: int, speculation: bool) -> _Run:
        """Decode all prompts, `batch` at a time: when one ends the next begins. Prefill is in the time of both sides.

        The clock stops when the last prompt has begun and one ends: a draining batch would measure its slowest member.
        """
        engine = self.engine
        engine.scheduler.pool.forget_idle()  # else the second of a pair would find the first one's prompts
        # Each prompt its own seed, the same on both sides.
        queue = deque(
            Request(
                request_id=str(i),
                prompt_ids=tuple(prompt),
                params=replace(self._params, speculation=speculation),
                seed=i,
            )
            for i, prompt in enumerate(ids)
        )
        run = _Run([()] * len(ids), 0.0, 0, 0, 0, {})
        num_running, full = 0, True
        before, begin = dict(engine.phase_seconds), time.perf_counter()
        while queue or num_running:
            while queue and num_running < batch:
                engine.submit(queue.popleft())
                num_running += 1
            outputs = engine.step()
            for output in outputs:
                run.tokens[int(output.request_id)] += output.token_ids
                num_running -= output.finish_reason is not None
            if full:
                run.num_steps += 1
                run.num_choices += sum(output.stats.num_steps for output in outputs)
                run.num_tokens += sum(len(output.token_ids) for output in outputs)
                if not queue and num_running < batch:
                    full = False
                    run.seconds = time.perf_counter() - begin
                    run.phases = {k: v - before.get(k, 0.0) for k, v in engine.phase_seconds.items()}
        return run


def _row(meter: _Meter, ids: list[list[int]], batch: int, pairs: int) -> Row:
    sides: dict[bool, list[_Run]] = {True: [], False: []}
    count = 1 if batch == 1 else 3 * batch
    meter.run(ids[:batch], batch, True)  # kernels and the policy's averages warm up
    for pair in range(pairs):
        chosen = [ids[(pair * count + i) % len(ids)] for i in range(count)]
        for speculation in (True, False) if pair % 2 == 0 else (False, True):
            sides[speculation].append(meter.run(chosen, batch, speculation))
        if sides[True][-1].tokens != sides[False][-1].tokens:
            raise EngineError(
                f"batch {batch}, pair {pair}: speculation changed the tokens; this is a bug, please report it"
            )
    ratios = [on.rate / off.rate for on, off in zip(sides[True], sides[False], strict=True)]
    low, high = bootstrap_interval(ratios)
    return Row(batch, pairs, _side(sides[True]), _side(sides[False]), statistics.geometric_mean(ratios), low, high)


def _side(runs: list[_Run]) -> Side:
    seconds = sum(run.seconds for run in runs)
    phases: dict[str, float] = {}
    for run in runs:
        for name, value in run.phases.items():
            phases[name] = phases.get(name, 0.0) + value
    total = sum(phases.values())
    num_tokens = sum(run.num_tokens for run in runs)
    return Side(
        tokens_per_s=round(num_tokens / seconds, 2),
        tokens_per_step=round(num_tokens / sum(run.num_choices for run in runs), 3),
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

"""Report of `medusa-dist bench`: JSON for programs, tables for people.

Owns the report's classes and format. Not here: measuring (bench.py).
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

TIMED = (
    "wall time of engine steps, prefill included, from the first prompt until all prompts of the run have started and "
    "one more finishes, so that the batch is always full; batch 1: a whole answer"
)
PEER_TIMED = "wall time from sending a batch of prompts to its last token, prefill included, on all sides"


@dataclass(frozen=True)
class Side:
    """One side of a row, with or without drafts; totals over all pairs. Times in milliseconds per step.

    phase_ms: time per phase (engine/runner/phase_timer.py); the sum is the step. outside_forward: share of the step
    that
    is not the model's forward pass, including drafting.
    """

    tokens_per_s: float
    tokens_per_step: float  # per sequence: 1 without drafts
    ms_per_step: float
    phase_ms: dict[str, float]
    outside_forward: float


@dataclass(frozen=True)
class Row:
    """One batch size and temperature: both sides, and the speed-up (geometric mean of pairs) with its 95 % interval.

    roof_share: time to read all weights once at the measured bandwidth / step without drafts. None: not measured.
    """

    batch: int
    temperature: float
    pairs: int
    on: Side
    off: Side
    speedup: float
    low: float
    high: float
    roof_share: float | None


@dataclass(frozen=True)
class PeerRow:
    """Our engine and a peer, greedy, alternating. ratio: our tokens per second / the peer's, over rounds.

    same_answers: number of the peer's answers, of num_answers, with exactly our tokens.
    """

    peer: str
    batch: int
    rounds: int
    drafts: bool  # of our side
    tokens_per_s: float
    peer_tokens_per_s: float
    ratio: float
    low: float
    high: float
    same_answers: int
    num_answers: int


@dataclass(frozen=True)
class BenchReport:
    """Everything needed to quote the numbers. waves: prompts per run / batch, for batches above 1."""

    machine: dict[str, Any]
    model: str
    dtype: str
    max_tokens: int
    waves: int
    timed: str
    peer_timed: str
    prompts: str
    prompts_sha256: str
    rows: list[Row]
    peers: list[PeerRow]
    step_cost_ms: dict[int, float]  # tokens of a step -> milliseconds, as measured when the engine started
    weight_bytes: int
    bandwidth_bytes_per_s: float  # read bandwidth, measured in this process


def as_json(report: BenchReport) -> str:
    """The report as JSON."""
    return json.dumps(asdict(report), indent=2)


def as_tables(report: BenchReport) -> list[Table]:
    """The report as tables: comparison, phases of a step, step-time curve, and peers if there are any."""
    tables = [_comparison(report), _phases(report)]
    if report.step_cost_ms:
        tables.append(_curve(report))
    return [*tables, _peers(report)] if report.peers else tables


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, justify="right")
    return table


def _comparison(report: BenchReport) -> Table:
    where = f"{report.machine['cpu']}, {report.machine['threads']} threads, {report.machine['device']}"
    table = _table(
        f"{report.model}, {report.dtype}, {report.max_tokens} tokens; {where}",
        *("batch", "T", "tokens/step", "ms/step on", "off", "tokens/s on", "off", "speed-up", "95 %", "roof"),
    )
    for row in report.rows:
        table.add_row(
            str(row.batch),
            f"{row.temperature:g}",
            f"{row.on.tokens_per_step:.2f}",
            f"{row.on.ms_per_step:.1f}",
            f"{row.off.ms_per_step:.1f}",
            f"{row.on.tokens_per_s:.1f}",
            f"{row.off.tokens_per_s:.1f}",
            f"{row.speedup:.2f}",
            f"{row.low:.2f} to {row.high:.2f}",
            "" if row.roof_share is None else f"{100 * row.roof_share:.0f} %",
        )
    table.caption = (
        f"on, off: with and without drafts. roof: time to read {report.weight_bytes / 1e9:.2f} GB of weights at the "
        f"measured {report.bandwidth_bytes_per_s / 1e9:.1f} GB/s, as a share of a step without drafts."
    )
    return table


def _phases(report: BenchReport) -> Table:
    names = list(dict.fromkeys(name for row in report.rows for name in row.off.phase_ms))
    table = _table("Milliseconds of a step, by phase", "batch", "T", "drafts", *names, "outside forward")
    for row in report.rows:
        for drafts, side in (("on", row.on), ("off", row.off)):
            parts = [f"{side.phase_ms.get(name, 0.0):.2f}" for name in names]
            share = f"{100 * side.outside_forward:.1f} %"
            table.add_row(str(row.batch), f"{row.temperature:g}", drafts, *parts, share)
    return table


def _curve(report: BenchReport) -> Table:
    table = _table("Milliseconds of a step, by number of tokens", *(str(rows) for rows in report.step_cost_ms))
    table.add_row(*(f"{ms:.1f}" for ms in report.step_cost_ms.values()))
    return table


def _peers(report: BenchReport) -> Table:
    table = _table(
        "Side by side, greedy",
        *("peer", "batch", "drafts", "tokens/s", "theirs", "ours / theirs", "95 %", "same answers"),
    )
    for row in report.peers:
        table.add_row(
            row.peer,
            str(row.batch),
            "on" if row.drafts else "off",
            f"{row.tokens_per_s:.1f}",
            f"{row.peer_tokens_per_s:.1f}",
            f"{row.ratio:.2f}",
            f"{row.low:.2f} to {row.high:.2f}",
            f"{row.same_answers} of {row.num_answers}",
        )
    return table

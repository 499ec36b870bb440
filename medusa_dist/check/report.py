"""Report of `medusa-dist check`: tables for people, JSON for programs.

Owns the format. Not here: the content of a report (check.py).
"""

import json
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from medusa_dist.check.check import SEEN, CheckReport, Roof
from medusa_dist.check.memory import GroupMemory, RankMemory, gigabytes
from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS

_PIPE_COLUMNS = 140


def as_json(reports: list[CheckReport]) -> str:
    """All reports as JSON, with bytes, seconds and tokens as plain numbers."""
    return json.dumps([_plain(report) for report in reports], indent=2)


def _plain(report: CheckReport) -> dict[str, Any]:
    found = {
        "application": report.application,
        "ok": report.ok,
        "problems": report.problems,
        "notes": report.notes,
        "unchecked": report.unchecked,
        "config": report.config.model_dump(mode="json"),
        "gpu": None if report.gpu is None else asdict(report.gpu),
        "placement": asdict(report.placement),
        "weights_seen": report.weights_seen,
        "heads": report.heads,
        "memory": None,
        "roof": None,
    }
    if report.memory is not None:
        found["memory"] = asdict(report.memory) | {"kv_tokens": report.memory.kv_tokens}
    if report.roof is not None:
        pairs = [{"plain": _step(plain), "tree": _step(tree)} for plain, tree in report.roof.steps]
        found["roof"] = {"context": report.roof.context, "knee_rows": report.roof.knee, "steps": pairs}
    return found


def _step(step: Any) -> dict[str, Any]:
    return asdict(step) | {"seconds": step.seconds}


def stdout_console() -> Console:
    """A console for stdout: the terminal's width, or wide enough for the tables in a pipe or file."""
    console = Console(soft_wrap=True)
    return console if console.is_terminal else Console(soft_wrap=True, width=_PIPE_COLUMNS)


def show(report: CheckReport, console: Console) -> None:
    """Print one report."""
    config = report.config
    where = "a CPU" if report.gpu is None else f"{report.gpu.name} ({gigabytes(report.gpu.memory_bytes)})"
    ranks = _plural(config.tensor_parallel_size, "rank")
    console.print(f"[bold]{report.application}[/]: {config.model}, {config.dtype}, {ranks} on {where}", highlight=False)
    console.print(_placement(report), markup=False, highlight=False)
    if report.memory is not None:
        console.print(f"weights {SEEN[report.weights_seen]}; heads: {report.heads}", markup=False, highlight=False)
        console.print()
        console.print(_memory_table(report.memory, console))
        console.print(_cache(report.memory, report), markup=False, highlight=False)
    if report.roof is not None:
        console.print()
        console.print(_roof_table(report.roof, console))
        console.print(_roof_words(report.roof, report), markup=False, highlight=False)
    console.print()
    for style, word, lines in (
        ("red", "problem", report.problems),
        ("yellow", "note", report.notes),
        ("yellow", "not checked", report.unchecked),
    ):
        for line in lines:
            console.print(f"[{style}]{word}:[/]", end=" ")
            console.print(line, markup=False, highlight=False)
    console.print("[green]fits[/]" if report.ok else "[red]does not work[/]")


def _placement(report: CheckReport) -> str:
    plan = report.placement
    least, most = plan.replicas
    count = _plural(most, "replica") if least == most else f"{least} to {most} replicas"
    each = " + ".join(f"{amount:g} {key}" for key, amount in plan.total.items())
    text = f"placement: {count}, each {_plural(len(plan.bundles), 'bundle')} with {each} in all, {plan.strategy}"
    if plan.nodes is not None:
        text += f"; at least {_plural(plan.nodes, 'node')} of {plan.gpus_per_node} GPUs"
    return text


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _table(console: Console, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="left" if column == "rank" else "right", no_wrap=True)
    return table


def _memory_table(memory: GroupMemory, console: Console) -> Table:
    """One row per group of ranks with the same sizes."""
    columns = ["rank", "weights", "heads", "output rows", "embedding", "CUDA", "KV cache", "sum", "kept free"]
    kinds: dict[tuple[Any, ...], list[RankMemory]] = {}
    for rank in memory.ranks:
        kinds.setdefault((rank.weights, rank.draft, rank.block_bytes), []).append(rank)
    table = _table(console, *columns)
    for ranks in kinds.values():
        rank = ranks[0]
        kv = memory.kv_bytes(rank) if memory.kv_blocks > 0 else 0
        amounts = [rank.weights, rank.draft.heads, rank.draft.output_rows, rank.draft.embedding, rank.context, kv]
        cells = [gigabytes(amount) if amount else "-" for amount in amounts]
        free = "-" if memory.reserve is None else gigabytes(memory.reserve)
        table.add_row(_span([r.rank for r in ranks]), *cells, gigabytes(sum(amounts)), free)
    return table


def _span(ranks: list[int]) -> str:
    contiguous = ranks == list(range(ranks[0], ranks[-1] + 1))
    if len(ranks) > 1 and contiguous:
        return f"{ranks[0]} to {ranks[-1]}"
    return ", ".join(map(str, ranks))


def _cache(memory: GroupMemory, report: CheckReport) -> str:
    if memory.kv_blocks <= 0:
        return "KV cache: no memory left"
    least = min(memory.ranks, key=lambda rank: rank.kv_blocks).rank
    tokens = memory.kv_tokens
    wanted = report.config.max_running * memory.max_model_len
    if report.config.kv_cache_tokens is not None:
        why = "kv_cache_tokens"
    elif tokens >= wanted:
        why = "the maximum for max_running x max_model_len"
    else:
        why = f"limited by rank {least}" if report.gpu is not None else "the default on a CPU"
    return (
        f"KV cache: {tokens:,} tokens in {memory.kv_blocks:,} blocks of {BLOCK_TOKENS} ({why}), "
        f"{tokens / memory.max_model_len:.1f} sequences of max_model_len {memory.max_model_len:,}; workspace about "
        f"{gigabytes(memory.workspace)}"
    )


def _roof_table(roof: Roof, console: Console) -> Table:
    table = _table(
        console, "batch", "rows", "plain ms", "tokens/s", "tree rows", "tree ms", "of which drafting", "pays above"
    )
    for plain, tree in roof.steps:
        table.add_row(
            str(plain.sequences),
            str(plain.rows),
            f"{plain.seconds * 1e3:.2f}",
            f"{plain.sequences / plain.seconds:,.0f}",
            str(tree.rows),
            f"{tree.seconds * 1e3:.2f}",
            f"{tree.draft_s * 1e3:.2f}",
            f"{tree.seconds / plain.seconds:.2f} tokens/step",
        )
    return table


def _roof_words(roof: Roof, report: CheckReport) -> str:
    return (
        f"Lower bound of a step by the roofline model (weights and {roof.context:,} tokens of context per sequence are "
        f"read once; no communication, no launch overhead).\nKnee: up to {roof.knee} tokens, a step costs the same as "
        f"with one token, so draft tokens are nearly free; {report.config.max_running} sequences reach it with "
        f"{max(0, roof.knee // report.config.max_running - 1)} draft tokens each."
    )

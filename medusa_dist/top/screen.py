"""The screen of `top`, and its line mode.

Owns what is shown and where. Not here: the numbers (figures.py), keys and timing (run.py).
"""

from collections.abc import Sequence

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from medusa_dist.top.figures import Figures, Quantiles

_BAR = 24
_UNKNOWN = "…"


def screen(models: Sequence[Figures], url: str, trouble: str | None) -> RenderableType:
    """The whole screen. trouble: why there is no new reading."""
    head = Text(f"medusa-dist top  {url}  ", style="bold")
    head.append("q leaves", style="dim")
    parts: list[RenderableType] = [head]
    if trouble is not None:
        parts.append(Text(trouble, style="bold red"))
    elif not models:
        parts.append(Text("no metrics of medusa_dist here yet", style="yellow"))
    return Group(*parts, *map(_panel, models))


def line(shown: Figures) -> str:
    """One line, for a file or a pipe."""
    heads = " ".join(f"{_share(accepted, verified):.0f}%" for verified, accepted in shown.heads) or "-"
    phases = " ".join(f"{phase} {ms:.1f}" for phase, ms in shown.phases_ms.items()) or "-"
    states = " ".join(f"{state} {count}" for state, count in shown.by_state.items())
    return (
        f"{shown.model}: {states}; {_number(shown.tokens)} tokens/s, {_number(shown.tokens_per_step, 2)} tokens/step; "
        f"heads {heads}; ms {phases}; kv {100 * shown.kv_used:.0f}%; replicas {shown.replicas_up}/{shown.replicas}, "
        f"generations {_listed(shown.generations)}, {shown.failures} failures"
    )


def _panel(shown: Figures) -> Panel:
    up = "green" if shown.replicas_up == shown.replicas else "red"
    title = Text(f" {shown.model}  ", style="bold")
    title.append(f"replicas {shown.replicas_up}/{shown.replicas}", style=up)
    title.append(f"  generations {_listed(shown.generations)}  failures {shown.failures} ", style="dim")
    return Panel(
        Columns([_load(shown), _heads(shown), _phases(shown)], padding=(0, 4)), title=title, title_align="left"
    )


def _load(shown: Figures) -> Table:
    table = _table("Requests and speed")
    for state, count in shown.by_state.items():
        table.add_row(state, str(count))
    for reason, rate in shown.ended.items():
        table.add_row(f"ended: {reason}", f"{rate:.2f}/s")
    for status, count in shown.batches.items():
        table.add_row(f"batches {status}", str(count))
    table.add_row("tokens/s", _number(shown.tokens))
    table.add_row("prompt tokens/s", _number(shown.prompt_tokens))
    table.add_row("tokens/step", _number(shown.tokens_per_step, 2))
    table.add_row("steps/s", _number(shown.steps))
    table.add_row("first token p50/p95", _times(shown.first_token))
    table.add_row("per token p50/p95", _times(shown.token))
    table.add_row("KV cache", f"{100 * shown.kv_used:.0f} %")
    return table


def _heads(shown: Figures) -> Table:
    table = _table("Accepted share of verified drafts")
    for depth, (verified, accepted) in enumerate(shown.heads, start=1):
        share = _share(accepted, verified)
        table.add_row(f"head {depth}", f"{share:.0f} %", _bar(share / 100), f"{verified:.2f} verified/step")
    if not shown.heads:
        table.add_row("nothing was verified" if shown.tokens is not None else _UNKNOWN)
    return table


def _phases(shown: Figures) -> Table:
    table = _table("A step, ms by phase")
    total = sum(shown.phases_ms.values()) or 1.0
    for phase, ms in shown.phases_ms.items():
        table.add_row(phase, f"{ms:.2f}", _bar(ms / total))
    if not shown.phases_ms:
        table.add_row(_UNKNOWN if shown.steps is None else "no steps")
    return table


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, padding=(0, 1))
    table.add_column()
    table.add_column(justify="right")
    return table


def _share(part: float, whole: float) -> float:
    return 100 * part / whole if whole else 0.0


def _bar(share: float) -> Text:
    filled = round(_BAR * min(1.0, max(0.0, share)))
    return Text("█" * filled, style="cyan").append("·" * (_BAR - filled), style="dim")


def _number(value: float | None, digits: int = 1) -> str:
    return _UNKNOWN if value is None else f"{value:,.{digits}f}"


def _times(found: Quantiles) -> str:
    return "/".join(_UNKNOWN if seconds is None else _time(seconds) for seconds in found)


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def _listed(generations: Sequence[int]) -> str:
    return ",".join(map(str, generations)) or "-"

"""Tables printed by `medusa-dist eval-heads`.

Owns the tables. Not here: the numbers (eval_heads.py), plots (plots.py).
"""

from collections.abc import Sequence

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from medusa_dist.heads_tools.eval_heads import Category, HeadsReport
from medusa_dist.medusa.trees.replay import Bin

_SHOWN_NODES = (1, 2, 3, 5, 7, 10, 15, 23, 31, 47, 63)
_BAR = 22


def show(report: HeadsReport, console: Console) -> None:
    """Print all tables of a report."""
    console.print(
        Text(
            f"{report.heads} on {report.model}, {report.dtype}, temperature {report.temperature:g}: "
            f"{report.whole.places:,} positions in {report.whole.answers} answers to {report.prompts}"
        ),
        style="bold",
    )
    console.print(accuracy_table(report.whole))
    console.print(curve_table(report))
    console.print(reliability_table(report))
    if report.categories:
        console.print(category_table([*report.categories, report.whole]))
    elif report.whole.speed is not None:
        console.print(category_table([report.whole]))


def accuracy_table(category: Category) -> Table:
    """One row per head."""
    table = Table(title="Top-1, top-2, ... accuracy of each head, %")
    table.add_column("head")
    for rank in range(1, max((len(ranks) for ranks in category.top_accuracies), default=0) + 1):
        table.add_column(str(rank), justify="right")
    for head, ranks in enumerate(category.top_accuracies, start=1):
        table.add_row(str(head), *(f"{100 * share:.1f}" for share in ranks))
    return table


def curve_table(report: HeadsReport) -> Table:
    """Tokens per step by tree size, with bars."""
    table = Table(
        title="Tokens per step by draft tokens", caption="static: found on half the answers, measured on the other"
    )
    for name in ("nodes", "dynamic", "", "static", ""):
        table.add_column(name, justify="left" if not name else "right")
    top = max(report.dynamic + report.static)
    for n in (n for n in _SHOWN_NODES if n <= len(report.dynamic)):
        cells: list[str | Text] = [str(n)]
        for curve in (report.dynamic, report.static):
            cells += [f"{curve[n - 1]:.3f}", _bar((curve[n - 1] - 1) / max(top - 1, 1e-9))]
        table.add_row(*cells)
    return table


def reliability_table(report: HeadsReport) -> Group:
    """Predicted and measured acceptance, with raw and calibrated confidences."""
    table = Table(title="Acceptance of drafts whose parent is accepted, %")
    for name in ("raw", "measured", "drafts", "calibrated", "measured", "drafts"):
        table.add_column(name, justify="right")
    rows = max(len(report.confidence), len(report.calibrated))
    for i in range(rows):
        table.add_row(*_bin(report.confidence, i), *_bin(report.calibrated, i))
    errors = f"mean error: raw {100 * report.confidence_error:.1f}, calibrated {100 * report.calibrated_error:.1f} %"
    return Group(table, Text(errors, style="dim"))


def category_table(categories: Sequence[Category]) -> Table:
    """One row per category: accuracy, replay, and measured speed."""
    note = "at 7, at 63: tokens per step with that many nodes, replayed; then measured as configured, one at a time"
    table = Table(title="By category of prompt", caption=note, box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    columns = ("", "n", "top 1", "top 5", "at 7", "at 63", "timed", "t/step", "tok/s", "plain", "gain")
    for name in columns:
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for category in categories:
        first = category.top_accuracies[0] if category.top_accuracies else [0.0]
        cells = [
            category.name,
            str(category.answers),
            f"{100 * first[0]:.1f}",
            f"{100 * first[min(4, len(first) - 1)]:.1f}",
            f"{category.tokens_per_step[7]:.2f}",
            f"{category.tokens_per_step[63]:.2f}",
        ]
        speed = category.speed
        if speed is not None:
            cells += [str(speed.prompts), f"{speed.tokens_per_step:.2f}", f"{speed.tokens_per_s:.1f}"]
            cells += [f"{speed.plain_tokens_per_s:.1f}", f"{speed.speedup:.2f}"]
        table.add_row(*cells, style="bold" if category.name == "all" else "")
    return table


def _bin(bins: Sequence[Bin], i: int) -> tuple[str, str, str]:
    if i >= len(bins):
        return "", "", ""
    return f"{100 * bins[i].predicted:.1f}", f"{100 * bins[i].measured:.1f}", f"{bins[i].count:,}"


def _bar(share: float) -> Text:
    return Text("█" * round(_BAR * max(0.0, share)), style="green")

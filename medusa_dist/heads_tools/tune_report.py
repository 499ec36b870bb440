"""Tables printed by `medusa-dist tune-tree`, and the YAML it writes.

Owns the tables and the file. Not here: the numbers (tune_tree.py).
"""

from collections.abc import Sequence
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from medusa_dist.heads_tools.tune_tree import CAPS, BatchResult, Choice, Tuning
from medusa_dist.medusa.trees.replay import Path

Mode = Literal["auto", "static"]


def show(tuning: Tuning, console: Console) -> None:
    """Print a table per batch size, and the choices."""
    what = f"{tuning.model}, {tuning.dtype}, {tuning.device}; {tuning.places:,} recorded positions"
    console.print(Text(what), style="bold")
    for result in tuning.batches:
        console.print(batch_table(result))
    console.print(choice_table(tuning))


def batch_table(result: BatchResult) -> Table:
    """Nodes, tokens per step, milliseconds, speed; the fastest of each kind is bold."""
    title = f"batch {result.plain.batch}: static trees of n nodes | dynamic trees of at most n"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    for name in ("nodes", "t/step", "ms", "tok/s", "gain", "|", "t/step", "ms", "tok/s", "gain"):
        table.add_column(name, justify="right", no_wrap=True)
    base = result.plain
    table.add_row("0", "1.000", f"{1e3 * base.seconds:.1f}", f"{base.tokens_per_s:.1f}", "1.00", "|")
    for cap, dynamic in zip(CAPS, result.dynamic, strict=True):
        static = result.static[cap - 1]
        cells = [Text(str(cap))]
        for point, best in ((static, result.best_static), (dynamic, result.best_dynamic)):
            style = "bold green" if point.nodes == best.point.nodes else ""
            gain = point.tokens_per_s / base.tokens_per_s
            numbers = f"{point.tokens_per_step:.3f}", f"{1e3 * point.seconds:.1f}", f"{point.tokens_per_s:.1f}"
            cells += [Text(text, style) for text in (*numbers, f"{gain:.2f}")]
            cells += [Text("|")] if point is static else []
        table.add_row(*cells)
    return table


def choice_table(tuning: Tuning) -> Table:
    """The best of each kind by batch size: predicted, and measured in the engine."""
    table = Table(title="Best trees", box=box.SIMPLE_HEAD)
    for name in ("batch", "kind", "nodes", "t/step", "ms", "predicted", "measured"):
        table.add_column(name, justify="left" if name == "kind" else "right")
    for result in tuning.batches:
        for kind, choice in (("static", result.best_static), ("dynamic", result.best_dynamic)):
            point = choice.point
            measured = "-" if choice.measured is None else f"{choice.measured:.2f}"
            cells = str(point.batch), kind, str(point.nodes), f"{point.tokens_per_step:.3f}"
            table.add_row(*cells, f"{1e3 * point.seconds:.1f}", f"{choice.gain:.2f}", measured)
    return table


def recommended(tuning: Tuning) -> Mode:
    """The faster kind for the smallest batch: as measured, else as predicted. Dynamic unless static wins by more than
    one percent, since dynamic trees also shrink under load."""
    first = tuning.batches[0]
    return "static" if _worth(first.best_static) > 1.01 * _worth(first.best_dynamic) else "auto"


def as_yaml(tuning: Tuning, mode: Mode) -> str:
    """Keys for `args:` of a Serve config: the best tree for the smallest batch, all others as comments."""
    lines = [
        f"# medusa-dist tune-tree: {tuning.model}, {tuning.dtype}, {tuning.device}; "
        f"{tuning.places:,} recorded positions.",
        "# For `args:` of a Serve config. Gains are over decoding without drafts on the machine that measured them.",
    ]
    first = tuning.batches[0]
    lines += _block(first, mode)
    for result in tuning.batches:
        for other in ("auto", "static"):
            if (result, other) != (first, mode):
                lines += ["", *(f"# {line}" for line in _block(result, "auto" if other == "auto" else "static"))]
    return "\n".join(lines) + "\n"


def _block(result: BatchResult, mode: Mode) -> list[str]:
    choice = result.best_static if mode == "static" else result.best_dynamic
    point = choice.point
    measured = "not measured" if choice.measured is None else f"measured gain {choice.measured:.2f}"
    about = (
        f"  # batch {point.batch}: {point.tokens_per_step:.2f} tokens/step in {1e3 * point.seconds:.1f} ms; "
        f"predicted gain {choice.gain:.2f}, {measured}"
    )
    if mode == "auto":
        return ["speculation:", about, "  mode: auto", f"  max_nodes: {point.nodes}"]
    return ["speculation:", about, "  mode: static", "  tree:", *_wrapped(choice.tree)]


def _wrapped(tree: Sequence[Path], width: int = 110) -> list[str]:
    """The paths as a YAML list, with line breaks."""
    lines, line = [], "    ["
    for i, path in enumerate(tree):
        entry = f"[{', '.join(map(str, path))}]" + ("," if i + 1 < len(tree) else "]")
        if len(line) + len(entry) > width:
            lines.append(line.rstrip())
            line = "     "
        line += entry + " "
    return [*lines, line.rstrip()]


def _worth(choice: Choice) -> float:
    return choice.gain if choice.measured is None else choice.measured

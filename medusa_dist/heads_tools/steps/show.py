"""The tables and drawings of `medusa-dist explain steps.jsonl`.

Owns what is shown of a step log. Not here: the numbers (summary.py), the drawing of a tree (heads_tools/explain.py),
files of drawings (page.py).
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from medusa_dist.config import parse_config
from medusa_dist.engine.steps.log import LoggedModel, read_step_log
from medusa_dist.engine.steps.record import LoggedStep, VerifiedTree
from medusa_dist.errors import ModelError, StepLogError
from medusa_dist.heads_tools.explain import draw_step
from medusa_dist.heads_tools.steps.page import Picture, step_picture
from medusa_dist.heads_tools.steps.summary import LogSummary, Tally
from medusa_dist.heads_tools.trace_steps import TracedStep
from medusa_dist.medusa.trees.replay import node_chances
from medusa_dist.model.source.load_tokenizer import load_tokenizer

_BAR = 30


class TokenIds:
    """Stands for a tokenizer where there is none: tokens are shown by their ids."""

    def decode(self, ids: Sequence[int]) -> str:
        """`#12 #7`."""
        return " ".join(f"#{token}" for token in ids)


@dataclass(frozen=True, slots=True)
class Sight:
    """A step worth a look, and of its trees those to draw."""

    title: str
    record: LoggedStep
    trees: tuple[VerifiedTree, ...]


_NOTHING = Sight("", LoggedStep(0, 0.0, {}, 0, 0, 0, 0, 0.0, (), {}), ())


class LoggedSteps:
    """A step log: its summary, the models that wrote it, and what is worth a look.

    number: of a step to look at; of several generations, the last one's. Raises StepLogError for a file that is none,
    or does not have such a step.
    """

    def __init__(self, path: Path, number: int | None = None) -> None:
        self.summary = LogSummary()
        self.models: list[LoggedModel] = []
        self._best = self._worst = (0, _NOTHING)
        self._asked: Sight | None = None
        steps: list[int] = []
        for line in read_step_log(path):
            if isinstance(line, LoggedModel):
                self.models.append(line)
                continue
            self.summary.add(line)
            steps.append(line.step)
            if line.step == number:
                self._asked = Sight("asked for", line, line.trees)
            self._compare(line)
        if not steps:
            raise StepLogError(f"{path}: no step was logged yet")
        if number is not None and self._asked is None:
            raise StepLogError(f"--step: {path} has no step {number}; it has {min(steps)} to {max(steps)}")

    def _compare(self, record: LoggedStep) -> None:
        for tree in record.trees:
            accepted, rejected = len(tree.accepted), len(tree.tree) - len(tree.accepted)
            if accepted > self._best[0]:
                self._best = accepted, Sight("most drafts accepted", record, (tree,))
            if rejected > self._worst[0]:
                self._worst = rejected, Sight("most drafts rejected", record, (tree,))

    @property
    def model(self) -> LoggedModel:
        """The one that wrote the last steps."""
        return self.models[-1]

    @property
    def sights(self) -> list[Sight]:
        """All of the step asked for, or the best and the worst tree."""
        if self._asked is not None:
            return [self._asked]
        return [sight for count, sight in (self._best, self._worst) if count]


def tokenizer_of(model: LoggedModel, warn: Callable[[str], None]) -> Any:
    """The tokenizer in the logged folder; TokenIds, and a warning, if it is not on this machine."""
    try:
        return load_tokenizer(model.folder, parse_config({"model": model.model}))
    except ModelError as error:
        warn(f"tokens are shown by their ids: {error.message}")
        return TokenIds()


def traced(tree: VerifiedTree) -> TracedStep:
    """A logged tree as `explain` draws it."""
    chances = node_chances(tree.tree, tree.values) if tree.values else [0.0] * len(tree.tree)
    drafters = tree.drafters or ((),) * len(tree.tree)
    return TracedStep(tree.root, tree.tree, tuple(chances), tree.accepted, tree.tokens, drafters)


def show_log(log: LoggedSteps, tokenizer: Any, console: Console) -> None:
    """Print the summary, then the trees of the chosen steps."""
    for part in tables(log):
        console.print(part)
        console.print()
    for sight in log.sights:
        console.print(Text(f"{sight.title}: {load_of(sight.record)}", style="bold"))
        for tree in sight.trees:
            console.print(draw_step(traced(tree), tokenizer, sight.record.step, [tree.root]))
            console.print(Text(where(tree), style="dim"))
        console.print()


def log_pictures(log: LoggedSteps, tokenizer: Any) -> list[Picture]:
    """The trees of the chosen steps."""
    return [
        step_picture(
            traced(tree), tokenizer, f"step {sight.record.step}: {sight.title}", where(tree), load_of(sight.record)
        )
        for sight in log.sights
        for tree in sight.trees
    ]


def tables(log: LoggedSteps) -> list[RenderableType]:
    """The summary, part by part."""
    summary = log.summary
    parts: list[RenderableType] = [_heading(log)]
    if summary.ranked or summary.verified.verified:
        parts += [_cuts(summary), _heads(summary)]
    parts += [_lengths(summary), _phases(summary)]
    return parts


def _heading(log: LoggedSteps) -> Text:
    summary, model = log.summary, log.model
    begin = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(summary.begin))
    text = Text(f"{model.model} ({model.speculation}), {begin}, {summary.end - summary.begin:.1f} s\n", style="bold")
    text.append(
        f"{summary.tokens:,} tokens of {len(summary.requests):,} requests in {summary.steps:,} steps; per sequence "
        f"{summary.tokens / max(1, summary.sequence_steps):.2f} tokens/step"
    )
    if len(log.models) > 1:
        text.append(f"\nwritten by {len(log.models)} starts of the engine", style="yellow")
    return text


def _cuts(summary: LogSummary) -> Table:
    """What became of the drafts, cut by cut."""
    table = Table(title="Where drafts were cut")
    for name in ("", "drafts", "left", "cut because"):
        table.add_column(name, justify="right" if name in ("drafts", "left") else "left")
    rows = (
        ("found", summary.ranked, ""),
        ("worthwhile", summary.worthwhile, "they cost more than they gain"),
        ("verified", summary.verified.verified, "the step had no tokens or KV blocks left"),
        ("accepted", summary.verified.accepted, "the model chose otherwise"),
    )
    most = max(1, *(count for _, count, _ in rows))
    for name, count, why in rows:
        table.add_row(name, f"{count:,}", f"{100 * count / most:.1f} %", why)
    table.caption = (
        f"{summary.verified.expected:,.1f} drafts were expected to be accepted; {summary.undrafted:,} of "
        f"{summary.sequence_steps:,} sequence-steps had nothing to verify"
    )
    for drafter, count in sorted(summary.idle.items()):
        table.caption += f"; after {count:,} of {summary.steps:,} steps {drafter} drafted for no sequence"
    return table


def _heads(summary: LogSummary) -> Table:
    """Which head, and which drafter, earned its keep."""
    table = Table(title="Which heads earned their keep")
    for name in ("", "verified", "accepted", "share", "expected", "tokens/step", "earned its keep"):
        table.add_column(name, justify="left" if name in ("", "earned its keep") else "right")
    break_even = summary.break_even

    def add(name: str, tally: Tally) -> None:
        earned = "?" if break_even is None else "yes" if tally.share > break_even else "no"
        share, expected = f"{100 * tally.share:.1f} %", f"{100 * tally.expected / max(1, tally.verified):.1f} %"
        gain = f"{tally.accepted / max(1, summary.sequence_steps):.3f}"
        table.add_row(name, f"{tally.verified:,}", f"{tally.accepted:,}", share, expected, gain, earned)

    for depth, tally in enumerate(summary.heads, start=1):
        add(f"depth {depth}", tally)
    table.add_section()
    for name, tally in sorted(summary.drafters.items()):
        add(name, tally)
    drafting = summary.seconds["draft"] / summary.total_s if summary.total_s else 0.0
    if break_even is None or summary.row_s is None:
        table.caption = "break-even unknown: too few steps, or all of about the same size"
    else:
        table.caption = (
            f"a row costs {1000 * summary.row_s:.2f} ms here, so a draft pays above {100 * break_even:.1f} %; drafting "
            f"itself took {100 * drafting:.1f} % of the time"
        )
    return table


def _lengths(summary: LogSummary) -> Table:
    return _shares(
        "Accepted drafts per step and sequence",
        ((str(length), float(summary.lengths[length])) for length in range(max(summary.lengths, default=0) + 1)),
        "{:,.0f}",
    )


def _phases(summary: LogSummary) -> Table:
    steps = max(1, summary.steps)
    phases = ((phase, 1000 * seconds / steps) for phase, seconds in summary.seconds.items())
    return _shares("Where a step's time goes, ms", phases, "{:.2f}")


def _shares(title: str, rows: Iterable[tuple[str, float]], form: str) -> Table:
    """Numbers with bars of their share."""
    listed = list(rows)
    total = sum(value for _, value in listed) or 1.0
    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column()
    for name, value in listed:
        table.add_row(name, form.format(value), f"{100 * value / total:.1f} %", "█" * round(_BAR * value / total))
    return table


def load_of(record: LoggedStep) -> str:
    """Time, rows and sequences of a step."""
    milliseconds = 1000 * sum(record.seconds.values())
    return f"a step of {milliseconds:.1f} ms, {record.num_rows} rows and {len(record.trees)} sequences"


def where(tree: VerifiedTree) -> str:
    """Whose tree it is, and what was cut before verification."""
    text = f"request {tree.request_id}, after {tree.position} tokens"
    cuts = []
    if tree.num_ranked > tree.num_worthwhile:
        cuts.append(f"{tree.num_ranked - tree.num_worthwhile} cost more than they gain")
    if tree.num_worthwhile > len(tree.tree):
        cuts.append(f"{tree.num_worthwhile - len(tree.tree)} did not fit into the step")
    return f"{text}; of {tree.num_ranked} drafts {' and '.join(cuts)}" if cuts else text

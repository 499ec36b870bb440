"""LogSummary: what a step log says: where drafts were cut, and which heads earned their keep.

Owns the counts and the break-even. Pure. Not here: the log's format (engine/steps/log.py), the tables (show.py).
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from medusa_dist.engine.steps.record import LoggedStep, VerifiedTree

_DRAFT_PHASE = "draft"
MIN_STEPS = 20  # decoding steps, before the cost of a row is estimated


@dataclass
class Tally:
    """Draft tokens of one head, or of one drafter."""

    verified: int = 0
    accepted: int = 0
    expected: float = 0.0  # accepted ones, by the calibrated confidences

    def add(self, value: float, is_accepted: bool) -> None:
        """Count one draft token. value: its expected acceptance."""
        self.verified += 1
        self.accepted += is_accepted
        self.expected += value

    @property
    def share(self) -> float:
        """Accepted share of the verified ones; 0 without any."""
        return self.accepted / self.verified if self.verified else 0.0


@dataclass
class LogSummary:
    """Totals over all steps. Sequence-steps: steps that emitted, summed over sequences.

    lengths[n]: sequence-steps that accepted n drafts. ranked >= worthwhile >= verified >= accepted: what was left after
    each cut. undrafted: sequence-steps with nothing to verify. rows: (rows, seconds) of each step without prompts.
    """

    steps: int = 0
    sequence_steps: int = 0
    tokens: int = 0
    seconds: Counter[str] = field(default_factory=Counter)  # by phase
    ranked: int = 0
    worthwhile: int = 0
    verified: Tally = field(default_factory=Tally)
    heads: list[Tally] = field(default_factory=list)  # by depth; head k guesses at depth k
    drafters: dict[str, Tally] = field(default_factory=dict)
    lengths: Counter[int] = field(default_factory=Counter)
    undrafted: int = 0
    idle: Counter[str] = field(default_factory=Counter)  # by drafter: steps after which it drafted for no sequence
    requests: set[str] = field(default_factory=set)
    rows: list[tuple[int, float]] = field(default_factory=list)
    decoding_steps: int = 0  # sequence-steps of those steps
    begin: float = 0.0  # unix seconds
    end: float = 0.0

    def add(self, record: LoggedStep) -> None:
        """Count one step."""
        self.steps += 1
        self.begin = min(self.begin or record.at, record.at)
        self.end = max(self.end, record.at + sum(record.seconds.values()))
        self.seconds.update(record.seconds)
        if record.trees and not record.num_prompt_rows:
            spent = sum(record.seconds.values()) - record.seconds.get(_DRAFT_PHASE, 0.0)
            self.rows.append((record.num_rows, spent))
            self.decoding_steps += len(record.trees)
        if record.num_running:
            self.idle.update(name for name, count in record.drafted_for.items() if not count)
        for tree in record.trees:
            self._add_tree(tree)

    def _add_tree(self, tree: VerifiedTree) -> None:
        self.requests.add(tree.request_id)
        self.sequence_steps += 1
        self.tokens += len(tree.tokens)
        self.ranked += tree.num_ranked
        self.worthwhile += tree.num_worthwhile
        self.lengths[len(tree.accepted)] += 1
        self.undrafted += not len(tree.tree)
        self.heads += [Tally() for _ in range(max(tree.tree.depths, default=0) - len(self.heads))]
        for node, depth in enumerate(tree.tree.depths):
            value = tree.values[node] if tree.values else 0.0
            names = tree.drafters[node] if tree.drafters else ()
            guessing = [self.drafters.setdefault(name, Tally()) for name in names]
            for tally in (self.verified, self.heads[depth - 1], *guessing):
                tally.add(value, node in tree.accepted)

    @property
    def total_s(self) -> float:
        """Seconds of all steps."""
        return sum(self.seconds.values())

    @property
    def row_s(self) -> float | None:
        """Seconds that one more row costs, by least squares over the steps without prompts; None if they do not tell.

        It needs steps of several sizes. Steps that take three times the median or longer are left out: something else
        ran on the machine.
        """
        if len(self.rows) < MIN_STEPS:
            return None
        rows, seconds = (np.array(column, dtype=np.float64) for column in zip(*self.rows, strict=True))
        usual = seconds < 3 * np.median(seconds)
        rows, seconds = rows[usual], seconds[usual]
        if np.unique(rows).size < 3:
            return None
        slope = float(np.polyfit(rows, seconds, 1)[0])
        return slope if slope > 0 else None

    @property
    def break_even(self) -> float | None:
        """The accepted share at which a draft pays for its row: an accepted one saves its sequence's part of a step."""
        steps_s = sum(seconds for _, seconds in self.rows)
        return None if self.row_s is None else self.row_s * self.decoding_steps / steps_s


def summarise(records: Iterable[LoggedStep]) -> LogSummary:
    """All of them."""
    summary = LogSummary()
    for record in records:
        summary.add(record)
    return summary

"""RequestNotes: what is noted of a request while it runs, for the spans that are made of it at its end.

Owns times, counts and their bound. Not here: OpenTelemetry (spans.py), when things happen (api/http/traced_call.py).
No text and no token is noted.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from medusa_dist.outputs import FinishReason, Output, SpeculationStats
from medusa_dist.request import Request

NUM_DENSE = 32  # outputs that are all noted; of later ones, those whose number is a power of two: some 50 in all


@dataclass(frozen=True, slots=True)
class OutputNote:
    """An output of one step, or of several that were merged while nobody read. number: 1, 2, ... of the request's."""

    at_ns: int
    number: int
    num_tokens: int
    stats: SpeculationStats


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a request's time. outputs: those noted in it. resumed_ns: when the request went on after a failure."""

    name: str
    begin_ns: int
    end_ns: int
    outputs: tuple[OutputNote, ...] = ()
    resumed_ns: tuple[int, ...] = ()


@dataclass(slots=True)
class RequestNotes:
    """One request of a model. operation: as the conventions for generative AI name it. Times: unix time, nanoseconds.

    outcome: a finish reason, or None if nobody waited for the end. error: name of the error that ended it.
    """

    request: Request
    model: str
    operation: str
    begin_ns: int = field(default_factory=time.time_ns)
    first_ns: int | None = None
    last_ns: int = 0
    delivered_ns: int = 0
    prefill_s: float | None = None
    num_cached_tokens: int = 0
    num_tokens: int = 0
    num_outputs: int = 0
    stats: SpeculationStats = field(default_factory=SpeculationStats)
    outputs: list[OutputNote] = field(default_factory=list)
    resumed_ns: list[int] = field(default_factory=list)
    detokenize_s: float = 0.0
    wait_s: float = 0.0
    outcome: FinishReason | None = None
    error: str | None = None

    def arrived(self, output: Output) -> None:
        """An output came from the engine."""
        now = self.last_ns = time.time_ns()
        if self.first_ns is None:
            self.first_ns, self.prefill_s, self.num_cached_tokens = now, output.prefill_s, output.num_cached_tokens
        elif output.prefill_s is not None:  # computed again by another group, from the tokens that there were
            self.resumed_ns.append(now)
        self.num_tokens += len(output.token_ids)
        self.stats += output.stats
        number = self.num_outputs = self.num_outputs + 1
        if number <= NUM_DENSE or number & (number - 1) == 0:
            self.outputs.append(OutputNote(now, number, len(output.token_ids), output.stats))

    def delivered(self) -> None:
        """The client's side took the last output."""
        self.delivered_ns = time.time_ns()
        self.wait_s += (self.delivered_ns - self.last_ns) / 1e9

    def phases(self, end_ns: int) -> Iterator[Phase]:
        """Parts of its time, in order. Queue, prefill and decode follow each other; stream runs beside decode.

        end_ns: when it was over, for a request that never got a token.
        """
        if self.first_ns is None:
            yield Phase("queue", self.begin_ns, end_ns)
            return
        prefilled_ns = self.begin_ns  # of a search it is not known
        if self.prefill_s is not None:
            prefilled_ns = self.first_ns
            admitted_ns = max(self.begin_ns, self.first_ns - int(self.prefill_s * 1e9))
            yield Phase("queue", self.begin_ns, admitted_ns)
            yield Phase("prefill", admitted_ns, self.first_ns)
        yield Phase("decode", prefilled_ns, self.last_ns, tuple(self.outputs), tuple(self.resumed_ns))
        yield Phase("stream", self.first_ns, max(self.delivered_ns, self.last_ns))

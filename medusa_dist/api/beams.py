"""Beam search over HTTP: its two spellings, and what a call may ask beside it.

Owns how many beams a body asks for. Not here: which sampling fields go with beams (sampling_fields.py), why
(docs/beam_search.md).
"""

from typing import Protocol

from medusa_dist.errors import RequestError
from medusa_dist.outputs import Output


class BeamBody(Protocol):
    """What this file reads of a body."""

    @property
    def n(self) -> int | None:
        """Choices per prompt."""

    @property
    def stream(self) -> bool | None:
        """Whether the answer comes in pieces."""

    @property
    def beam_width(self) -> int | None:
        """Our name."""

    @property
    def use_beam_search(self) -> bool | None:
        """vLLM's name: as many beams as choices."""


def asked_beams(body: BeamBody) -> int | None:
    """Beams per prompt; None without beam search. Raises RequestError for what contradicts itself."""
    if body.use_beam_search is False and body.beam_width is not None:
        raise RequestError("use_beam_search is false, but beam_width is given; leave one out", "use_beam_search")
    width = (body.n or 1) if body.use_beam_search and body.beam_width is None else body.beam_width
    if width is None:
        return None
    if (body.n or 1) > width:
        raise RequestError(f"n ({body.n}) exceeds beam_width ({width}): a search finds as many as it has beams", "n")
    if body.stream:
        raise RequestError("stream does not go with beam search: its answer is known at the end only", "stream")
    return width


def split_choices(output: Output, count: int) -> list[Output]:
    """One output per choice of its request: itself, or the best `count` hypotheses of a finished beam search.

    Counts of drafts belong to the search as a whole, and stay with the best.
    """
    if not output.hypotheses:
        return [output]
    first, *others = output.hypotheses[:count]
    assert first.token_ids == output.token_ids
    return [
        output,
        *(Output(request_id=output.request_id, token_ids=h.token_ids, finish_reason=h.finish_reason) for h in others),
    ]

"""Beam search over HTTP: the two ways to request it, and the output per choice.

Owns how many beams a body requests. Not here: which sampling fields work with beams (sampling_fields.py), the reasons
(docs/beam_search.md).
"""

from typing import Protocol

from medusa_dist.errors import RequestError
from medusa_dist.outputs import Output


class BeamBody(Protocol):
    """The fields of a body that this module reads."""

    @property
    def n(self) -> int | None:
        """Choices per prompt."""

    @property
    def stream(self) -> bool | None:
        """Whether the response is streamed."""

    @property
    def beam_width(self) -> int | None:
        """Our field."""

    @property
    def use_beam_search(self) -> bool | None:
        """vLLM's field: as many beams as choices."""


def asked_beams(body: BeamBody) -> int | None:
    """Beams per prompt; None without beam search. Raises RequestError for contradictory fields."""
    if body.use_beam_search is False and body.beam_width is not None:
        raise RequestError("use_beam_search is false, but beam_width is set; remove one of them", "use_beam_search")
    width = (body.n or 1) if body.use_beam_search and body.beam_width is None else body.beam_width
    if width is None:
        return None
    if (body.n or 1) > width:
        raise RequestError(
            f"n ({body.n}) exceeds beam_width ({width}); a search returns at most one choice per beam", "n"
        )
    if body.stream:
        raise RequestError(
            "stream cannot be used with beam search: the result is known only at the end; remove it", "stream"
        )
    return width


def split_choices(output: Output, count: int) -> list[Output]:
    """One output per choice of its request: the output itself, or the best `count` hypotheses of a finished search.

    Speculation counts belong to the search as a whole and stay with the best hypothesis.
    """
    if not output.hypotheses:
        return [output]
    first, *others = output.hypotheses[:count]
    assert first.token_ids == output.token_ids
    return [
        output,
        *(Output(request_id=output.request_id, token_ids=h.token_ids, finish_reason=h.finish_reason) for h in others),
    ]

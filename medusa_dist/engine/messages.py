"""What the front and the engine tell each other: commands in, batches of outputs out.

Owns the types. Not here: the thread between them (loop.py), merging (outbox.py).
"""

from dataclasses import dataclass

from medusa_dist.engine.stats import EngineStats
from medusa_dist.errors import MedusaError
from medusa_dist.outputs import Output
from medusa_dist.request import Request


@dataclass(frozen=True, slots=True)
class Submit:
    """Decode this request; output_ids are tokens that an earlier engine already produced for it."""

    request: Request
    output_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Abort:
    """Stop decoding this request and free what it holds."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Close:
    """Stop the engine, after the commands before."""


Command = Submit | Abort


@dataclass(frozen=True, slots=True)
class Refusal:
    """The engine does not take this request, or cannot go on with it; nothing else comes for it."""

    request_id: str
    error: MedusaError


EngineMessage = Output | Refusal


@dataclass(frozen=True, slots=True)
class OutputBatch:
    """One item of the output stream; without messages it is a sign of life.

    generation: of the group that made it. number: 0, 1, 2, ... within the generation. age_s: seconds since the engine
    thread last came around; a step or a hang in progress makes it grow.
    """

    generation: int
    number: int
    messages: tuple[EngineMessage, ...]
    age_s: float
    stats: EngineStats

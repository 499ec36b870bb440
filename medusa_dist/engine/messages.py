"""Messages between replica and engine: commands in, batches of outputs out.

Owns the types. Not here: the thread that handles them (loop.py), merging (outbox.py).
"""

from dataclasses import dataclass

from medusa_dist.engine.stats import EngineStats
from medusa_dist.engine.steps.samples import StepSample
from medusa_dist.errors import MedusaError
from medusa_dist.outputs import Output
from medusa_dist.request import Request


@dataclass(frozen=True, slots=True)
class Submit:
    """Decode this request; output_ids are tokens that an earlier engine already emitted for it."""

    request: Request
    output_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Abort:
    """Stop decoding this request and free its resources."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Close:
    """Stop the engine after the commands that came before."""


Command = Submit | Abort


@dataclass(frozen=True, slots=True)
class Refusal:
    """The engine rejected this request or cannot continue it; no further message follows for it."""

    request_id: str
    error: MedusaError


EngineMessage = Output | Refusal


@dataclass(frozen=True, slots=True)
class OutputBatch:
    """One item of the output stream; without messages it is a heartbeat.

    generation: of the rank group that produced it. number: 0, 1, 2, ... within the generation.
    age_s: seconds since the engine thread last started an iteration; it grows during a long step or a hang.
    samples: of the steps since the last batch.
    """

    generation: int
    number: int
    messages: tuple[EngineMessage, ...]
    age_s: float
    stats: EngineStats
    samples: tuple[StepSample, ...] = ()

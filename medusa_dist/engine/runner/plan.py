"""Plan: what all ranks do in one step, small enough to broadcast as one int64 tensor.

Owns the wire format. Not here: who decides (engine/scheduler/scheduler.py), the tensors made from it
(engine/runner/batch_builder.py). A plan says everything a follower needs; followers decide nothing. Sampling parameters
travel once, with admission; block tables travel as deltas. Layout: header, then the arrays of _SECTIONS one after
another.
"""

from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import Any

import numpy as np

from medusa_dist.errors import GroupError
from medusa_dist.ops.arrays import Ints

WIRE_VERSION = 2
HEADER_WORDS = 16
_MAGIC = 0x4D454455  # "MEDU"


def _none() -> Ints:
    return np.zeros(0, dtype=np.int64)


class Op(IntEnum):
    """What a message asks of a rank. Admissions and frees ride on STEP: one broadcast a step is all there is."""

    STEP = 1
    HEARTBEAT = 2
    READY = 3  # warm-up is over
    STOP = 4


@dataclass(frozen=True)
class Plan:
    """One step. S sequences take part; sequence s has chains[s] known tokens and nodes[s] drafted ones behind them.

    The columns (places in its block table) of its rows are starts[s], starts[s] + 1, ...: known tokens at their
    positions, drafted nodes behind the root in tree order. Block table entry kept[s] + i becomes the i-th of its
    new blocks; what stood from kept[s] on is gone.
    Copies move KV rows (physical slots) before anything is written.
    """

    op: Op
    generation: int
    step: int
    admitted_indices: Ints = field(default_factory=_none)  # [A] slots that begin anew with this step
    admitted_seeds: Ints = field(default_factory=_none)  # [A]
    admitted_temperatures: Ints = field(default_factory=_none)  # [A] float64, bit-cast
    admitted_full_logits: Ints = field(
        default_factory=_none
    )  # [A] 1: whole rows of logits go to rank 0, 0: each shard's argmax does
    batch_indices: Ints = field(default_factory=_none)  # [S]
    num_computed_tokens: Ints = field(default_factory=_none)  # [S]
    num_new_tokens: Ints = field(default_factory=_none)  # [S] >= 1
    num_draft_tokens: Ints = field(default_factory=_none)  # [S] >= 0
    needs_logits: Ints = field(
        default_factory=_none
    )  # [S] 1: scores of the last known token and of all nodes are wanted
    num_prompt_logprobs: Ints = field(
        default_factory=_none
    )  # [S] so many first rows are scored for the prompt token behind each; or []
    num_top_logprobs: Ints = field(
        default_factory=_none
    )  # [S] so many of the likeliest tokens are named with each; or []
    prompt_targets: Ints = field(default_factory=_none)  # [sum of scored] those prompt tokens
    num_kept_blocks: Ints = field(default_factory=_none)  # [S] block table entries that stay
    num_new_blocks: Ints = field(default_factory=_none)  # [S] how many of `blocks` are this sequence's
    token_ids: Ints = field(default_factory=_none)  # [T] sequence after sequence
    parents: Ints = field(default_factory=_none)  # [sum of nodes] within each tree, ROOT = -1
    blocks: Ints = field(default_factory=_none)  # [sum of new_blocks]
    copy_sources: Ints = field(default_factory=_none)  # [C] KV slots
    copy_targets: Ints = field(default_factory=_none)  # [C]

    def pack(self) -> Ints:
        """The plan as one int64 array: header (HEADER_WORDS words and one length per section), then the sections."""
        sections = [getattr(self, name) for name in _SECTIONS]
        header = np.zeros(HEADER_WORDS + len(_SECTIONS), dtype=np.int64)
        total = header.size + sum(section.size for section in sections)
        header[:6] = (_MAGIC, WIRE_VERSION, self.generation, self.step, self.op, total)
        header[HEADER_WORDS:] = [section.size for section in sections]
        return np.concatenate([header, *sections])

    @classmethod
    def unpack(cls, words: Ints, generation: int, step: int) -> "Plan":
        """The plan in `words`. Raises GroupError if it is not the one that is due: ranks have lost step."""
        magic, version, sent_generation, sent_step, op, _ = (int(word) for word in words[:6])
        if (magic, version) != (_MAGIC, WIRE_VERSION):
            raise GroupError(f"a message that is no plan of version {WIRE_VERSION}: {magic:#x}, version {version}")
        if (sent_generation, sent_step) != (generation, step):
            raise GroupError(
                f"rank 0 is at step {sent_step} of generation {sent_generation}, this rank awaits step {step} of "
                f"generation {generation}"
            )
        parts: dict[str, Any] = {}
        begin = HEADER_WORDS + len(_SECTIONS)
        for name, size in zip(_SECTIONS, words[HEADER_WORDS:begin], strict=True):
            parts[name] = words[begin : begin + int(size)]
            begin += int(size)
        return cls(op=Op(op), generation=sent_generation, step=sent_step, **parts)


_SECTIONS = tuple(f.name for f in fields(Plan) if f.name not in ("op", "generation", "step"))


def packed_words(words: Ints) -> int:
    """Length of a packed plan, read from its header."""
    return int(words[5])


def bits_of(value: float) -> int:
    """A float64 as the int64 with the same bits."""
    return int(np.float64(value).view(np.int64))

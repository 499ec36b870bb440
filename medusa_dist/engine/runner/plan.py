"""Plan: what all ranks do in one step, small enough to broadcast as one int64 tensor.

Owns the wire format. Not here: the decisions (engine/scheduler/scheduler.py), the tensors built from a plan
(batch_builder.py).
A plan holds everything a follower needs; followers decide nothing. Sampling parameters are sent once, at admission;
block tables are sent as deltas. Layout: header, then the arrays of _SECTIONS one after another.
"""

from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import Any

import numpy as np

from medusa_dist.errors import GroupError
from medusa_dist.ops.arrays import Ints

WIRE_VERSION = 3
HEADER_WORDS = 16
_MAGIC = 0x4D454455  # "MEDU"


def _none() -> Ints:
    return np.zeros(0, dtype=np.int64)


class Op(IntEnum):
    """What a message asks of a rank. Admissions are part of STEP, so there is one broadcast per step."""

    STEP = 1
    HEARTBEAT = 2
    READY = 3  # warm-up is over
    STOP = 4


@dataclass(frozen=True)
class Plan:
    """One step of S sequences. Sequence s computes num_new_tokens[s] known tokens and then num_draft_tokens[s] draft
    tokens.

    The KV indices (positions in its block table) of its rows are num_computed_tokens[s], num_computed_tokens[s] + 1,
    ...: known tokens first, then draft tokens in tree order. Entry num_kept_blocks[s] + i of the block table becomes
    the i-th of its new blocks; previous entries from num_kept_blocks[s] on are dropped.
    Copies of KV rows (between physical slots) are done before any row is written.
    """

    op: Op
    generation: int
    step: int
    graph_rows: int = 0  # the captured step that runs it (graph_buckets.py); 0: none
    admitted_indices: Ints = field(default_factory=_none)  # [A] batch indices of sequences admitted in this step
    admitted_seeds: Ints = field(default_factory=_none)  # [A]
    admitted_temperatures: Ints = field(default_factory=_none)  # [A] float64, bit-cast
    admitted_full_logits: Ints = field(
        default_factory=_none
    )  # [A] 1: full logits are gathered to rank 0, 0: each shard computes its argmax
    batch_indices: Ints = field(default_factory=_none)  # [S]
    num_computed_tokens: Ints = field(default_factory=_none)  # [S]
    num_new_tokens: Ints = field(default_factory=_none)  # [S] >= 1
    num_draft_tokens: Ints = field(default_factory=_none)  # [S] >= 0
    needs_logits: Ints = field(
        default_factory=_none
    )  # [S] 1: logits of the last known token and of all draft tokens are needed
    num_prompt_logprobs: Ints = field(
        default_factory=_none
    )  # [S] number of leading rows whose next prompt token needs a logprob; or []
    num_top_logprobs: Ints = field(
        default_factory=_none
    )  # [S] number of top tokens returned with each prompt logprob; or []
    prompt_targets: Ints = field(default_factory=_none)  # [sum of num_prompt_logprobs] those prompt tokens
    num_kept_blocks: Ints = field(default_factory=_none)  # [S] block table entries that stay
    num_new_blocks: Ints = field(default_factory=_none)  # [S] how many of `blocks` belong to this sequence
    token_ids: Ints = field(default_factory=_none)  # [T] sequence by sequence
    parents: Ints = field(default_factory=_none)  # [sum of num_draft_tokens] within each tree, ROOT = -1
    blocks: Ints = field(default_factory=_none)  # [sum of num_new_blocks]
    copy_sources: Ints = field(default_factory=_none)  # [C] KV slots
    copy_targets: Ints = field(default_factory=_none)  # [C]

    def pack(self) -> Ints:
        """The plan as one int64 array: header (HEADER_WORDS words and one length per section), then the sections."""
        sections = [getattr(self, name) for name in _SECTIONS]
        header = np.zeros(HEADER_WORDS + len(_SECTIONS), dtype=np.int64)
        total = header.size + sum(section.size for section in sections)
        header[:7] = (_MAGIC, WIRE_VERSION, self.generation, self.step, self.op, total, self.graph_rows)
        header[HEADER_WORDS:] = [section.size for section in sections]
        return np.concatenate([header, *sections])

    @classmethod
    def unpack(cls, words: Ints, generation: int, step: int) -> "Plan":
        """The plan in `words`. Raises GroupError if it is not the expected one: ranks are then out of sync."""
        magic, version, sent_generation, sent_step, op, _, graph_rows = (int(word) for word in words[:7])
        if (magic, version) != (_MAGIC, WIRE_VERSION):
            raise GroupError(f"expected a plan of version {WIRE_VERSION}, received {magic:#x}, version {version}")
        if (sent_generation, sent_step) != (generation, step):
            raise GroupError(
                f"rank 0 is at step {sent_step} of generation {sent_generation}, this rank expects step {step} of "
                f"generation {generation}"
            )
        parts: dict[str, Any] = {}
        begin = HEADER_WORDS + len(_SECTIONS)
        for name, size in zip(_SECTIONS, words[HEADER_WORDS:begin], strict=True):
            parts[name] = words[begin : begin + int(size)]
            begin += int(size)
        return cls(op=Op(op), generation=sent_generation, step=sent_step, graph_rows=graph_rows, **parts)


_SECTIONS = tuple(f.name for f in fields(Plan) if f.name not in ("op", "generation", "step", "graph_rows"))


def packed_words(words: Ints) -> int:
    """Length of a packed plan, read from its header."""
    return int(words[5])


def bits_of(value: float) -> int:
    """A float64 as the int64 with the same bits."""
    return int(np.float64(value).view(np.int64))

"""StepBuffers: the static arrays that a captured step reads, filled on the host and uploaded in one copy.

Owns their layout and how a plan is written to them. Not here: the rows of a plan (batch_builder.py), what reads them
(graphed_steps.py).
Rows after the plan's are padding: they write to the scratch block, and nothing reads their results.
Shapes: N rows of the step, padding included, C most KV rows that are copied.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medusa_dist.ops.arrays import Array, Ints
from medusa_dist.ops.attention.backend import BatchLayout, StaticForm
from medusa_dist.ops.attention.metadata import Section, StepSizes

_ALIGNMENT = 16  # bytes, of each array


@dataclass(frozen=True)
class StepRows:
    """What is written of a plan besides attention's metadata: host arrays of its rows, and how noise and temperature of
    each row's token are."""

    input_ids: Ints
    positions: Ints
    slot_mapping: Ints
    seeds: Ints
    temperatures: Array  # float32
    copy_sources: Ints  # [at most C]
    copy_targets: Ints


class StepBuffers:
    """One size of step. host and device hold the same arrays; memory on the device may be shared with other sizes."""

    def __init__(self, sizes: StepSizes, form: StaticForm, num_copies: int, memory: tuple[Tensor, Tensor]) -> None:
        """memory: at least num_bytes bytes on the host (pinned, for a GPU) and on the device."""
        self.sizes = sizes
        self._form = form
        sections = _sections(sizes, form, num_copies)
        self.num_bytes = _size(sections)
        self._host, self._device = memory[0][: self.num_bytes], memory[1][: self.num_bytes]
        self.arrays: dict[str, Array] = {}
        self.tensors: dict[str, Tensor] = {}
        begin = 0
        for name, (shape, dtype) in sections.items():
            size = math.prod(shape) * np.dtype(dtype).itemsize
            self.arrays[name] = self._host.numpy()[begin : begin + size].view(dtype).reshape(shape)
            kind = torch.from_numpy(np.zeros(0, dtype)).dtype
            self.tensors[name] = self._device[begin : begin + size].view(kind).view(shape)
            begin += _padded(size)
        self.metadata = form.metadata(self.tensors)

    @staticmethod
    def needed_bytes(sizes: StepSizes, form: StaticForm, num_copies: int) -> int:
        """Bytes of the arrays of a step of this size."""
        return _size(_sections(sizes, form, num_copies))

    def fill(self, rows: StepRows, layout: BatchLayout) -> None:
        """Write every element and upload.

        The device has read the last step's arrays: rank 0 sends a plan only after it got all ranks' scores of the last.
        """
        for name in ("input_ids", "positions", "slot_mapping", "seeds", "temperatures", "copy_sources", "copy_targets"):
            values, target = getattr(rows, name), self.arrays[name]
            target[: values.size] = values
            target[values.size :] = 0
        self._form.fill(layout, self.arrays)
        self._device.copy_(self._host, non_blocking=True)


def _sections(sizes: StepSizes, form: StaticForm, num_copies: int) -> dict[str, Section]:
    numbers = {name: Section((sizes.rows,), "<i8") for name in ("input_ids", "positions", "slot_mapping", "seeds")}
    copies = {name: Section((num_copies,), "<i8") for name in ("copy_sources", "copy_targets")}
    return {**numbers, **copies, "temperatures": Section((sizes.rows,), "<f4"), **form.sections(sizes)}


def _size(sections: dict[str, Section]) -> int:
    return sum(_padded(math.prod(shape) * np.dtype(dtype).itemsize) for shape, dtype in sections.values())


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT

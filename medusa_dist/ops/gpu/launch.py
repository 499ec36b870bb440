"""KernelLaunch: one call of a Triton kernel, as data.

Owns how kernels are started, and the recording of launches in place of starting them: what is recorded can be compiled
for a GPU that is not there (check/gpu_kernels.py), and the code around kernels can run on fake tensors. Not here: the
kernels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class KernelLaunch:
    """kernel[grid](**arguments, **constants). constants: compile-time arguments, which make a kernel of their own."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 2

    def run(self) -> None:
        """Start the kernel, unless launches are being recorded. An empty grid does nothing.

        Multiply-adds are never fused behind our back: where the same sum is written in two kernels, it has to have the
        same bits, and kernels that stand for torch's operations have to round where those round.
        """
        if _recorders:
            _recorders[-1].append(self)
        elif all(self.grid):
            self.kernel[self.grid](
                **self.arguments,
                **self.constants,
                num_warps=self.num_warps,
                num_stages=self.num_stages,
                enable_fp_fusion=False,
            )


_recorders: list[list[KernelLaunch]] = []


@contextmanager
def recorded() -> Iterator[list[KernelLaunch]]:
    """Within the block, launches are appended to the list and not started: outputs keep whatever memory they got."""
    launches: list[KernelLaunch] = []
    _recorders.append(launches)
    try:
        yield launches
    finally:
        _recorders.pop()

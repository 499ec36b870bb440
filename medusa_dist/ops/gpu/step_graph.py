"""StepGraph: a function without arguments that is captured once and replayed with new data in its static tensors.

Owns capture and replay as a CUDA graph, and the plain call that stands for it where there is no GPU. Not here: what is
captured (engine/runner/graphed_steps.py).
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

Captured = Callable[[], tuple[Tensor, ...]]
_WARM_UPS = 2  # calls before the capture: kernels are compiled, libraries allocate their workspaces


class StepGraph(Protocol):
    """outputs: static tensors, valid from one replay to the next replay of any graph that shares the memory."""

    outputs: tuple[Tensor, ...]

    def replay(self) -> None:
        """Compute the outputs from what the static inputs hold now."""


class PlainCall:
    """The function itself, called anew each time; its results are copied to the same tensors, as a graph's are."""

    def __init__(self, function: Captured) -> None:
        self._function = function
        self.outputs = tuple(output.clone() for output in function())

    def replay(self) -> None:
        """Call the function."""
        for static, made in zip(self.outputs, self._function(), strict=True):
            static.copy_(made)


class CudaGraph:
    """The function as one CUDA graph. memory: pool that is shared with other graphs, which do not run meanwhile.

    Capture is collective where the function has collectives: all ranks capture the same functions in the same order.
    """

    def __init__(self, function: Captured, memory: Any = None) -> None:
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                function()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=memory):
            self.outputs = function()

    def replay(self) -> None:
        """Launch the graph."""
        self._graph.replay()

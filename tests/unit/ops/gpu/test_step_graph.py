"""A captured function and its stand-in: static outputs, computed from what the static inputs hold."""

from functools import partial

import pytest
import torch

from medusa_dist.ops.gpu.step_graph import CudaGraph, PlainCall, StepGraph


def check(graph: StepGraph, x: torch.Tensor) -> None:
    first, total = graph.outputs
    for value in (3.0, -1.0):
        x.fill_(value)
        first.fill_(torch.nan)
        graph.replay()
        assert graph.outputs[0] is first and first.tolist() == [2 * value] * 4 and float(total) == 8 * value


def doubled(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    y = x * 2
    return y, y.sum()


def test_a_plain_call_writes_to_the_tensors_of_its_first_call() -> None:
    x = torch.ones(4)
    check(PlainCall(partial(doubled, x)), x)


@pytest.mark.gpu
def test_a_cuda_graph_replays_with_new_data() -> None:
    x = torch.ones(4, device="cuda")
    memory = torch.cuda.graph_pool_handle()
    for _ in range(2):
        check(CudaGraph(partial(doubled, x), memory), x)


@pytest.mark.gpu
def test_a_function_that_waits_for_the_device_cannot_be_captured() -> None:
    x = torch.ones(4, device="cuda")
    with pytest.raises(RuntimeError):
        CudaGraph(lambda: (x * x.sum().item(),))

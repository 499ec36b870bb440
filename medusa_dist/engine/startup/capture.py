"""Captures steps as CUDA graphs when a rank starts, if the config, the device and the model allow it.

Owns that decision, and the memory that graphs take. Not here: what is captured (runner/graphed_steps.py), for which
numbers of rows (runner/graph_buckets.py), which of them a step takes (scheduler/scheduler.py).
"""

import logging
from functools import partial

import torch

from medusa_dist.config import Config
from medusa_dist.engine.runner.graph_buckets import graph_buckets
from medusa_dist.engine.runner.graphed_steps import GraphMaker, GraphSettings
from medusa_dist.engine.runner.worker import Worker
from medusa_dist.ops.attention.backend import AttentionBackend
from medusa_dist.ops.gpu.step_graph import CudaGraph

logger = logging.getLogger(__name__)


def why_eager(config: Config, device: torch.device, attention: AttentionBackend, fits: bool) -> str | None:
    """Why this rank launches kernels one by one; None if it can capture steps. fits: a layer of the heads that follows
    all rows, if there is one, has the model's head shape."""
    if device.type != "cuda":
        return f"{device.type} has no CUDA graphs"
    if config.cuda_graphs == "off":
        return "cuda_graphs: off"
    if attention.static_form is None:
        return "attention_backend: only triton can be captured"
    return None if fits else "the heads' prefix layer has another head shape than the model"


def capture_steps(worker: Worker, config: Config, reason: str | None, make: GraphMaker | None = None) -> str:
    """Capture steps on all ranks, or on none. Called by all together.

    reason: why_eager of this rank. make: captures a function; None: as a CUDA graph. Returns what was done, for the
    facts.
    """
    parallel = worker.model.parallel
    if not parallel.all_reduce_min(int(reason is None)):
        reason = reason or "another rank cannot capture steps"
        logger.info("kernels are launched one by one: %s", reason)
        return f"no: {reason}"
    max_running, max_blocks = worker.table_shape
    buckets = graph_buckets(max_running, config.speculation.most_nodes)
    make = make or partial(CudaGraph, memory=torch.cuda.graph_pool_handle())
    failure = ""
    try:
        worker.capture(GraphSettings(buckets, max_running, max_blocks, config.speculation.most_nodes, make))
    except RuntimeError as error:  # of torch: an operation that waits for the device, or whose shapes depend on data
        failure = str(error).splitlines()[0]
        logger.warning("steps cannot be captured, kernels are launched one by one: %s", failure)
    if not parallel.all_reduce_min(int(not failure)):
        worker.drop_graphs()
        return f"no: {failure or 'another rank could not'}"
    return f"steps of up to {buckets[-1]} rows"


def graph_bytes(worker: Worker, config: Config, reason: str | None, device: torch.device) -> int:
    """GPU memory that captured steps take, measured with a small cache; called by all ranks together."""
    torch.cuda.synchronize(device)
    before, _ = torch.cuda.mem_get_info(device)
    capture_steps(worker, config, reason)
    torch.cuda.synchronize(device)
    after, _ = torch.cuda.mem_get_info(device)
    worker.drop_graphs()
    return max(0, before - after)

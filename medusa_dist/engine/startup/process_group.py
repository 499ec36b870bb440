"""The device of a rank, and how ranks connect: TCP store and process groups.

Owns ports, timeouts and backends of torch.distributed. Not here: the messages (engine/runner/broadcast.py), the sockets
that carry them on one node (control.py).
"""

import socket
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from medusa_dist.config import Config
from medusa_dist.engine.runner.broadcast import Control
from medusa_dist.engine.startup.control import GlooControl, connect_on_node
from medusa_dist.errors import ConfigError
from medusa_dist.ops.dtypes import choose_dtype, dtype_name
from medusa_dist.ops.tp_group import TPGroup

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def choose_device(config: Config) -> torch.device:
    """The device of this process. Raises ConfigError if cuda is configured and not available."""
    if config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("device: cuda is configured, but torch sees no GPU; set device: cpu, or check the driver")
    return torch.device("cuda", 0)


def agree_on_dtype(name: str, device: torch.device, parallel: TPGroup) -> torch.dtype:
    """The dtype of a config's name on this device; called by all ranks together. Raises ConfigError if `auto` means
    different dtypes on different machines."""
    dtype = choose_dtype(name, device)
    number = _DTYPES.index(dtype)
    lowest, highest = parallel.all_reduce_min(number), -parallel.all_reduce_min(-number)
    if lowest != highest:
        both = f"{dtype_name(_DTYPES[lowest])} and {dtype_name(_DTYPES[highest])}"
        raise ConfigError(f"dtype: auto means {both} on the ranks' different machines; name one of them")
    return dtype


def open_store(world: int, host: str, timeout_s: float) -> TCPStore:
    """Rank 0's rendezvous store on a free port (store.port), bound to `host` only and not to every interface."""
    listener = socket.create_server((host, 0))
    return TCPStore(
        host,
        listener.getsockname()[1],
        world,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_s),
        master_listen_fd=listener.detach(),
    )


def join_store(host: str, port: int, world: int, timeout_s: float) -> TCPStore:
    """Connect to rank 0's store from ranks > 0."""
    timeout = timedelta(seconds=timeout_s)
    return TCPStore(host, port, world, is_master=False, wait_for_workers=False, timeout=timeout)


def join_group(
    config: Config, device: torch.device, rank: int, store: Store | None, generation: int
) -> tuple[TPGroup, Control | None]:
    """Data group (nccl on GPUs, else gloo), and what carries plans; no groups for a single rank."""
    world = config.tensor_parallel_size
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world == 1:
        return TPGroup(), None
    assert store is not None, "several ranks need a rendezvous store"
    timeout = timedelta(seconds=config.timeouts.load_s)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend, store=PrefixStore(f"data{generation}", store), rank=rank, world_size=world, timeout=timeout
    )
    parallel = TPGroup(rank, world, dist.group.WORLD)
    # Loading may take minutes, a step may not: plans have the deadline of a step.
    step_s = config.timeouts.step_s
    own = PrefixStore(f"control{generation}", store)
    control: Control | None = connect_on_node(rank, world, own, parallel.all_reduce_min, step_s)
    if control is None:
        control = GlooControl(dist.new_group(backend="gloo", timeout=timedelta(seconds=step_s)))
    return parallel, control

"""From a Config to a running rank: process groups, model shard, KV pool, heads, engine, warm-up.

Owns the order of starting and how memory is shared out. The same code runs on every rank and all ranks go through it
together; only rank 0 adds heads and engine. Not here: Ray (serve/), the parts themselves.
"""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from transformers import AutoTokenizer

from medusa_dist.config import Config, Paths
from medusa_dist.engine.engine import Engine
from medusa_dist.engine.runner.broadcast import Ranks
from medusa_dist.engine.runner.plan import Op
from medusa_dist.engine.runner.worker import Worker
from medusa_dist.engine.scheduler.scheduler import Scheduler
from medusa_dist.engine.spec.drafter import Drafter
from medusa_dist.engine.spec.token_selector import Chooser
from medusa_dist.engine.spec.tree_policy import Speculation
from medusa_dist.engine.startup.head_check import MAX_TOKENS, check_heads, text_ids
from medusa_dist.engine.startup.kv_sizing import MIN_BLOCKS, DeviceMemory, kv_blocks
from medusa_dist.engine.startup.step_cost import measure_step_cost
from medusa_dist.engine.startup.workspace import PeakMeter, profile_blocks, workspace_bytes
from medusa_dist.engine.state.block_pool import BlockPool, blocks_for
from medusa_dist.engine.state.limits import Limits
from medusa_dist.engine.state.matcher import Grammars
from medusa_dist.errors import ConfigError
from medusa_dist.medusa.heads.heads_file import HeadsFile, read_heads
from medusa_dist.medusa.heads.sequential import build_heads, drafting_dtype
from medusa_dist.medusa.trees.draft import NUM_RANKS
from medusa_dist.medusa.trees.tree import check_paths
from medusa_dist.model.fingerprint import fingerprint
from medusa_dist.model.load import ShardedModel, load_full_rows, load_model
from medusa_dist.model.source.eos import eos_token_ids
from medusa_dist.model.source.resolve_model import resolve_source
from medusa_dist.model.support_check import output_width, read_config
from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS, KVPool, block_bytes
from medusa_dist.ops.attention.padded import default_backend, key_chunk
from medusa_dist.ops.huge_pages import use_huge_pages
from medusa_dist.ops.noise import NOISE_VERSION
from medusa_dist.ops.tp_group import Parallel

_SHIPPED_HEADS = {"demo:smollm2-135m": "smollm2-135m"}


def choose_device(config: Config) -> torch.device:
    """The device of this process. Raises ConfigError if cuda is asked for and not there."""
    if config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("device: cuda is asked for, but torch sees no GPU; set device: cpu, or check the driver")
    return torch.device("cuda", 0)


def open_store(world: int, host: str, timeout_s: float) -> TCPStore:
    """Rank 0's meeting point on a free port (store.port), bound to `host` alone and not to every interface."""
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
    """The meeting point, from ranks > 0."""
    timeout = timedelta(seconds=timeout_s)
    return TCPStore(host, port, world, is_master=False, wait_for_workers=False, timeout=timeout)


def join_group(
    config: Config, device: torch.device, rank: int, store: Store | None, generation: int
) -> tuple[Parallel, dist.ProcessGroup | None]:
    """Data group (nccl on GPUs) and control group (always gloo: plans live on the host); none for a rank alone."""
    world = config.tensor_parallel_size
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world == 1:
        return Parallel(), None
    assert store is not None, "several ranks need a store to meet at"
    timeout = timedelta(seconds=config.timeouts.load_s)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend, store=PrefixStore(f"data{generation}", store), rank=rank, world_size=world, timeout=timeout
    )
    # Loading may take minutes, a step may not: the control group has the step's deadline.
    control = dist.new_group(backend="gloo", timeout=timedelta(seconds=config.timeouts.step_s))
    return Parallel(rank, world, dist.group.WORLD), control


def model_folder(config: Config) -> Path:
    """The model's folder on this node, fetched or made if it is not there yet. Raises ModelError."""
    return resolve_source(config.model, config.revision)


def find_heads(config: Config) -> Path | None:
    """The folder of the heads: the one named, or what ships for the demo model; None: serve without speculation."""
    if config.speculation.mode == "off":
        return None
    if config.heads.source is not None:
        local = Path(config.heads.source).expanduser()
        return local if local.is_dir() else resolve_source(config.heads.source)
    shipped = _SHIPPED_HEADS.get(config.model)
    return None if shipped is None else Path(__file__).parents[2] / "data" / "heads" / shipped


class EngineRank:
    """One rank's whole stack below Ray. engine: on rank 0 only. facts: what was found and how long phases took."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        rank: int = 0,
        store: Store | None = None,
        generation: int = 0,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.config = config
        self.engine: Engine | None = None
        self._device = choose_device(config)
        if config.resources.threads_per_rank is not None:
            torch.set_num_threads(config.resources.threads_per_rank)
        self._seconds: dict[str, float] = {}
        self._heads_check: str | None = None
        with self._phase("connect", progress):
            parallel, control = join_group(config, self._device, rank, store, generation)
        with self._phase("load", progress):
            heads = self._read_heads(folder) if rank == 0 else None
            model = load_model(
                folder,
                dtype=getattr(torch, config.dtype),
                device=self._device,
                parallel=parallel,
                trust_remote_code=config.trust_remote_code,
                taps=() if heads is None else heads.description.taps,
            )
            drafter = None if heads is None else make_drafter(heads, model, config.speculation.tree)
        with self._phase("warm up", progress):
            self._max_model_len = min(config.max_model_len or model.max_position, model.max_position)
            memory = self._memory(model, drafter, control, generation)
            num_blocks = self._num_blocks(model, memory)
            # A context that the cache cannot hold cannot be served; what can is what /v1/models says.
            self._max_model_len = min(self._max_model_len, (num_blocks - 1) * BLOCK_TOKENS)
            self._ranks = Ranks(self._make_worker(model, num_blocks), control, generation)
            if self._device.type == "cpu":
                use_huge_pages()
            if rank == 0:
                self._heads_check = self._check_heads(drafter, folder)
                self._build_engine(model, drafter, folder)
            else:
                self._ranks.follow(until=Op.READY)
        self.facts = self._facts(model, drafter, folder)

    def _facts(self, model: ShardedModel, drafter: Drafter | None, folder: Path) -> dict[str, Any]:
        return {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "device": str(self._device),
            "weight_bytes": model.weight_bytes(),
            "kv_blocks": self._ranks.worker.pool.num_blocks,
            "max_model_len": self._max_model_len,
            "vocab_size": model.vocab_size,
            "speculation": self._describe(drafter),
            "heads_check": self._heads_check,
            "fingerprint": fingerprint(folder),
            "noise_version": NOISE_VERSION,
            "seconds": self._seconds,
        }

    def follow(self) -> None:
        """Ranks > 0: execute plans until rank 0 says stop."""
        self._ranks.follow()

    @contextmanager
    def _phase(self, name: str, progress: Callable[[str], None]) -> Iterator[None]:
        progress(name)
        begin = time.perf_counter()
        yield
        self._seconds[name] = round(time.perf_counter() - begin, 3)

    def _read_heads(self, folder: Path) -> HeadsFile | None:
        """Read and check the heads before the model is loaded: a misfit costs seconds, not minutes."""
        where = find_heads(self.config)
        if where is None:
            return None
        file = read_heads(where)
        base = read_config(folder, self.config.trust_remote_code)
        found = fingerprint(folder) if file.description.base.fingerprint else None
        file.check_base(output_width(base), base.vocab_size, found, self.config.heads.allow_untrained)
        file.check_layers(int(base.num_hidden_layers), int(base.hidden_size))
        if self.config.speculation.tree is not None:
            known = file.description.draft_vocab_size or file.description.base.vocab_size
            check_paths(self.config.speculation.tree, file.description.num_heads, min(NUM_RANKS, known))
        return file

    def _memory(
        self, model: ShardedModel, drafter: Drafter | None, control: dist.ProcessGroup | None, generation: int
    ) -> DeviceMemory | None:
        """What this rank's GPU has left for a KV cache; None on a CPU, or where the config says how large it is."""
        if self._device.type == "cpu" or self.config.kv_cache_tokens is not None:
            return None
        bytes_each = block_bytes(model.num_layers, model.num_kv_heads, model.head_dim, model.dtype)
        free, _ = torch.cuda.mem_get_info(self._device)
        small = profile_blocks(self.config, self._max_model_len, bytes_each, int(model.parallel.minimum(free)))
        ranks = Ranks(self._make_worker(model, small + 1), control, generation)
        workspace = workspace_bytes(ranks, self.config, drafter, PeakMeter(self._device))
        del ranks
        torch.cuda.empty_cache()
        return DeviceMemory(*torch.cuda.mem_get_info(self._device), workspace)

    def _num_blocks(self, model: ShardedModel, memory: DeviceMemory | None) -> int:
        """KV blocks of the pool, the scratch block included; the same on all ranks: the least that any can hold."""
        bytes_each = block_bytes(model.num_layers, model.num_kv_heads, model.head_dim, model.dtype)
        count = kv_blocks(self.config, self._max_model_len, model.num_layers, bytes_each, memory)
        count = int(model.parallel.minimum(count))
        if count < MIN_BLOCKS:
            raise ConfigError(
                "memory_fraction: no room for a KV cache beside the weights; raise it, lower max_running, use more "
                "ranks (tensor_parallel_size) or a narrower dtype"
            )
        return count + 1

    def _make_worker(self, model: ShardedModel, num_blocks: int) -> Worker:
        pool = KVPool.allocate(
            model.num_layers, model.num_kv_heads, model.head_dim, num_blocks, model.dtype, self._device
        )
        max_blocks = blocks_for(self._max_model_len + self.config.speculation.most_nodes)
        return Worker(model, pool, self.config.max_running, max_blocks, default_backend(self._device, model.dtype))

    def _check_heads(self, drafter: Drafter | None, folder: Path) -> str | None:
        """Refuse heads that guess no better than chance; what was found, None without heads or if that is allowed."""
        if drafter is None or self.config.heads.allow_untrained:
            return None
        ids = text_ids(folder)[: self._max_model_len]
        found = check_heads(self._ranks, drafter, ids, min(MAX_TOKENS, self.config.max_batched_tokens))
        found.refuse_chance()
        return str(found)

    def _build_engine(self, model: ShardedModel, drafter: Drafter | None, folder: Path) -> None:
        config, eos_ids = self.config, eos_token_ids(folder)
        cost = measure_step_cost(self._ranks, config, self._max_model_len, drafter)
        speculation = Speculation(config.speculation, cost, key_chunk(default_backend(self._device, model.dtype)))
        limits = Limits(
            max_running=config.max_running,
            max_batched_tokens=config.max_batched_tokens,
            max_model_len=self._max_model_len,
            vocab_size=model.vocab_size,
            eos_ids=eos_ids,
        )
        pool = BlockPool(self._ranks.worker.pool.num_blocks)
        scheduler = Scheduler(limits, pool, speculation, self._ranks.generation)
        chooser = Chooser(model.vocab_size, eos_ids, self._device)
        read = partial(
            AutoTokenizer.from_pretrained, folder, trust_remote_code=config.trust_remote_code, local_files_only=True
        )
        grammars = Grammars(read, model.vocab_size, eos_ids)
        self.engine = Engine(scheduler, self._ranks, chooser, drafter, speculation, grammars)

    def _describe(self, drafter: Drafter | None) -> str:
        if drafter is not None:
            return (
                f"medusa: {drafter.num_heads} heads, at most {self.config.speculation.most_nodes} drafted tokens a step"
            )
        return "off" if self.config.speculation.mode == "off" else "off: no heads for this model"


def make_drafter(file: HeadsFile, model: ShardedModel, static: Paths | None = None) -> Drafter:
    """Heads on rank 0, with the output rows and input embedding they need, read by slices from the checkpoint.

    static: the only tree they will draft for, if there is one.
    """
    shared = file.description.lm_head == "shared"
    rows = load_full_rows(model, "output", file.draft_vocab) if shared else None
    heads = build_heads(file, rows, drafting_dtype(file, model.dtype, model.device), model.device)
    embedding = load_full_rows(model, "input") if heads.needs_embedding else None
    return Drafter(heads, embedding, model.vocab_size, static)

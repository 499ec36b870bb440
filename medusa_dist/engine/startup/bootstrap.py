"""EngineRank: starts a rank: groups, model shard, KV cache, heads, engine, warm-up.

Owns the order of start-up. Not here: Ray (serve/), the division of memory (kv_sizing.py), the parts themselves.
The same code runs on every rank, and all ranks call it together; only rank 0 adds heads and engine.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch._C._distributed_c10d import Store

from medusa_dist.config import HEADS, LOOKUP, Config
from medusa_dist.engine.drafters.context_drafter import ContextDrafter
from medusa_dist.engine.drafters.drafter import Drafter
from medusa_dist.engine.engine import Engine
from medusa_dist.engine.runner.broadcast import Control, RankGroup
from medusa_dist.engine.runner.plan import Op
from medusa_dist.engine.runner.worker import Worker
from medusa_dist.engine.scheduler.scheduler import Scheduler
from medusa_dist.engine.spec.token_selector import TokenSelector
from medusa_dist.engine.spec.tree_policy import TreePolicy
from medusa_dist.engine.startup.capture import capture_steps, graph_bytes, why_eager
from medusa_dist.engine.startup.find_heads import find_heads, make_drafters, read_source
from medusa_dist.engine.startup.head_check import MAX_TOKENS, check_heads, text_ids
from medusa_dist.engine.startup.kv_sizing import MIN_BLOCKS, DeviceMemory, kv_blocks
from medusa_dist.engine.startup.process_group import agree_on_dtype, choose_device, join_group, join_store, open_store
from medusa_dist.engine.startup.step_cost import measure_step_cost
from medusa_dist.engine.startup.workspace import PeakMeter, profile_blocks, workspace_bytes
from medusa_dist.engine.state.block_pool import BlockPool, blocks_for
from medusa_dist.engine.state.limits import Limits
from medusa_dist.engine.state.matcher import GrammarCompiler
from medusa_dist.engine.steps.log import LoggedModel, StepLog
from medusa_dist.errors import ConfigError
from medusa_dist.medusa.published.reader import AnyHeads
from medusa_dist.medusa.trees.draft import DRAFT_TOP_K
from medusa_dist.medusa.trees.tree import check_paths
from medusa_dist.model.context_length import check_cache_holds, context_length, resolve_max_model_len
from medusa_dist.model.fingerprint import fingerprint
from medusa_dist.model.fused_modules import choose_kernels
from medusa_dist.model.load import ShardedModel, load_model
from medusa_dist.model.source.eos import eos_token_ids
from medusa_dist.model.source.load_tokenizer import load_tokenizer
from medusa_dist.model.source.resolve_model import model_folder
from medusa_dist.model.source.sampling_defaults import sampling_defaults
from medusa_dist.model.support_check import output_width, read_config
from medusa_dist.ops.attention.backend import AttentionBackend
from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS, KVCache, block_bytes
from medusa_dist.ops.attention.registry import BACKENDS, TRITON, resolve_backend
from medusa_dist.ops.cpu.huge_pages import use_huge_pages
from medusa_dist.ops.dtypes import dtype_name
from medusa_dist.ops.noise import NOISE_VERSION

logger = logging.getLogger(__name__)

__all__ = ["EngineRank", "build_rank", "join_store", "model_folder", "open_store"]


class EngineRank:
    """Everything a rank holds below Ray. engine: on rank 0 only. facts: what was found, and duration of the phases."""

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
        # Read first, so that an invalid value costs seconds.
        self._sampling_defaults = sampling_defaults(folder, config.generation_config) if rank == 0 else {}
        with self._phase("connect", progress):
            parallel, control = join_group(config, self._device, rank, store, generation)
        with self._phase("load", progress):
            context = context_length(read_config(folder, config.trust_remote_code))
            self._max_model_len = resolve_max_model_len(config.max_model_len, context)
            heads = self._read_heads(folder) if rank == 0 else None
            dtype = agree_on_dtype(config.dtype, self._device, parallel)
            model = load_model(
                folder,
                dtype=dtype,
                device=self._device,
                parallel=parallel,
                trust_remote_code=config.trust_remote_code,
                aux_layers=() if heads is None else self._aux_layers(heads, folder),
                kernels=choose_kernels(self._backend_name(dtype), self._device, dtype),
                quantization=config.quantization,
            )
            drafters = make_drafters(config.speculation, heads, model) if rank == 0 else {}
        with self._phase("warm up", progress):
            memory = self._memory(model, drafters, control, generation)
            num_blocks = self._num_blocks(model, drafters, memory)
            self._max_model_len = self._fit_cache((num_blocks - 1) * BLOCK_TOKENS)
            if self._device.type == "cpu":
                use_huge_pages()  # of what exists by now; the KV cache asks for its own
            self._ranks = RankGroup(self._make_worker(model, drafters, num_blocks), control, generation)
            self._graphs = capture_steps(self._ranks.worker, config, self._why_eager(model, self._ranks.worker))
            if rank == 0:
                self._heads_check = self._check_heads(drafters.get(HEADS), folder)
                self._build_engine(model, drafters, folder)
            else:
                self._ranks.follower_loop(until=Op.READY)
        self.facts = self._facts(model, drafters, folder)

    def _facts(self, model: ShardedModel, drafters: Mapping[str, Drafter], folder: Path) -> dict[str, Any]:
        return {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "device": str(self._device),
            "dtype": dtype_name(model.dtype),
            "quantization": self.config.quantization,
            "attention_backend": self._backend_name(model.dtype),
            "cuda_graphs": self._graphs,
            "weight_bytes": model.weight_bytes(),
            "kv_blocks": self._ranks.worker.pool.num_blocks,
            "max_model_len": self._max_model_len,
            "vocab_size": model.vocab_size,
            "speculation": self._describe(drafters),
            "default_sampling_params": self._sampling_defaults,
            "heads_check": self._heads_check,
            "fingerprint": fingerprint(folder),
            "noise_version": NOISE_VERSION,
            "seconds": self._seconds,
        }

    @property
    def collective_seconds(self) -> float:
        """Wall time of this rank in collectives since its start."""
        return self._ranks.worker.model.parallel.clock.seconds

    def follow(self) -> None:
        """Ranks > 0: execute plans until rank 0 sends STOP."""
        self._ranks.follower_loop()

    @contextmanager
    def _phase(self, name: str, progress: Callable[[str], None]) -> Iterator[None]:
        progress(name)
        begin = time.perf_counter()
        yield
        self._seconds[name] = round(time.perf_counter() - begin, 3)

    def _read_heads(self, folder: Path) -> AnyHeads | None:
        """Read and check the heads before the model is loaded, so that a mismatch costs seconds, not minutes."""
        where = find_heads(self.config)
        if where is None:
            return None
        base = read_config(folder, self.config.trust_remote_code)
        file = read_source(where, self.config.model, base)
        found = fingerprint(folder) if file.fingerprint else None
        file.check_base(output_width(base), base.vocab_size, found, self.config.heads.allow_untrained)
        file.check_layers(int(base.num_hidden_layers), int(base.hidden_size))
        if self.config.speculation.tree is not None:
            check_paths(self.config.speculation.tree, file.num_levels, min(DRAFT_TOP_K, file.num_known))
        return file

    def _aux_layers(self, heads: AnyHeads, folder: Path) -> tuple[int, ...]:
        return heads.aux_layers(int(read_config(folder, self.config.trust_remote_code).num_hidden_layers))

    def _memory(
        self, model: ShardedModel, drafters: Mapping[str, Drafter], control: Control | None, generation: int
    ) -> DeviceMemory | None:
        """GPU memory left for the KV cache on this rank; None on a CPU, or where the config sets the cache size."""
        if self._device.type == "cpu" or self.config.kv_cache_tokens is not None:
            return None
        bytes_each = _bytes_each(model, drafters)
        free, _ = torch.cuda.mem_get_info(self._device)
        small = profile_blocks(self.config, self._max_model_len, bytes_each, int(model.parallel.all_reduce_min(free)))
        ranks = RankGroup(self._make_worker(model, drafters, small + 1), control, generation)
        workspace = workspace_bytes(ranks, self.config, drafters.values(), PeakMeter(self._device))
        workspace += graph_bytes(ranks.worker, self.config, self._why_eager(model, ranks.worker), self._device)
        del ranks
        torch.cuda.empty_cache()
        return DeviceMemory(*torch.cuda.mem_get_info(self._device), workspace)

    def _num_blocks(self, model: ShardedModel, drafters: Mapping[str, Drafter], memory: DeviceMemory | None) -> int:
        """KV blocks of the cache, including the scratch block: the most that every rank can hold, the same on all."""
        bytes_each = _bytes_each(model, drafters)
        count = kv_blocks(self.config, self._max_model_len, model.num_layers, bytes_each, memory)
        count = int(model.parallel.all_reduce_min(count))
        if count < MIN_BLOCKS:
            raise ConfigError(
                "memory_fraction: no room for a KV cache next to the weights; raise it, lower max_running, use more "
                "ranks (tensor_parallel_size) or a narrower dtype"
            )
        return count + 1

    def _fit_cache(self, cache_tokens: int) -> int:
        """The context length to serve from a cache of that size; /v1/models reports it."""
        config = self.config
        fits = check_cache_holds(config.max_model_len, self._max_model_len, cache_tokens, config.kv_cache_tokens)
        if fits < self._max_model_len:
            logger.warning("the KV cache holds %d of the model's %d tokens of context", fits, self._max_model_len)
        return fits

    def _backend_name(self, dtype: torch.dtype) -> str:
        return resolve_backend(self.config.attention_backend, self._device, dtype)

    def _attention(self, model: ShardedModel) -> AttentionBackend:
        return BACKENDS[self._backend_name(model.dtype)](
            model.head_dim, model.num_heads // model.num_kv_heads, model.dtype
        )

    def _why_eager(self, model: ShardedModel, worker: Worker) -> str | None:
        return why_eager(self.config, self._device, self._attention(model), worker.reader_fits)

    def _make_worker(self, model: ShardedModel, drafters: Mapping[str, Drafter], num_blocks: int) -> Worker:
        attention, heads = self._attention(model), drafters.get(HEADS)
        pool = KVCache.allocate(
            *(model.num_layers, model.num_kv_heads, model.head_dim, num_blocks, model.dtype, self._device),
            keys_in_columns=attention.keys_in_columns,
        )
        max_blocks = blocks_for(self._max_model_len + self.config.speculation.most_nodes)
        reader = None if heads is None else heads.follow_rows(num_blocks, attention)
        uses_kernels = self._backend_name(model.dtype) == TRITON
        return Worker(model, pool, self.config.max_running, max_blocks, attention, reader, uses_kernels)

    def _check_heads(self, drafter: Drafter | None, folder: Path) -> str | None:
        """Refuse heads that are no better than chance. Returns the finding; None without heads or if not checked."""
        if drafter is None or self.config.heads.allow_untrained:
            return None
        ids = text_ids(folder)[: self._max_model_len]
        found = check_heads(self._ranks, drafter, ids, min(MAX_TOKENS, self.config.max_batched_tokens))
        found.refuse_chance()
        return str(found)

    def _build_engine(self, model: ShardedModel, drafters: Mapping[str, Drafter], folder: Path) -> None:
        config = self.config
        eos_ids = eos_token_ids(
            folder, model.vocab_size, config.trust_remote_code, with_tokenizer=not config.skip_tokenizer_init
        )
        cost = measure_step_cost(self._ranks, config, self._max_model_len, drafters)
        policy = TreePolicy(config.speculation, cost, self._attention(model).tree_alignment)
        limits = Limits(
            max_running=config.max_running,
            max_batched_tokens=config.max_batched_tokens,
            max_model_len=self._max_model_len,
            vocab_size=model.vocab_size,
            eos_ids=eos_ids,
            graph_buckets=self._ranks.worker.buckets,
        )
        pool = BlockPool(self._ranks.worker.pool.num_blocks)
        scheduler = Scheduler(limits, pool, policy, self._ranks.generation)
        token_selector = TokenSelector(model.vocab_size, eos_ids, self._device)
        read = partial(load_tokenizer, folder, config)
        grammars = None if config.skip_tokenizer_init else GrammarCompiler(read, model.vocab_size, eos_ids)
        self.engine = Engine(scheduler, self._ranks, token_selector, drafters, policy, grammars)
        if config.step_log is not None:
            self.engine.recorder.observers.append(self._step_log(Path(config.step_log), drafters, folder))

    def _step_log(self, path: Path, drafters: Mapping[str, Drafter], folder: Path) -> StepLog:
        generation = self._ranks.generation
        about = LoggedModel(self.config.model, str(folder), self._describe(drafters), generation, os.getpid())
        log = StepLog(path, about)
        if generation == 0:  # later ones go on without a log rather than not at all
            log.open()
        return log

    def _describe(self, drafters: Mapping[str, Drafter]) -> str:
        if not drafters:
            return "off" if self.config.speculation.mode == "off" else "off: no heads for this model"
        heads = drafters.get(HEADS)
        if isinstance(heads, ContextDrafter):
            parts = [f"EAGLE-3: {heads.max_depth} levels"]
        else:
            parts = [f"medusa: {heads.max_depth} heads"] if heads is not None else []
        parts += ["lookup"] if LOOKUP in drafters else []
        return f"{' and '.join(parts)}, at most {self.config.speculation.most_nodes} draft tokens per step"


def _bytes_each(model: ShardedModel, drafters: Mapping[str, Drafter]) -> int:
    """Bytes of a KV block on this rank: all layers of its shard, and a draft layer's keys and values."""
    own = block_bytes(model.num_layers, model.num_kv_heads, model.head_dim, model.dtype)
    return own + sum(drafter.kv_block_bytes for drafter in drafters.values())


# The RankFactory that serve/rank.py looks up in this module.
build_rank = EngineRank

"""Memory per rank, and whether it fits.

Owns the list of bytes and the messages about missing memory. Pure functions. Not here: a rank's weights
(model/sizing.py), sizing the KV cache (engine/startup/kv_sizing.py, also used at the start of a rank).
"""

import math
from dataclasses import dataclass

import torch

from medusa_dist.check.roofline import GPU
from medusa_dist.config import Config
from medusa_dist.engine.startup.kv_sizing import MIN_BLOCKS, DeviceMemory, gathered_block_bytes, kv_blocks
from medusa_dist.medusa.eagle3.checkpoint import Eagle3File
from medusa_dist.medusa.eagle3.layer import kv_block_bytes
from medusa_dist.medusa.heads.prefix_layer import PrefixLayer
from medusa_dist.medusa.heads.sequential import build_heads, drafting_dtype
from medusa_dist.medusa.published.reader import AnyHeads
from medusa_dist.model.sizing import RankSize
from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS, block_bytes

CONTEXT_BYTES = 1_000_000_000  # of a GPU process before any weights: CUDA context, cuBLAS, NCCL buffers; an estimate


@dataclass(frozen=True)
class DraftBytes:
    """What rank 0 holds besides its shard: heads, the lm_head rows shared with the model, the input embedding.

    kv_block: of a KV block of a draft layer; it is counted with the KV cache. read: read in one round of drafting.
    """

    heads: int = 0
    output_rows: int = 0
    embedding: int = 0
    kv_block: int = 0
    read: int = 0

    @property
    def total(self) -> int:
        """The sum."""
        return self.heads + self.output_rows + self.embedding


@dataclass(frozen=True)
class RankMemory:
    """One rank, in bytes. kv_blocks: its own maximum, without the scratch block. spare: bytes free for the KV cache."""

    rank: int
    weights: int
    draft: DraftBytes
    context: int
    block_bytes: int
    kv_blocks: int
    spare: int | None

    @property
    def fixed(self) -> int:
        """Everything except the KV cache and workspace."""
        return self.weights + self.draft.total + self.context


@dataclass(frozen=True)
class GroupMemory:
    """All ranks. kv_blocks: of every rank, the minimum over the ranks, without the scratch block.

    workspace: estimated bytes of the largest step's temporary tensors. reserve: kept free for them; None on a CPU.
    """

    ranks: tuple[RankMemory, ...]
    num_layers: int
    max_model_len: int
    kv_blocks: int
    workspace: int
    reserve: int | None

    @property
    def kv_tokens(self) -> int:
        """Tokens in the KV cache, for all sequences together."""
        return self.kv_blocks * BLOCK_TOKENS

    def kv_bytes(self, rank: RankMemory) -> int:
        """The KV cache's bytes on a rank, including the scratch block."""
        return (self.kv_blocks + 1) * rank.block_bytes


def draft_bytes(
    file: AnyHeads, output_rows: int, embedding_rows: int, dtype: torch.dtype, device: torch.device
) -> DraftBytes:
    """Bytes of the heads on rank 0, if its CPU is like this one. dtype, device: the model's.

    output_rows, embedding_rows: number of rows of the base model's lm_head and embedding.
    """
    drafting = drafting_dtype(file.dtype, dtype, device)
    if isinstance(file, Eagle3File):
        sizes = {name: t.numel() * drafting.itemsize for name, t in file.tensors.items()}
        width = file.config.hidden_size * drafting.itemsize
        embedding = sizes.pop("embed_tokens.weight", embedding_rows * width)
        rows = 0 if "lm_head.weight" in sizes else output_rows * width
        heads, once = sum(sizes.values()), sizes["fc.weight"]  # fuses the tapped states; the rest runs at each level
        read = once + file.num_levels * (heads - once + rows)
        return DraftBytes(heads, rows, embedding, kv_block_bytes(file.config, drafting), read)
    meta, hidden = torch.device("meta"), file.description.base.hidden_size
    known = file.description.draft_vocab_size or output_rows
    shared = file.description.lm_head == "shared"
    module = build_heads(file, torch.empty(known, hidden, device=meta) if shared else None, drafting, meta)
    prefix = None if file.description.prefix is None else PrefixLayer(file, drafting, meta)
    modules = [module] if prefix is None else [module, prefix]
    everything = sum(t.numel() * t.element_size() for one in modules for t in (*one.parameters(), *one.buffers()))
    rows = known * hidden * drafting.itemsize if shared else 0
    embedding = embedding_rows * hidden * dtype.itemsize if module.needs_embedding else 0
    kv_block = 0 if prefix is None else prefix.kv_block_bytes
    return DraftBytes(everything - rows, rows, embedding, kv_block, everything)


def group_memory(
    config: Config, sizes: list[RankSize], num_layers: int, max_model_len: int, draft: DraftBytes, gpu: GPU | None
) -> GroupMemory:
    """All ranks of a group. gpu: None on a CPU, whose memory is unknown. max_model_len: resolved."""
    dtype: torch.dtype = getattr(torch, config.dtype)
    fraction = config.memory_fraction if config.kv_cache_tokens is None else 1.0  # the latter ignores it
    ranks = []
    for rank, size in enumerate(sizes):
        mine = draft if rank == 0 else DraftBytes()
        context = 0 if gpu is None else CONTEXT_BYTES
        block = block_bytes(num_layers, size.num_kv_heads, size.head_dim, dtype) + mine.kv_block
        memory = None
        if gpu is not None:
            memory = DeviceMemory(gpu.memory_bytes - size.weight_bytes - mine.total - context, gpu.memory_bytes)
        count = kv_blocks(config, max_model_len, num_layers, block, memory)
        spare = None if memory is None else memory.spare(fraction)
        ranks.append(RankMemory(rank, size.weight_bytes, mine, context, block, count, spare))
    return GroupMemory(
        tuple(ranks),
        num_layers,
        max_model_len,
        min(r.kv_blocks for r in ranks),
        max(workspace_bytes(config, size, max_model_len) for size in sizes),
        None if gpu is None else DeviceMemory(0, gpu.memory_bytes).spare(fraction) * -1,
    )


def workspace_bytes(config: Config, size: RankSize, max_model_len: int) -> int:
    """Estimated temporary memory of the largest step: activations, logits, and attention's mask or scores."""
    dtype: torch.dtype = getattr(torch, config.dtype)
    rows = config.max_batched_tokens
    wanted = min(rows, config.max_running * (1 + config.speculation.most_nodes))
    activations = rows * (6 * size.input_shape[1] + 3 * size.widest) * dtype.itemsize
    logits = (rows * dtype.itemsize + wanted * 8) * size.vocab_shard  # all tokens: prompt tokens may need logprobs
    if config.device == "cpu":  # scores and weights of all attention heads, in float32
        attention = rows * max_model_len * size.num_heads * 8
    else:  # a mask per query head of a group; tokens padded to a power of two
        group = size.num_heads // size.num_kv_heads
        attention = 2 * rows * max_model_len * (1 + (1 + group) * dtype.itemsize)
    return activations + logits + attention


def misfits(config: Config, memory: GroupMemory, gpu: GPU, legal_ranks: int) -> list[str]:
    """One line per rank without enough memory: the missing bytes and the keys to change. legal_ranks: most ranks."""
    problems = []
    for rank in memory.ranks:
        spare = rank.spare or 0
        each = gathered_block_bytes(rank.block_bytes, memory.num_layers)
        needed = rank.kv_blocks if config.kv_cache_tokens is not None else MIN_BLOCKS
        lack = math.ceil(needed * each) - spare
        if lack > 0:
            problems.append(
                f"rank {rank.rank} is missing {_both(lack)} of {gpu.name}'s {gigabytes(gpu.memory_bytes)}: weights "
                f"{gigabytes(rank.weights)}, heads and their lm_head rows {gigabytes(rank.draft.total)}, CUDA "
                f"{gigabytes(rank.context)}, kept free {gigabytes(memory.reserve or 0)}, KV cache at least "
                f"{gigabytes(needed * each)}. {_way_out(config, rank, lack, int(spare / each), gpu, legal_ranks)}"
            )
    return problems


def _way_out(config: Config, rank: RankMemory, lack: int, blocks: int, gpu: GPU, legal_ranks: int) -> str:
    """The keys that would make it fit, with the smallest change first."""
    if config.kv_cache_tokens is not None and blocks >= MIN_BLOCKS:
        return f"Change kv_cache_tokens: at most {blocks * BLOCK_TOKENS} fit, or remove the key"
    ways = []
    fraction = config.memory_fraction + lack / gpu.memory_bytes
    if config.kv_cache_tokens is None and fraction < 0.99:
        ways.append(f"memory_fraction: at least {math.ceil(fraction * 100) / 100:g}")
    if rank.draft.total >= lack:
        ways.append("heads.source: heads with a smaller draft vocabulary (or speculation.mode: off)")
    if config.dtype == "float32":
        ways.append("dtype: bfloat16")
    if config.tensor_parallel_size < legal_ranks:
        ways.append(f"tensor_parallel_size: more ranks (up to {legal_ranks})")
    return f"Change {'; or '.join([*ways, 'use a GPU with more memory'])}"


def memory_notes(memory: GroupMemory) -> list[str]:
    """Notes on a config that fits."""
    notes = []
    if memory.kv_blocks >= MIN_BLOCKS and memory.kv_tokens < memory.max_model_len:
        notes.append(
            f"max_model_len {memory.max_model_len} exceeds the {memory.kv_tokens} tokens of the KV cache: requests "
            f"that may exceed it, such as all without max_tokens, are refused; set max_model_len to at most "
            f"{memory.kv_tokens}"
        )
    if memory.reserve is not None and memory.workspace > memory.reserve:
        notes.append(
            f"the largest step may need {gigabytes(memory.workspace)} of workspace (an estimate), but only "
            f"{gigabytes(memory.reserve)} are kept free; lower max_batched_tokens, max_model_len or memory_fraction"
        )
    return notes


def gigabytes(amount: float) -> str:
    """Readable size: GB of 10^9 bytes, or MB for small amounts."""
    return f"{amount / 1e9:.2f} GB" if amount >= 5e8 else f"{amount / 1e6:.1f} MB"


def _both(amount: int) -> str:
    return f"{amount:,} bytes ({gigabytes(amount)})"

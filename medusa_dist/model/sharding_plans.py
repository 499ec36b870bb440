"""Sharding plans: how an architecture is sharded over ranks, as data.

Owns the plans: transformers' own (`config.base_model_tp_plan`) translated into ours, and hand-written ones where it has
none or one that does not shard attention. Not here: the layers (ops/linear.py), reading (source/checkpoint.py).
Attention is sharded by whole key-value groups, so a rank holds one or more key-value heads and all their query heads.
"""

import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from medusa_dist.errors import ConfigError, ModelError
from medusa_dist.model.source.checkpoint import Cut
from medusa_dist.ops.tp_group import TPGroup


class Style(Enum):
    """How a linear layer (or an expert tensor of a mixture) is sharded."""

    QUERY = auto()  # rows by query heads
    KEY_VALUE = auto()  # rows by key-value heads
    FUSED_QKV = auto()  # rows [all q | all k | all v]
    FUSED_BY_HEAD = auto()  # rows (q, k, v) of head 0, of head 1, ...
    ATTENTION_OUT = auto()  # columns by query heads, then summed
    COLUMN = auto()  # rows divided evenly
    GATE_UP = auto()  # rows [gate | up], each divided evenly
    ROW = auto()  # columns divided evenly, then summed
    EXPERTS = auto()  # a module whose output is a partial sum
    EXPERTS_GATE_UP = auto()  # a tensor [experts, gate | up, hidden]
    EXPERTS_DOWN = auto()  # a tensor [experts, hidden, middle]

    @property
    def is_summed(self) -> bool:
        """Whether the layer's outputs are partial sums, so its bias must be added once, after the sum."""
        return self in (Style.ATTENTION_OUT, Style.ROW)

    @property
    def is_attention_input(self) -> bool:
        """Whether this is a projection whose parent is the attention module."""
        return self in (Style.QUERY, Style.KEY_VALUE, Style.FUSED_QKV, Style.FUSED_BY_HEAD)


ShardingPlan = dict[str, Style]  # module path below the base model, * = a layer number -> style

# Hand-written plans by model_type. Phi3's own plan replicates attention on every rank, so ours replaces it.
_HAND_PLANS: dict[str, ShardingPlan] = {
    "gpt2": {
        "h.*.attn.c_attn": Style.FUSED_QKV,
        "h.*.attn.c_proj": Style.ATTENTION_OUT,
        "h.*.mlp.c_fc": Style.COLUMN,
        "h.*.mlp.c_proj": Style.ROW,
    },
    "opt": {
        "decoder.layers.*.self_attn.q_proj": Style.QUERY,
        "decoder.layers.*.self_attn.k_proj": Style.KEY_VALUE,
        "decoder.layers.*.self_attn.v_proj": Style.KEY_VALUE,
        "decoder.layers.*.self_attn.out_proj": Style.ATTENTION_OUT,
        "decoder.layers.*.fc1": Style.COLUMN,
        "decoder.layers.*.fc2": Style.ROW,
    },
    "bert-generation": {
        "encoder.layer.*.attention.self.query": Style.QUERY,
        "encoder.layer.*.attention.self.key": Style.KEY_VALUE,
        "encoder.layer.*.attention.self.value": Style.KEY_VALUE,
        "encoder.layer.*.attention.output.dense": Style.ATTENTION_OUT,
        "encoder.layer.*.intermediate.dense": Style.COLUMN,
        "encoder.layer.*.output.dense": Style.ROW,
    },
    "phi3": {
        "layers.*.self_attn.qkv_proj": Style.FUSED_QKV,
        "layers.*.self_attn.o_proj": Style.ATTENTION_OUT,
        "layers.*.mlp.gate_up_proj": Style.GATE_UP,
        "layers.*.mlp.down_proj": Style.ROW,
    },
}

_ATTENTION = re.compile(r"\b(self_attn|attn|attention)\.")
_ATTENTION_LEAF = {
    "q_proj": Style.QUERY,
    "k_proj": Style.KEY_VALUE,
    "v_proj": Style.KEY_VALUE,
    "query_key_value": Style.FUSED_BY_HEAD,
}

# Attributes that attention modules derive from the config and use in forward -> the local value that replaces them.
LOCAL_ATTRIBUTES = {
    "num_heads": "num_heads",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "num_kv_heads": "num_kv_heads",
    "split_size": "query_width",
}


@dataclass(frozen=True)
class HeadShape:
    """Attention heads of the whole model and of one rank. Head sizes in elements."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    groups: tuple[int, int]  # this rank's key-value heads [start, stop)

    @staticmethod
    def of(config: Any, parallel: TPGroup) -> "HeadShape":
        """From a transformers config."""
        heads = int(config.num_attention_heads)
        kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
        head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        return HeadShape(heads, kv_heads, head_dim, parallel.shard_range(kv_heads))

    @property
    def queries(self) -> tuple[int, int]:
        """This rank's query heads [start, stop)."""
        group = self.num_heads // self.num_kv_heads
        return self.groups[0] * group, self.groups[1] * group

    def local(self) -> dict[str, int]:
        """This rank's numbers, by the names used in LOCAL_ATTRIBUTES."""
        num_heads = self.queries[1] - self.queries[0]
        return {
            "num_heads": num_heads,
            "num_kv_heads": self.groups[1] - self.groups[0],
            "query_width": num_heads * self.head_dim,
        }

    def cut(self, style: Style, size: int) -> Cut:
        """Rows (or columns) of an attention layer on this rank; `size` = its extent before sharding."""
        queries, groups = _scaled(self.queries, self.head_dim), _scaled(self.groups, self.head_dim)
        q_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        dim, expected, ranges = {
            Style.QUERY: (0, q_size, (queries,)),
            Style.KEY_VALUE: (0, kv_size, (groups,)),
            Style.ATTENTION_OUT: (1, q_size, (queries,)),
            Style.FUSED_BY_HEAD: (0, 3 * q_size, (_scaled(self.queries, 3 * self.head_dim),)),
            Style.FUSED_QKV: (
                0,
                q_size + 2 * kv_size,
                (queries, _shifted(groups, q_size), _shifted(groups, q_size + kv_size)),
            ),
        }[style]
        if size != expected:
            raise ModelError(f"an attention layer of {size} rows cannot be sharded by heads ({style.name}: {expected})")
        return Cut(dim, ranges)


def cut_of(style: Style, shape: tuple[int, ...], heads: HeadShape, parallel: TPGroup) -> Cut:
    """This rank's part of a weight of `shape` [O, I] (or an expert tensor [experts, O, I])."""
    if style is Style.ATTENTION_OUT:
        return heads.cut(style, shape[1])
    if style.is_attention_input:
        return heads.cut(style, shape[0])
    if style in (Style.GATE_UP, Style.EXPERTS_GATE_UP):
        dim = 0 if style is Style.GATE_UP else 1
        half = shape[dim] // 2
        mine = parallel.shard_range(half)
        return Cut(dim, (mine, _shifted(mine, half)))
    dim = {Style.COLUMN: 0, Style.ROW: 1, Style.EXPERTS_DOWN: 2}[style]
    return Cut(dim, (parallel.shard_range(shape[dim]),))


def vocab_cut(vocab_size: int, parallel: TPGroup) -> Cut | None:
    """This rank's vocabulary rows, padded to the same count on every rank; None with one rank."""
    if parallel.world_size == 1:
        return None
    start, stop, rows = parallel.vocab_shard(vocab_size)
    return Cut(0, ((start, stop),), rows - (stop - start))


def plan_of(config: Any) -> ShardingPlan:
    """The plan of a config's architecture. Raises ModelError with the reason if it cannot be sharded."""
    if config.model_type in _HAND_PLANS:
        return _HAND_PLANS[config.model_type]
    published = getattr(config, "base_model_tp_plan", None)
    if not published:
        raise ModelError(f"no sharding plan is known for {config.model_type}")
    experts = [path for path, word in published.items() if word == "moe_tp_experts"]
    plan: ShardingPlan = {}
    for path, word in published.items():
        if word not in ("replicated_with_grad_allreduce", "embedding_rowwise"):
            plan[path] = _translate(config, path, word, any(path.startswith(e + ".") for e in experts))
    if not any(style.is_attention_input for style in plan.values()):
        raise ModelError(f"the sharding plan of {config.model_type} does not shard attention")
    return plan


def _translate(config: Any, path: str, word: str, of_experts: bool) -> Style:
    leaf = path.rsplit(".", 1)[-1]
    style: Style | None = None
    if of_experts:
        style = {"packed_colwise": Style.EXPERTS_GATE_UP, "rowwise": Style.EXPERTS_DOWN}.get(word)
    elif word == "moe_tp_experts":
        style = Style.EXPERTS
    elif _ATTENTION.search(path):
        style = _ATTENTION_LEAF.get(leaf) if word == "colwise" else {"rowwise": Style.ATTENTION_OUT}.get(word)
        if style is Style.FUSED_BY_HEAD and getattr(config, "num_key_value_heads", None):
            style = None  # the order of its rows is not that of GPT-NeoX
    else:
        style = {"colwise": Style.COLUMN, "rowwise": Style.ROW}.get(word)
    if style is None:
        raise ModelError(f"the sharding plan of {config.model_type} has {path}: {word}, which is not supported")
    return style


def match(plan: ShardingPlan, base_prefix: str) -> re.Pattern[str]:
    """A pattern over full module paths with one group per plan entry, in the plan's order."""
    entries = (re.escape(path).replace(r"\*", r"\d+") for path in plan)
    return re.compile(rf"(?:{re.escape(base_prefix)}\.)?(?:{'|'.join(f'({entry})' for entry in entries)})")


def style_of(name: str, plan: ShardingPlan, pattern: re.Pattern[str]) -> Style | None:
    """The style of the module called `name`, or None if it is replicated on every rank."""
    found = pattern.fullmatch(name)
    return None if found is None else list(plan.values())[(found.lastindex or 1) - 1]


def legal_tp_sizes(config: Any) -> list[int]:
    """Rank counts over which this model can be sharded: 1 to its key-value heads; only 1 without a plan."""
    try:
        plan_of(config)
    except ModelError:
        return [1]
    return list(range(1, HeadShape.of(config, TPGroup()).num_kv_heads + 1))


def check_tp_size(config: Any, world: int) -> None:
    """Raise ConfigError, naming the legal sizes, if the model cannot be sharded over `world` ranks."""
    legal = legal_tp_sizes(config)
    if world in legal:
        return
    if len(legal) > 1:
        why = f"each rank needs at least one of the model's {legal[-1]} key-value heads"
    else:
        try:
            plan_of(config)
            why = "the model has a single key-value head"
        except ModelError as error:
            why = error.message
    raise ConfigError(f"tensor_parallel_size {world} does not fit {config.model_type}: {why}; legal: {_listed(legal)}")


def _listed(sizes: list[int]) -> str:
    return str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"


def _scaled(span: tuple[int, int], factor: int) -> tuple[int, int]:
    return span[0] * factor, span[1] * factor


def _shifted(span: tuple[int, int], offset: int) -> tuple[int, int]:
    return span[0] + offset, span[1] + offset

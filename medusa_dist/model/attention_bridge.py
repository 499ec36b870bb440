"""Bridge from transformers' attention layers to ours: passes q, k, v to the worker.

Owns the bridge, and the check that a model really uses it. Not here: the attention itself (ops/attention/).
It gets q, k, v after rotary embedding (unless AttentionParams.rotary says otherwise) and q/k norms, with this rank's
heads only. transformers makes no mask for an
implementation without a mask function, so causality, trees and windows are up to the worker.
Shapes: T rows, Hq / Hkv query and key-value heads of this rank, D head size.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from medusa_dist.errors import ModelError
from medusa_dist.ops.attention.backend import AttentionParams

IMPLEMENTATION = "medusa_paged"

# attend(layer, q [T, Hq, D], k [T, Hkv, D], v [T, Hkv, D], params) -> [T, Hq, D]
Attend = Callable[[int, Tensor, Tensor, Tensor, AttentionParams], Tensor]

# Options that transformers passes and that do not affect our attention; any other option that is set is refused.
_HARMLESS = frozenset(
    {
        "dropout",  # zero outside training
        "is_causal",  # checked below
        "position_ids",
        "position_embeddings",
        "cache_position",
        "use_cache",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "return_dict",
        "logits_to_keep",
    }
)


class AttentionContext:
    """The function that the models' attention layers currently call. One per process, since transformers' modules call
    us without arguments of ours; the worker sets it around each forward pass."""

    def __init__(self) -> None:
        self._attend: Attend | None = None

    @property
    def attend(self) -> Attend:
        """The current function; fails an assertion outside `using`."""
        assert self._attend is not None, "a model ran outside attention_context.using(...)"
        return self._attend

    @contextmanager
    def using(self, attend: Attend) -> Iterator[None]:
        """Within the block, attention layers call `attend`."""
        before, self._attend = self._attend, attend
        try:
            yield
        finally:
            self._attend = before


attention_context = AttentionContext()


def paged_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' attention interface. query [1, Hq, T, D], key and value [1, Hkv, T, D] -> ([1, T, Hq, D], None).

    rotary: of our own modules (fused_layers.py), which leave rotary embedding to the backend.
    Raises ModelError for an option that would change the result and is not supported.
    """
    scale = options.pop("scaling", None)
    window, softcap, sinks = (options.pop(name, None) for name in ("sliding_window", "softcap", "s_aux"))
    rotary = options.pop("rotary", None)
    unknown = [name for name, option in options.items() if option is not None and name not in _HARMLESS]
    if attention_mask is not None:
        unknown.append("attention_mask")
    if options.get("is_causal") is False:
        unknown.append("is_causal=False")
    if unknown:
        raise ModelError(f"{type(module).__name__} uses attention options that are not supported: {', '.join(unknown)}")
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out = attention_context.attend(module.layer_idx, q, k, v, AttentionParams(scale, window, softcap, sinks, rotary))
    return out.unsqueeze(0), None


AttentionInterface.register(IMPLEMENTATION, paged_attention)


def check_attention(
    forward: Callable[[Tensor, Tensor, Tensor], object],
    heads: tuple[int, int, int],
    windows: list[int | None],
    device: torch.device,
) -> None:
    """Run `forward` on two tokens and verify that attention calls our function, once per layer and in order.

    heads = (Hq, Hkv, D) of this rank. windows: each layer's sliding window by the config; a model that applies its
    window only through a mask would otherwise silently attend to everything. Raises ModelError.
    """
    num_heads, num_kv_heads, head_dim = heads
    seen: list[tuple[int, tuple[int, int, int], int | None]] = []

    def probe(layer: int, q: Tensor, k: Tensor, v: Tensor, params: AttentionParams) -> Tensor:
        seen.append((layer, (q.shape[1], k.shape[1], q.shape[2]), params.window))
        return v.repeat_interleave(q.shape[1] // k.shape[1], dim=1)

    two = torch.arange(2, device=device)
    try:
        with attention_context.using(probe):
            forward(two, two, two[1:])
    except (RuntimeError, IndexError, TypeError, AttributeError, AssertionError) as error:
        raise ModelError(f"the model does not run after sharding and loading: {error}") from error
    wanted = [(layer, (num_heads, num_kv_heads, head_dim), window) for layer, window in enumerate(windows)]
    if seen != wanted:
        raise ModelError(
            "this model's attention is not supported: expected one call per layer as (layer, (query heads, key-value "
            f"heads, head size), window) {wanted[:2]}... ({len(wanted)}), got {seen[:2]}... ({len(seen)})"
        )

"""A prefix layer as transformers computes it: its Llama layer with the same weights, over a whole text at once."""

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from medusa_dist.medusa.heads.heads_file import HeadsFile

_NAMES = {
    "attention_norm": "input_layernorm.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    **{f"{name}_proj.weight": f"self_attn.{name}_proj.weight" for name in "qkvo"},
    **{f"{name}_proj.weight": f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")},
}


def prefix_states(file: HeadsFile, states: Tensor) -> Tensor:
    """states [T, I], of all tokens of a text -> what the heads start from [T, H]."""
    about, shape = file.description, file.description.prefix
    assert shape is not None
    config = LlamaConfig(
        hidden_size=about.base.hidden_size,
        intermediate_size=shape.inner,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        rms_norm_eps=shape.eps,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        num_hidden_layers=1,
        attn_implementation="eager",
    )
    layer = LlamaDecoderLayer(config, 0)
    tensors = {theirs: file.tensors[f"prefix.{ours}"].float() for ours, theirs in _NAMES.items()}
    layer.load_state_dict(tensors)
    hidden, tapped = states[:, : about.base.hidden_size], states[:, about.base.hidden_size :]
    parts = [hidden, *tapped.split(about.tap_width, dim=-1)] if about.aux_layers else [hidden]
    normed = [F.rms_norm(part, part.shape[-1:], eps=1e-6) for part in parts]
    x = torch.cat(normed, dim=-1) @ file.tensors["prefix.fuse.weight"].float().T
    length = len(states)
    mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
    positions = LlamaRotaryEmbedding(config)(x, torch.arange(length)[None])
    with torch.no_grad():
        made = layer(x[None], attention_mask=mask, position_embeddings=positions)
    return (made[0] if isinstance(made, tuple) else made).reshape(length, -1)

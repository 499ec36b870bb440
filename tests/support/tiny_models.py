"""Tiny random models of many architectures, and the plainest attention that is right for them."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BertGenerationConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen3Config,
)

from medusa_dist.ops.attention.backend import AttentionParams

VOCAB = 97  # prime, as is the middle of the MLP: nothing divides evenly

_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 67,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    **_IDS,
}
_MHA = {key: value for key, value in _LLAMA.items() if key != "num_key_value_heads"}
_GPT2 = {"vocab_size": VOCAB, "n_embd": 48, "n_layer": 2, "n_head": 6, "n_positions": 64, "initializer_range": 0.3}
_OPT = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "ffn_dim": 67,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
    "init_std": 0.3,
    **_IDS,
}
_NINE_HEADS = {**_LLAMA, "hidden_size": 72, "num_attention_heads": 9}  # SmolLM2's 9/3 in small


def configs() -> dict[str, PreTrainedConfig]:
    """A fresh config per architecture, by a short name."""
    return {
        "llama": LlamaConfig(**_NINE_HEADS, tie_word_embeddings=False),
        "llama-tied": LlamaConfig(**_NINE_HEADS, tie_word_embeddings=True, attention_bias=True),
        "qwen3": Qwen3Config(**_LLAMA, head_dim=8),
        "mistral": MistralConfig(**_LLAMA, sliding_window=4),
        "gemma2": Gemma2Config(**_LLAMA, head_dim=8, sliding_window=4, attn_logit_softcapping=5.0),
        "gemma3": Gemma3TextConfig(**_LLAMA, head_dim=8, sliding_window=4),
        "phi3": Phi3Config(**_LLAMA, sliding_window=4),
        "gpt-neox": GPTNeoXConfig(**_MHA),
        "gpt2": GPT2Config(**_GPT2, **_IDS),
        "opt": OPTConfig(**_OPT, word_embed_proj_dim=48),
        "opt-projected": OPTConfig(**_OPT, word_embed_proj_dim=24, do_layer_norm_before=False),
        "bert-generation": BertGenerationConfig(**_MHA, is_decoder=True),
        "mixtral": MixtralConfig(**_LLAMA, num_local_experts=4),
        "qwen2-moe": Qwen2MoeConfig(
            **_LLAMA,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=37,
            shared_expert_intermediate_size=41,
        ),
    }


def save_tiny(name: str, folder: Path, **save: object) -> PreTrainedModel:
    """Make the model called `name`, save it into `folder`, and return it with transformers' own eager attention."""
    torch.manual_seed(0)
    config = configs()[name]
    config._attn_implementation = config._experts_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # biases start at 0 and norms at 1, which would hide a bias that is added twice
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder, **save)
    return model.requires_grad_(False)


def tokens(count: int = 13) -> Tensor:
    """Random ids [count], the vocabulary's last id among them."""
    ids = torch.randint(0, VOCAB, (count,), generator=torch.Generator().manual_seed(1))
    ids[count // 2] = VOCAB - 1
    return ids


def dense_attend(_layer: int, q: Tensor, k: Tensor, v: Tensor, params: AttentionParams) -> Tensor:
    """Causal attention of one sequence at positions 0..T-1, by the definition. q [T, Hq, D] -> [T, Hq, D]."""
    assert params.sinks is None
    q, k = params.rotated(q, k)
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * params.scale
    if params.softcap is not None:
        scores = params.softcap * torch.tanh(scores / params.softcap)
    position = torch.arange(q.shape[0])
    distance = position[:, None] - position
    seen = (distance >= 0) & (distance < (params.window or 2**31))
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, float("-inf")).softmax(-1), v)

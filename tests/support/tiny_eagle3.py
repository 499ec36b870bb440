"""EAGLE-3 checkpoints made on the fly, with published names and shapes, and their network written out plainly."""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from medusa_dist.medusa.eagle3.checkpoint import Eagle3File, eagle3_names, eagle3_shapes
from medusa_dist.medusa.eagle3.config import parse_eagle3_config

HIDDEN, VOCAB, KNOWN = 16, 31, 19
LAYER = {
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": 22,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "num_hidden_layers": 1,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500.0,
    "vocab_size": VOCAB,
    "hidden_act": "silu",
}
VERIFIER = {"name_or_path": "tiny/base", "architectures": ["LlamaForCausalLM"]}
SPECULATORS = {
    "architectures": ["Eagle3Speculator"],
    "speculators_model_type": "eagle3",
    "speculators_config": {"algorithm": "eagle3", "verifier": VERIFIER},
    "transformer_layer_config": LAYER,
    "draft_vocab_size": KNOWN,
    "norm_before_residual": True,
}
OFFICIAL = LAYER | {"architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": KNOWN}
# name -> (config.json, prefix of the layer's tensors)
FORMS: dict[str, tuple[dict, str]] = {
    "official": (OFFICIAL, "midlayer."),
    "specforge": (OFFICIAL | {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 2, 3]}}, "midlayer."),
    "specforge 3.1": (OFFICIAL | {"fc_norm": True, "norm_output": True}, "midlayer."),
    "speculators": (SPECULATORS | {"eagle_aux_hidden_state_layer_ids": [1, 2, 4]}, "layers.0."),
    "speculators, qwen3": (
        SPECULATORS
        | {
            "norm_before_residual": False,
            "norm_before_fc": True,
            "transformer_layer_config": LAYER
            | {
                "model_type": "qwen3",
                "layer_types": ["sliding_attention"],
                "sliding_window": 5,
                "attention_bias": True,
            },
        },
        "layers.0.",
    ),
}


def checkpoint(form: str, seed: int = 0, **changes: object) -> tuple[dict, dict[str, Tensor]]:
    """config.json, with `changes`, and tensors under the published names."""
    config, prefix = FORMS[form]
    config = config | changes
    about = parse_eagle3_config(config)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in eagle3_shapes(about).items():
        if name.endswith(".bias") and form != "speculators, qwen3":
            continue
        scale = 0.3 if len(shape) == 1 else shape[-1] ** -0.5 * 1.5
        values = scale * torch.randn(shape, generator=generator) + (len(shape) == 1)
        tensors[name.replace("layers.0.", prefix, 1)] = values
    if about.draft_vocab_size < about.vocab_size:
        ids = torch.randperm(about.vocab_size, generator=generator)[: about.draft_vocab_size].sort().values
        tensors["d2t"] = ids - torch.arange(about.draft_vocab_size)
        tensors["t2d"] = torch.zeros(about.vocab_size, dtype=torch.bool).index_fill(0, ids, True)
    return config, tensors


def save_checkpoint(folder: Path, form: str, seed: int = 0, **changes: object) -> dict[str, Tensor]:
    """Write it as published: config.json and model.safetensors."""
    config, tensors = checkpoint(form, seed, **changes)
    save_as(folder, config, tensors)
    return tensors


def save_as(folder: Path, config: dict, tensors: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")


def in_memory(form: str, seed: int = 0, **changes: object) -> Eagle3File:
    config, tensors = checkpoint(form, seed, **changes)
    return Eagle3File(
        parse_eagle3_config(config), {ours: tensors[name] for ours, name in eagle3_names(list(tensors)).items()}
    )


def plain_network(file: Eagle3File, tokens: list[int], tapped: Tensor, path: list[int]) -> Tensor:
    """Logits [D] after the tokens and then `path`: every pair anew, full attention, no cache.

    tapped: [len(tokens) - 1, T W], the base's states at all tokens but the last, which is the root.
    """
    t, about = file.tensors, file.config
    get = lambda name: t[f"layers.0.{name}"]  # noqa: E731

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + about.eps).sqrt() * weight

    def project(name: str, x: Tensor) -> Tensor:
        bias = t.get(f"layers.0.{name}.bias")
        return x @ get(f"{name}.weight").T + (0 if bias is None else bias)

    def turn(x: Tensor) -> Tensor:
        """x: [rows, heads, d] at positions 1, 2, ..."""
        half = about.head_dim // 2
        speeds = torch.tensor([about.rotary.theta ** (-i / half) for i in range(half)])
        angles = torch.arange(1, len(x) + 1)[:, None, None] * speeds
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)

    x = tapped
    if about.norm_before_fc:
        x = norm(x, t["input_norm.weight"])
    if about.fc_norm:
        parts = x.chunk(about.num_taps, -1)
        x = torch.cat([norm(part, t[f"fc_norm.{i}.weight"]) for i, part in enumerate(parts)], -1)
    states = list(x @ t["fc.weight"].T + t.get("fc.bias", torch.zeros(1)))
    known = torch.arange(about.vocab_size) if file.draft_vocab is None else file.draft_vocab
    for level in range(len(path) + 1):
        embeddings = t["embed_tokens.weight"][tokens[1:] + [int(known[c]) for c in path[:level]]]
        given = torch.stack(states)
        hidden = norm(given, get("hidden_norm.weight"))
        read = torch.cat([norm(embeddings, get("input_layernorm.weight")), hidden], -1)
        q, k, v = (
            project(f"self_attn.{name}_proj", read).view(len(read), -1, about.head_dim) for name in ("q", "k", "v")
        )
        if about.qk_norm:
            q, k = norm(q, get("self_attn.q_norm.weight")), norm(k, get("self_attn.k_norm.weight"))
        q, k = turn(q), turn(k)
        group = about.num_heads // about.num_kv_heads
        first = 0 if about.window is None else max(0, len(read) - about.window)
        seen = slice(first, None)
        out = []
        for head in range(about.num_heads):
            scores = k[seen, head // group] @ q[-1, head] / math.sqrt(about.head_dim)
            out.append(scores.softmax(0) @ v[seen, head // group])
        residual = hidden[-1] if about.norm_before_residual else given[-1]
        y = residual + project("self_attn.o_proj", torch.cat(out))
        z = norm(y, get("post_attention_layernorm.weight"))
        y = y + project("mlp.down_proj", F.silu(project("mlp.gate_proj", z)) * project("mlp.up_proj", z))
        final = norm(y, t["norm.weight"])
        states.append(final if about.norm_output else y)
    return final @ t["lm_head.weight"].T

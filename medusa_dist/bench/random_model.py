"""A model and heads with random weights, written to a folder: shapes to measure with, and nothing to download.

Owns the shapes and how they are written. Not here: what is measured (gpu_bench.py).
Weights are small, so that states stay finite; what the model says means nothing.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from medusa_dist.medusa.heads.description import BaseModelFacts, HeadsDescription
from medusa_dist.medusa.heads.heads_file import HeadsFile

NUM_HEADS = 4
_SCALE = 0.02


@dataclass(frozen=True)
class LlamaShape:
    """Sizes of a Llama, by the names of its config.json."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int

    @property
    def num_parameters(self) -> int:
        """Of the model, its vocabulary matrices included."""
        shapes = [shape for _, shape in self.tensors()]
        return sum(rows * width for rows, width in shapes)

    def tensors(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Name and shape [rows, width] of every tensor; norms have one row."""
        hidden, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        yield "model.embed_tokens.weight", (self.vocab_size, hidden)
        for layer in range(self.num_hidden_layers):
            for name, shape in {
                "self_attn.q_proj": (queries, hidden),
                "self_attn.k_proj": (keys, hidden),
                "self_attn.v_proj": (keys, hidden),
                "self_attn.o_proj": (hidden, queries),
                "mlp.gate_proj": (inner, hidden),
                "mlp.up_proj": (inner, hidden),
                "mlp.down_proj": (hidden, inner),
                "input_layernorm": (1, hidden),
                "post_attention_layernorm": (1, hidden),
            }.items():
                yield f"model.layers.{layer}.{name}.weight", shape
        yield "model.norm.weight", (1, hidden)
        yield "lm_head.weight", (self.vocab_size, hidden)


SHAPES = {
    "8b": LlamaShape(4096, 14336, 32, 32, 8, 128, 128256),  # Llama 3.1 8B
    "1b": LlamaShape(2048, 8192, 16, 32, 8, 64, 128256),  # Llama 3.2 1B, with an output matrix of its own
    "tiny": LlamaShape(64, 96, 2, 4, 2, 16, 128),  # to see that a measurement is whole
}


def save_random_model(folder: Path, shape: LlamaShape, dtype: torch.dtype, device: torch.device) -> None:
    """Write config.json, one file of weights per layer, and folder/heads. Numbers are drawn on the device."""
    folder.mkdir(parents=True, exist_ok=True)
    short = str(dtype).removeprefix("torch.")
    config = asdict(shape) | {
        **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5},
        **{"rope_theta": 500_000.0, "max_position_embeddings": 8192, "tie_word_embeddings": False, "dtype": short},
        **{"bos_token_id": 0, "eos_token_id": 1, "attention_bias": False, "mlp_bias": False},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generator = torch.Generator(device).manual_seed(0)
    places: dict[str, str] = {}
    files: dict[str, dict[str, Tensor]] = {}
    for name, (rows, width) in shape.tensors():
        part = name.split(".")[2] if name.startswith("model.layers.") else "rest"
        file = f"model-{part}.safetensors"
        if file not in files and part != "rest":
            _write(folder, {other: found for other, found in files.items() if "rest" not in other})
            files = {other: found for other, found in files.items() if "rest" in other}
        if rows == 1:
            made = torch.ones(width, dtype=dtype)
        else:
            made = (_SCALE * torch.randn(rows, width, generator=generator, device=device)).to(dtype).cpu()
        files.setdefault(file, {})[name] = made
        places[name] = file
    _write(folder, files)
    index = {"metadata": {"total_size": shape.num_parameters * dtype.itemsize}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index) + "\n")
    _heads(shape, short).save(folder / "heads")


def _write(folder: Path, files: dict[str, dict[str, Tensor]]) -> None:
    for name, tensors in files.items():
        save_file(tensors, folder / name, metadata={"format": "pt"})


def _heads(shape: LlamaShape, dtype: str) -> HeadsFile:
    """Medusa's own form, with the model's output rows."""
    hidden = shape.hidden_size
    base = BaseModelFacts(name="random", fingerprint=None, hidden_size=hidden, vocab_size=shape.vocab_size)
    about = HeadsDescription.model_validate(
        {"form": "hidden", "num_heads": NUM_HEADS, "offsets": (1, 2, 3, 4), "dtype": dtype, "base": base}
    )
    generator = torch.Generator().manual_seed(1)
    kind: torch.dtype = getattr(torch, dtype)
    tensors = {}
    for head in range(NUM_HEADS):
        weight = _SCALE * torch.randn(hidden, hidden, generator=generator)
        tensors[f"heads.{head}.blocks.0.weight"] = weight.to(kind)
        tensors[f"heads.{head}.blocks.0.bias"] = torch.zeros(hidden, dtype=kind)
    return HeadsFile(about, tensors)

"""Fingerprint of a base model: the hash by which heads name their base model.

Owns the definition (version 1). Not here: the check of heads against it (medusa/heads/heads_file.py).
It covers what changes the model's hidden states or tokens: the head counts, and names, types, shapes and byte samples
of all tensors. Not covered: file names, how tensors are distributed over files, timestamps, metadata, generation
defaults.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING

from medusa_dist.model.source.checkpoint import Checkpoint
from medusa_dist.model.support_check import read_config

_SAMPLES, _SAMPLE_BYTES = 4, 256  # spread evenly over each tensor, including first and last bytes

# Config values that the shapes of the weights do not determine. Read through transformers, which knows each
# architecture's spelling; its other keys change with its versions, and saving a model again must not change the hash.
_ESSENTIAL = ("model_type", "num_attention_heads", "num_key_value_heads", "head_dim", "num_experts_per_tok")


def fingerprint(folder: Path) -> str:
    """`sha256:...` of the model in `folder`; reads a few kilobytes per tensor. Raises ModelError."""
    digest = hashlib.sha256(b"medusa_dist base model 1\n")
    digest.update(json.dumps(_essential(folder)).encode())
    checkpoint = Checkpoint(folder)
    for name in sorted(checkpoint.file_of):
        digest.update(json.dumps([name, checkpoint.dtype(name), checkpoint.shape(name)]).encode())
        for sample in _samples(checkpoint, name):
            digest.update(sample)
    return f"sha256:{digest.hexdigest()}"


def _essential(folder: Path) -> list[Any]:
    """The essential values of the config. The config of a class that ships with the model is read as raw JSON: its code
    must not run here, and the hash must not depend on whether it may."""
    try:
        written = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        written = {}  # read_config reports the problem
    if "AutoConfig" in written.get("auto_map", {}) and written.get("model_type") not in CONFIG_MAPPING:
        return [written.get(key) for key in _ESSENTIAL]
    config = read_config(folder)
    return [getattr(config, key, None) for key in _ESSENTIAL]


def _samples(checkpoint: Checkpoint, name: str) -> list[bytes]:
    """The first _SAMPLE_BYTES of _SAMPLES evenly spread rows, and the last bytes of the last row."""
    shape = checkpoint.shape(name)
    num_rows = shape[0] if shape else 1
    if not num_rows:
        return []
    picked = sorted({i * (num_rows - 1) // (_SAMPLES - 1) for i in range(_SAMPLES)})
    rows = [_bytes_of(checkpoint.rows(name, row, row + 1)) for row in picked]
    return [row[:_SAMPLE_BYTES] for row in rows] + [rows[-1][-_SAMPLE_BYTES:]]


def _bytes_of(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()

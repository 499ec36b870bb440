"""Converts a GGUF file to a transformers folder, once, and caches it.

Owns the conversion (weights dequantised to float32, config) and its cache. Not here: the tokenizer
(gguf_tokenizer.py), rotary scaling (gguf_rope.py), where GGUF files come from (resolve_model.py, demo.py). Serving
itself reads only safetensors.
"""

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from platformdirs import user_cache_dir
from rich.console import Console
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.utils import logging as transformers_logging

from medusa_dist.errors import ModelError
from medusa_dist.model.source.gguf_rope import rope_parameters
from medusa_dist.model.source.gguf_tokenizer import Metadata, end_token_ids, read_tokenizer
from medusa_dist.model.source.sampling_defaults import gguf_sampling

MARKER = "converted.json"  # written last; holds the source's hash and the size of every file
_FORMAT = 2  # increment when the result of a conversion changes, so that old ones are redone
_LOCK_S = 1800.0


def cache_dir() -> Path:
    """Where converted models are kept: the environment's MEDUSA_DIST_CACHE, else the user's cache folder."""
    return Path(os.environ.get("MEDUSA_DIST_CACHE") or user_cache_dir("medusa_dist")).expanduser()


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_converted(folder: Path, sha256: str) -> bool:
    """Whether `folder` is a complete conversion of the GGUF file with that hash."""
    try:
        marker = json.loads((folder / MARKER).read_text())
        sizes = {name: (folder / name).stat().st_size for name in marker["sizes"]}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(marker == {"format": _FORMAT, "sha256": sha256, "sizes": sizes})


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lets one process at a time create `folder`; the others wait. Raises ModelError after half an hour."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        with lock.acquire(timeout=_LOCK_S):
            yield
    except Timeout:
        raise ModelError(
            f"another process has been creating {folder} for {_LOCK_S:.0f} s; check whether it hangs"
        ) from None


def cached_conversion(gguf: Path) -> Path:
    """The folder of a user's GGUF file, converted now if it was not before."""
    sha256 = sha256_of(gguf)
    folder = cache_dir() / "gguf" / f"{gguf.stem}-{sha256[:12]}"
    with locked(folder):
        if not is_converted(folder, sha256):
            with Console(stderr=True).status(f"converting {gguf.name} to {folder} (once)"):
                convert(gguf, folder, sha256)
    return folder


def convert(gguf: Path, folder: Path, sha256: str) -> None:
    """Create `folder` from a GGUF file, completely or not at all (a temporary folder, then a rename).

    Raises ModelError if transformers cannot read the file or its architecture, or its tokenizer is not known.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _write(gguf, temporary)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        for path in files:
            path.chmod(0o644)  # safetensors makes files readable by the owner only
        sizes = {str(path.relative_to(temporary)): path.stat().st_size for path in files}
        (temporary / MARKER).write_text(json.dumps({"format": _FORMAT, "sha256": sha256, "sizes": sizes}))
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(gguf: Path, folder: Path) -> None:
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # ours is shown already
    try:
        metadata = Metadata(gguf)
        tokenizer = read_tokenizer(gguf, metadata)
        ends = end_token_ids(metadata)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        rope = rope_parameters(metadata, model.config)
    except (ValueError, OSError, LookupError, RuntimeError, ImportError, struct.error) as error:
        raise ModelError(f"{gguf} cannot be converted: {str(error).splitlines()[0]}") from error
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
    config = model.config
    tokenizer.model_max_length = int(getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length)
    tokenizer.save_pretrained(folder)
    special = {f"{word}_token_id": getattr(tokenizer, f"{word}_token_id") for word in ("bos", "eos", "pad")}
    special["eos_token_id"] = ends[0] if len(ends) == 1 else ends or None
    settings: dict[str, Any] = {
        **config.to_dict(),
        **({} if rope is None else {"rope_parameters": rope}),
        **special,
        "dtype": "float32",
        "architectures": [type(model).__name__],
    }
    settings.pop("quantization_config", None)  # the weights are no longer quantised
    type(config)(**settings).save_pretrained(folder)
    sampling = gguf_sampling(gguf)
    GenerationConfig(**special, **sampling, do_sample=bool(sampling) or None).save_pretrained(folder)
    tied = set(model.all_tied_weights_keys)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

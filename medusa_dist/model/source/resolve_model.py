"""Resolves the config key `model` to a transformers folder on this machine.

Owns the kinds of sources, and an error for each way one can fail. Not here: whether the model is supported
(model/support_check.py), conversion (gguf.py), the demo's wheel (demo.py).
"""

import re
from pathlib import Path

from httpx import HTTPError
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from medusa_dist.config import Config
from medusa_dist.errors import ConfigError, HubUnreachableError, ModelError
from medusa_dist.model.source import demo
from medusa_dist.model.source.checkpoint import no_safetensors
from medusa_dist.model.source.gguf import cached_conversion

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_WANTED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py"]
_UNWANTED = ["original/*", "consolidated*", "onnx/*"]


def resolve_source(model: str, revision: str | None = None) -> Path:
    """The folder of a hub id, a folder, a .gguf file, or the demo model; downloads or converts it if needed.

    Raises ModelError for a model that is missing or has no safetensors, ConfigError for a revision without a hub id.
    """
    if model.startswith("demo:"):
        _no_revision(model, revision)
        if model != demo.NAME:
            raise ModelError(f"there is no {model}; the demo model is {demo.NAME}")
        return demo.demo_folder()
    path = Path(model).expanduser()
    if path.suffix == ".gguf":
        _no_revision(model, revision)
        if not path.is_file():
            raise ModelError(f"there is no GGUF file {path}")
        return cached_conversion(path)
    if path.is_dir():
        _no_revision(model, revision)
        return _with_safetensors(path)
    if path.exists():
        raise ModelError(f"{path} is neither a folder nor a .gguf file")
    return _with_safetensors(hub_folder(model, revision, _WANTED))


def is_hub_id(model: str) -> bool:
    """Whether `model` can only be a hub id: it is nothing on this machine."""
    path = Path(model).expanduser()
    return not model.startswith("demo:") and path.suffix != ".gguf" and not path.exists()


def hub_folder(model: str, revision: str | None, patterns: list[str]) -> Path:
    """The folder in the hub's cache with a hub id's files that match these patterns; fetches what is missing.

    Raises ModelError with the reason if it cannot.
    """
    if not _HUB_ID.fullmatch(model):
        raise ModelError(
            f"there is no folder {Path(model).expanduser()}, and it cannot be a hub id (owner/name) either"
        )
    where = f"{model} at revision {revision}" if revision else model
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns, ignore_patterns=_UNWANTED))
    except GatedRepoError:
        raise ModelError(f"{model} is gated: accept its terms on the hub and set HF_TOKEN") from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"there is no {model}: no such folder here, and no such (or a private) model on the hub"
        ) from None
    except RevisionNotFoundError:
        raise ModelError(f"the hub has no {where}") from None
    except LocalEntryNotFoundError:
        raise HubUnreachableError(
            f"{where} is not on this machine, neither as a folder nor in the hub's cache, and the hub cannot be "
            f"reached; download it elsewhere and give the folder, or try {demo.NAME}, which comes from PyPI"
        ) from None
    except (HfHubHTTPError, HFValidationError, HTTPError, OSError) as error:
        raise ModelError(f"{where} cannot be fetched from the hub: {_first_line(error)}") from error


def _with_safetensors(folder: Path) -> Path:
    if not any(folder.glob("*.safetensors")):
        raise ModelError(no_safetensors(folder))
    return folder


def _no_revision(model: str, revision: str | None) -> None:
    if revision is not None:
        raise ConfigError(f"revision: only hub ids have revisions, and model is {model}; remove the key")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def model_folder(config: Config) -> Path:
    """The model's folder on this node, fetched or converted if needed. Raises ModelError."""
    return resolve_source(config.model, config.revision)

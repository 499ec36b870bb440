"""Config and tensor shapes of a model, local or on the hub, without reading its weights.

Owns finding both. Not here: fetching a whole model (source/resolve_model.py), what the shapes mean for a rank
(sizing.py).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from httpx import HTTPError
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, NotASafetensorsRepoError, SafetensorsParsingError

from medusa_dist.errors import ModelError
from medusa_dist.model.sizing import Shapes
from medusa_dist.model.source.checkpoint import Checkpoint, no_safetensors
from medusa_dist.model.source.resolve_model import hub_folder, is_hub_id, resolve_source

_DESCRIPTIONS = ["config.json", "generation_config.json", "*.py"]


@dataclass(frozen=True)
class Headers:
    """folder: holds config.json. shapes: of all stored tensors, None if no weights are available.

    seen: where the shapes come from: a folder (file headers), the hub (file headers, fetched), or none.
    """

    folder: Path
    shapes: Shapes | None
    seen: Literal["folder", "hub", "none"]


def read_headers(model: str, revision: str | None = None) -> Headers:
    """Config and shapes of a hub id, a folder, a .gguf file or the demo model.

    A folder may hold only a config.json. A .gguf file and the demo model are converted, as for serving. Raises
    ModelError for a model that is missing or could not be served.
    """
    if is_hub_id(model):
        folder = hub_folder(model, revision, _DESCRIPTIONS)
        return _of_folder(folder) if _has_weights(folder) else _of_hub(model, revision, folder)
    path = Path(model).expanduser()
    if path.is_dir() and revision is None and (path / "config.json").is_file() and not _has_weights(path):
        if _has_pickles(path):
            raise ModelError(no_safetensors(path))
        return Headers(path, None, "none")
    return _of_folder(resolve_source(model, revision))


def _of_folder(folder: Path) -> Headers:
    checkpoint = Checkpoint(folder)
    shapes = {name: checkpoint.shape(name) for name in checkpoint.names()}  # opens each file: detects a truncated one
    checkpoint.close()
    return Headers(folder, shapes, "folder")


def _of_hub(model: str, revision: str | None, folder: Path) -> Headers:
    """Fetches only the headers, some kilobytes per file."""
    try:
        found = HfApi().get_safetensors_metadata(model, revision=revision)
    except NotASafetensorsRepoError:
        raise ModelError(f"{model} has no safetensors on the hub, and only safetensors are supported") from None
    except SafetensorsParsingError as error:
        raise ModelError(f"{model}: a safetensors file on the hub is corrupt: {error}") from None
    except (HfHubHTTPError, HTTPError, OSError):
        return Headers(folder, None, "none")  # the config was in the cache, but the hub is unreachable
    shapes = {
        name: tuple(tensor.shape) for file in found.files_metadata.values() for name, tensor in file.tensors.items()
    }
    return Headers(folder, shapes, "hub")


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or (folder / "model.safetensors.index.json").is_file()


def _has_pickles(folder: Path) -> bool:
    return any(file for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))

"""Store: files and batches of one served model, or the reason why there is none.

Owns the choice of the place, and tenants. Not here: what is done with files (file_store.py) and batches
(batch_store.py).
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

from platformdirs import user_data_path

from medusa_dist.config_parts.files import AUTO, OFF, FilesConfig
from medusa_dist.errors import ConfigError, StorageOffError
from medusa_dist.storage.batch_store import BatchStore
from medusa_dist.storage.file_store import FileStore
from medusa_dist.storage.folder import Folder, LocalFolder
from medusa_dist.storage.remote_folder import RemoteFolder

NO_KEY = "all"  # the tenant of a service without an API key


@dataclass(frozen=True, slots=True)
class Store:
    """Files and batches in one folder."""

    files: FileStore
    batches: BatchStore


def open_store(config: FilesConfig, model: str, num_nodes: int = 1) -> Store | StorageOffError:
    """The store of a model, or the error that routes answer with instead.

    num_nodes: of the cluster, for "auto". Raises ConfigError for a place that cannot be used anywhere.
    """
    if config.store == OFF:
        return StorageOffError("files and batches are off here (files.store: off); use `medusa-dist batch`")
    if config.store == AUTO and num_nodes > 1:
        return StorageOffError(
            f"files and batches are off here: this cluster has {num_nodes} nodes, whose replicas would not see each "
            "other's files; set files.store to a folder that all nodes share, or to a URL such as s3://bucket/path"
        )
    name = quote(model, safe="")
    folder = _folder(config.store, f"%2E{name[1:]}" if name.startswith(".") else name)
    files = FileStore(folder, config.max_file_bytes, config.max_total_bytes)
    return Store(files, BatchStore(folder, files, config.max_batch_lines))


def _folder(place: str, name: str) -> Folder:
    """Each model has its own part of a place, so that several applications can have the same."""
    if place == AUTO:
        return LocalFolder(user_data_path("medusa_dist") / "files" / name)
    protocol, mark, path = place.partition("://")
    if mark and protocol not in ("file", "local"):
        return RemoteFolder(f"{place.rstrip('/')}/{name}")
    root = Path(path if mark else place).expanduser()
    if not root.is_absolute():
        raise ConfigError(f"files.store: {place!r} is a relative path; give a full one, as replicas run elsewhere")
    return LocalFolder(root / name)


@lru_cache(maxsize=16)
def tenant_of(api_key: str | None) -> str:
    """The part of the store that belongs to an API key. It does not tell the key: scrypt is slow to guess."""
    if api_key is None:
        return NO_KEY
    return hashlib.scrypt(api_key.encode(), salt=b"medusa_dist files", n=2**14, r=8, p=1, dklen=12).hex()

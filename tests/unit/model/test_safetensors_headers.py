"""What is known of a model without its weights, here and on a hub that is played by a folder."""

from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalEntryNotFoundError, NotASafetensorsRepoError

from medusa_dist.errors import ModelError
from medusa_dist.model.safetensors_headers import read_headers
from medusa_dist.model.source import resolve_model as source
from medusa_dist.model.source.checkpoint import Checkpoint
from tests.support.tiny_models import save_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("llama")
    save_tiny("llama", made)
    return made


@pytest.fixture
def bare(folder: Path, tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    return tmp_path


def shapes_in(folder: Path) -> dict[str, tuple[int, ...]]:
    stored = Checkpoint(folder)
    return {name: stored.shape(name) for name in stored.names()}


def hub_says(monkeypatch: pytest.MonkeyPatch, answer: object) -> None:
    def get(_self: HfApi, model: str, revision: str | None = None) -> object:
        assert (model, revision) == ("owner/name", "main")
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(HfApi, "get_safetensors_metadata", get)


def test_folder_headers_have_all_shapes_or_none_without_weights(folder: Path, bare: Path) -> None:
    found = read_headers(str(folder))
    assert (found.folder, found.seen, found.shapes) == (folder, "folder", shapes_in(folder))
    alone = read_headers(str(bare))
    assert (alone.folder, alone.seen, alone.shapes) == (bare, "none", None)


def test_folder_of_pickles_is_refused(bare: Path) -> None:
    (bare / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="only safetensors are supported"):
        read_headers(str(bare))


def test_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has neither"):
        read_headers(str(tmp_path))


def test_truncated_safetensors_file_is_refused(folder: Path, bare: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (bare / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="download the model again"):
        read_headers(str(bare))


def test_hub_headers_are_read_without_downloading_weights(
    folder: Path, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def download(model: str, **options: object) -> str:
        asked.update(options)
        return str(bare)

    monkeypatch.setattr(source, "snapshot_download", download)
    tensors = {name: SimpleNamespace(shape=list(shape)) for name, shape in shapes_in(folder).items()}
    hub_says(monkeypatch, SimpleNamespace(files_metadata={"a.safetensors": SimpleNamespace(tensors=tensors)}))
    found = read_headers("owner/name", "main")
    assert (found.folder, found.seen, found.shapes) == (bare, "hub", shapes_in(folder))
    assert asked["revision"] == "main" and not any("safetensors" in pattern for pattern in asked["allow_patterns"])


@pytest.mark.parametrize("error", [httpx.ConnectError("no route"), OSError("offline")])
def test_unreachable_hub_with_a_cached_config_gives_no_shapes(
    bare: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(source, "snapshot_download", lambda *_, **__: str(bare))
    hub_says(monkeypatch, error)
    found = read_headers("owner/name", "main")
    assert (found.seen, found.shapes) == ("none", None)


def test_hub_model_without_safetensors_or_cache_is_refused(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "snapshot_download", lambda *_, **__: str(bare))
    hub_says(monkeypatch, NotASafetensorsRepoError("none"))
    with pytest.raises(ModelError, match="no safetensors on the hub"):
        read_headers("owner/name", "main")

    def offline(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("not cached")

    monkeypatch.setattr(source, "snapshot_download", offline)
    with pytest.raises(ModelError, match="the hub cannot be reached"):
        read_headers("owner/name", "main")

from pathlib import Path

import httpx
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from medusa_dist.errors import ConfigError, ModelError
from medusa_dist.model.source import resolve_model as source
from medusa_dist.model.source.resolve_model import resolve_source


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple, dict]]:
    """Calls to the hub; each must be answered by the test's own patch."""
    calls: list[tuple[tuple, dict]] = []

    def refuse(*args: object, **kwargs: object) -> str:
        calls.append((args, kwargs))
        raise AssertionError("no test may reach the hub")

    monkeypatch.setattr(source, "snapshot_download", refuse)
    return calls


def test_local_folder_resolves_to_itself_without_the_hub(tmp_path: Path, hub: list) -> None:
    (tmp_path / "model.safetensors").touch()
    assert resolve_source(str(tmp_path)) == tmp_path and not hub


def test_a_hub_id_is_fetched_without_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def download(model: str, **options: object) -> str:
        seen.update(options, model=model)
        (tmp_path / "model.safetensors").touch()
        return str(tmp_path)

    monkeypatch.setattr(source, "snapshot_download", download)
    assert resolve_source("owner/name", "v1") == tmp_path
    assert (seen["model"], seen["revision"]) == ("owner/name", "v1")
    assert "*.safetensors" in seen["allow_patterns"] and not any("bin" in p for p in seen["allow_patterns"])


RESPONSE = httpx.Response(404, request=httpx.Request("GET", "https://hub"))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (GatedRepoError("x", response=RESPONSE), "gated.*HF_TOKEN"),
        (RepositoryNotFoundError("x", response=RESPONSE), "no such folder here"),
        (RevisionNotFoundError("x", response=RESPONSE), "owner/name at revision v1"),
        (LocalEntryNotFoundError("x"), "hub cannot be reached.*demo:smollm2-135m"),
        (httpx.ConnectError("no route"), "cannot be fetched.*no route"),
        (OSError("disk full"), "disk full"),
    ],
)
def test_hub_failure_becomes_a_model_error_with_advice(
    error: Exception, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(source, "snapshot_download", fail)
    with pytest.raises(ModelError, match=words):
        resolve_source("owner/name", "v1")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("/no/such/folder", "no folder /no/such/folder"),
        ("~/no such", "cannot be a hub id"),
        ("a/b/c", "no folder a/b/c"),
        ("nothing.gguf", "no GGUF file nothing"),
        ("demo:gpt5", "the demo model is demo:smollm2-135m"),
    ],
)
def test_missing_model_is_refused_without_asking_the_hub(model: str, words: str, hub: list) -> None:
    with pytest.raises(ModelError, match=words):
        resolve_source(model)
    assert not hub


def test_pickled_weights_and_broken_gguf_files_are_refused(tmp_path: Path, hub: list) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ModelError, match="only safetensors are supported"):
        resolve_source(str(tmp_path))
    with pytest.raises(ModelError, match="neither a folder nor"):
        resolve_source(str(tmp_path / "pytorch_model.bin"))
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF, but not really")
    with pytest.raises(ModelError, match=r"bad\.gguf cannot be converted"):
        resolve_source(str(bad))


@pytest.mark.parametrize("model", ["demo:smollm2-135m", "x.gguf", "."])
def test_revision_is_refused_for_anything_but_a_hub_id(model: str, hub: list) -> None:
    with pytest.raises(ConfigError, match="revision: only hub ids"):
        resolve_source(model, "main")

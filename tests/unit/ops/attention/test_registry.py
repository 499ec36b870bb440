"""Which backend a rank uses, and that each keeps to the protocol."""

import inspect

import pytest
import torch

from medusa_dist.config import Config
from medusa_dist.errors import ConfigError
from medusa_dist.ops.attention.backend import AttentionBackend
from medusa_dist.ops.attention.registry import BACKENDS, resolve_backend
from medusa_dist.ops.gpu import language
from tests.support.attention_cases import BACKENDS_HERE

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def test_auto_takes_what_the_device_and_dtype_can_run() -> None:
    assert resolve_backend("auto", CPU, torch.float32) == resolve_backend("auto", CPU, torch.bfloat16) == "paged_cpu"
    assert resolve_backend("auto", CPU, torch.float16) == "exact"


def test_auto_takes_sdpa_on_a_gpu_whether_triton_is_installed_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for installed in (True, False):
        monkeypatch.setattr(language, "HAS_TRITON", installed)
        for dtype in (torch.float32, torch.bfloat16):
            assert resolve_backend("auto", GPU, dtype) == "sdpa"


@pytest.mark.parametrize("name", BACKENDS_HERE)
def test_named_backend_is_used_where_it_runs(name: str) -> None:
    assert resolve_backend(name, CPU, torch.float32) == name


def test_triton_is_refused_by_key_without_its_package_or_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(language, "HAS_TRITON", True)
    assert resolve_backend("triton", GPU, torch.bfloat16) == "triton"
    with pytest.raises(ConfigError, match=r"attention_backend: triton runs on CUDA, not on cpu; use auto"):
        resolve_backend("triton", CPU, torch.float32)
    monkeypatch.setattr(language, "HAS_TRITON", False)
    with pytest.raises(ConfigError, match=r"attention_backend: triton needs the package triton .*gpu.*; use auto"):
        resolve_backend("triton", GPU, torch.bfloat16)


@pytest.mark.parametrize(("device", "dtype"), [(GPU, torch.float32), (CPU, torch.float16)])
def test_a_backend_that_cannot_run_there_is_refused_by_key(device: torch.device, dtype: torch.dtype) -> None:
    with pytest.raises(ConfigError, match=r"attention_backend: paged_cpu runs on a CPU .*use auto"):
        resolve_backend("paged_cpu", device, dtype)


def test_config_key_accepts_auto_and_every_registered_backend() -> None:
    names = Config.model_fields["attention_backend"].annotation.__args__
    assert set(names) == {"auto", *BACKENDS}


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_has_the_protocols_members(name: str) -> None:
    made = BACKENDS[name](64, 3, torch.bfloat16)
    for member in ("warm_up", "metadata", "__call__"):
        wanted = inspect.signature(getattr(AttentionBackend, member)).parameters
        assert list(inspect.signature(getattr(type(made), member)).parameters) == list(wanted), member
    assert made.tree_alignment is None or made.tree_alignment > 0

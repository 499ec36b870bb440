"""Triton where it is installed, else placeholders, so that kernel files can be imported anywhere.

Owns the only import of triton, and whether its kernels can run on a device. Not here: the kernels, how they are
launched (launch.py).
"""

import importlib.util
import os
from types import SimpleNamespace
from typing import Any

import torch

HAS_TRITON = importlib.util.find_spec("triton") is not None


def _keep(function: Any = None, **_options: Any) -> Any:
    """The decorator's place: what it returns cannot be launched."""
    return function or _keep


# Enough for a kernel file to be imported; whoever would launch one asks `refusal` before.
triton: Any = SimpleNamespace()
tl: Any = SimpleNamespace(constexpr=lambda value: value)
libdevice: Any = SimpleNamespace()
jit: Any = _keep

if HAS_TRITON:
    import triton as _triton
    import triton.language as _language
    from triton.language.extra import libdevice as _libdevice

    triton, tl, libdevice, jit = _triton, _language, _libdevice, _triton.jit


def interprets() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors: it is slow and there for tests.

    TRITON_INTERPRET is Triton's own variable; it counts when the kernels are imported.
    """
    return os.environ.get("TRITON_INTERPRET") == "1"


def refusal(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on this device; None if they can."""
    if not HAS_TRITON:
        return "needs the package triton (pip install 'medusa-dist[gpu]')"
    if device.type != "cuda" and not interprets():
        return f"runs on CUDA, not on {device.type}"
    return None


def padded(size: int, least: int = 1) -> int:
    """The smallest power of two that is >= size and >= least: Triton's tiles have such sizes."""
    return max(least, 1 << (size - 1).bit_length())

"""Compiles a recorded launch for a GPU that need not be there, and reads what the kernel takes of it.

Owns the translation of a launch into a signature as Triton's own launcher makes it, and the reading of the binary. Not
here: which launches are compiled and what their limits are (check/gpu_kernels.py).
Everything needed, NVIDIA's assembler and cuobjdump, is in Triton's wheel.
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medusa_dist.ops.gpu.language import triton
from medusa_dist.ops.gpu.launch import KernelLaunch

_DTYPES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.int32: "i32",
    torch.int64: "i64",
}
_ALIGNMENT = 16  # Triton compiles for pointers and integers that are, or are not, multiples of this
_PRODUCTS = ("mma.sync", "wgmma.mma_async", "tcgen05.mma")


@dataclass(frozen=True)
class KernelResources:
    """What one kernel takes of a GPU. local_bytes: per thread, in memory: spilled registers. products: instructions of
    tensor cores, by their PTX name."""

    name: str
    capability: int
    num_warps: int
    registers: int
    local_bytes: int
    shared_bytes: int
    products: tuple[str, ...]


def compile_for(launch: KernelLaunch, capability: int) -> KernelResources:
    """Compile for compute capability `capability` (80 is 8.0). Needs a process without TRITON_INTERPRET."""
    source = triton.compiler.ASTSource(fn=launch.kernel, **_signature(launch))
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages, "enable_fp_fusion": False}
    made = triton.compile(source, target=target, options=options)
    text = _resource_usage(made.asm["cubin"])
    registers, stack = (int(re.findall(rf"{word}:(\d+)", text)[-1]) for word in ("REG", "STACK"))
    return KernelResources(
        name=launch.kernel.__name__,
        capability=capability,
        num_warps=launch.num_warps,
        registers=registers,
        local_bytes=stack,
        shared_bytes=int(made.metadata.shared),
        products=tuple(word for word in _PRODUCTS if word in made.asm["ptx"]),
    )


def _signature(launch: KernelLaunch) -> dict[str, Any]:
    """The arguments of ASTSource: types, compile-time constants, and which arguments are multiples of 16."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for index, param in enumerate(launch.kernel.params):
        name = param.name
        if name in launch.constants:
            signature[name], constants[(index,)] = "constexpr", launch.constants[name]
            continue
        value = launch.arguments[name]
        if isinstance(value, torch.Tensor):
            signature[name], aligned = f"*{_DTYPES[value.dtype]}", value.storage_offset() * value.itemsize
        elif isinstance(value, float):
            signature[name] = "fp32"
            continue
        elif value == 1 and not param.do_not_specialize:
            signature[name], constants[(index,)] = "constexpr", 1
            continue
        else:
            signature[name], aligned = "i32", value
        if aligned % _ALIGNMENT == 0 and not param.do_not_specialize:
            attributes[(index,)] = [["tt.divisibility", _ALIGNMENT]]
    return {"signature": signature, "constexprs": constants, "attrs": attributes}


def _resource_usage(cubin: bytes) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    return done.stdout

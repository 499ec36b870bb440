"""Which dtype a device multiplies fast, and what `dtype: auto` means on it.

Owns that choice. Not here: the layers that compute in it (linear.py), the config key (config.py).
"""

import torch

AUTO = "auto"


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for products of bfloat16: GPUs since Ampere, CPUs with AVX-512 BF16 or AMX.

    Others emulate them, several times slower than float32.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of a name. auto: bfloat16 where it is fast, else float16 on a GPU and float32 on a CPU."""
    if name != AUTO:
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if has_fast_bfloat16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """As the config has it: torch.bfloat16 -> bfloat16."""
    return str(dtype).removeprefix("torch.")

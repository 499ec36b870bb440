"""Machine facts for a benchmark report: names, and measured memory bandwidth.

Owns measuring the bandwidth. Not here: GPU data sheets (check/roofline.py).
"""

import platform
import time
from pathlib import Path
from typing import Any

import torch


def machine(device: torch.device) -> dict[str, Any]:
    """Facts to quote with a result."""
    return {
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "device": str(device) if device.type == "cpu" else torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def read_bandwidth(device: torch.device, num_bytes: int = 1 << 29) -> float:
    """Read bandwidth of the device's memory for this process, bytes/s: the best of a few sums over an array."""
    data = torch.ones(num_bytes // 4, dtype=torch.float32, device=device)
    best = float("inf")
    for _ in range(4):
        begin = time.perf_counter()
        data.sum().item()  # synchronises with a GPU
        best = min(best, time.perf_counter() - begin)
    return num_bytes / best


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()

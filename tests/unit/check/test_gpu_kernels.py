"""Every GPU kernel compiles for chips that are not there, within their limits. In a process of its own, since this one
interprets kernels."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medusa_dist.check.gpu_kernels import SHARED_LIMIT
from medusa_dist.ops.gpu.language import HAS_TRITON

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="needs the package triton (pip install 'medusa-dist[gpu]')")
ROOT = Path(__file__).parents[3]


def compiled(*options: str) -> list[dict]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "medusa_dist.check.gpu_kernels", "--json", *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(row) for row in done.stdout.splitlines()]


def check(found: list[dict]) -> None:
    for kernel in found:
        words = f"{kernel['name']} for {kernel['for']} on sm_{kernel['capability']}"
        assert kernel["shared_bytes"] <= SHARED_LIMIT[kernel["capability"]], words
        assert kernel["registers"] <= 255
        # float32 has no tensor cores: for large heads, accumulators fill the registers (docs/gpu.md has the numbers).
        known = any(f"float32, heads of {size}" in kernel["for"] for size in (128, 256))
        assert kernel["local_bytes"] == 0 or (known and kernel["local_bytes"] <= 128), f"{words} spills registers"
        multiplies = kernel["name"] in {"attend_tiles", "multiply_tiles"} and "float32" not in kernel["for"]
        assert bool(kernel["products"]) == multiplies, f"{words}: {kernel['products']}"


def test_choice_and_layer_kernels_compile_within_the_limits() -> None:
    found = compiled("--only", "bfloat16, hidden", "--chips", "90")
    assert {kernel["name"] for kernel in found} == {
        *("add_and_normalise", "silu_times_up", "multiply_tiles", "choose_in_parts", "choose_part")
    }
    check(found)


def test_attention_compiles_within_the_limits_and_uses_tensor_cores() -> None:
    found = compiled("--only", "bfloat16, heads of 128, all", "--chips", "90")
    assert {kernel["name"] for kernel in found} == {"rotate_and_write", "attend_tiles", "merge_splits"}
    check(found)


@pytest.mark.slow
def test_all_kernels_with_all_sizes_compile_for_all_chips_within_their_limits() -> None:
    found = compiled("--chips", "80,90,100")
    assert {kernel["capability"] for kernel in found} == {80, 90, 100}
    assert len(found) == 3 * (3 * 4 * (2 * 3) + 3 * 9)
    check(found)


def test_a_limit_that_is_exceeded_is_seen() -> None:
    good = {"name": "choose_part", "for": "x", "capability": 80, "shared_bytes": 0, "registers": 9, "local_bytes": 0}
    check([good | {"products": []}])
    for wrong in ({"shared_bytes": 2**20}, {"local_bytes": 8}, {"products": ["mma.sync"]}):
        with pytest.raises(AssertionError):
            check([good | {"products": []} | wrong])

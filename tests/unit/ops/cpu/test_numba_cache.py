"""Compiled code on disk, seen from a later version of the package."""

import subprocess
import sys
from pathlib import Path

FIRST = """
from typing import NamedTuple
class Pair(NamedTuple):
    a: int
    b: int
"""
LOOP = """
import numba
from kept_types import {name}
from medusa_dist.ops.cpu.numba_cache import kept_on_disk
@kept_on_disk
@numba.njit
def add(pair):
    return pair.a + pair.b
print(add({name}(2, 3)))
"""


def test_cached_code_of_a_renamed_type_is_compiled_anew(tmp_path: Path) -> None:
    def run(name: str) -> str:
        (tmp_path / "kept_types.py").write_text(FIRST.replace("Pair", name))
        (tmp_path / "loop.py").write_text(LOOP.format(name=name))
        command = [sys.executable, "-c", "import sys; sys.path[:0] = ['.', sys.argv[1]]; import loop", str(ROOT)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("Pair") == "5\n"
    assert list((tmp_path / "__pycache__").glob("*.nbi")), "the code was not kept"
    assert run("Twosome") == "5\n"


ROOT = Path(__file__).parents[3]

"""What `make gpu` measures, on a tiny model on a CPU: it is whole, and its numbers add up."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from medusa_dist.bench import gpu_bench as command
from medusa_dist.bench.gpu_bench import TREE, GpuSetting, gpu_bench, show
from medusa_dist.bench.random_model import SHAPES
from medusa_dist.errors import ConfigError
from medusa_dist.medusa.trees.tree import check_paths

pytestmark = pytest.mark.usefixtures("one_thread")


def test_all_is_measured_on_a_model_made_on_the_spot(tmp_path: Path) -> None:
    sides = (("auto", "auto"), ("exact", "off"))
    report = gpu_bench(GpuSetting("tiny", "cpu", "float32", (1, 2), 8, 12, sides, tmp_path / "model"))
    assert [(row.backend, row.batch) for row in report.rows] == [("auto", 1), ("auto", 2), ("exact", 1)]
    for row in report.rows:
        assert row.plain_ms > 0 and row.tree_ms > 0 and 0 < row.roof_share < 1
        assert row.plain_tokens_per_s == pytest.approx(row.batch * 1e3 / row.plain_ms, rel=0.01)
        assert row.same_answers == 1.0, "on a CPU in float32, drafts change no token"
    assert [list(found) for found in report.verify_ms.values()] == [[1, 4, 16, 64]] * 2
    assert report.weight_bytes >= 4 * SHAPES["tiny"].num_parameters
    for value, bound, reached in report.goals.values():
        assert reached == ((value >= bound) if bound < 1 else (value <= bound))
    assert show(report).row_count == 3
    json.dumps(asdict(report))


def test_shapes_are_those_of_their_names_and_the_tree_has_15_nodes() -> None:
    assert SHAPES["8b"].num_parameters == 8_030_261_248  # what Llama 3.1 8B has
    check_paths(tuple(map(tuple, TREE)), 4, 4)
    assert len(TREE) == 15


def test_without_a_gpu_the_command_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="torch sees no NVIDIA GPU"):
        gpu_bench(GpuSetting("tiny", "cuda", "bfloat16", (1,), 8, 12, (("triton", "auto"),)))
    monkeypatch.setattr(sys, "argv", ["gpu_bench"])
    with pytest.raises(SystemExit):
        command.main()
    assert "--device cpu --shape tiny" in capsys.readouterr().err


def test_the_command_writes_the_json_and_prints_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gpu.json"
    words = ["--shape", "tiny", "--device", "cpu", "--dtype", "float32", "--batches", "1", "--max-tokens", "6"]
    monkeypatch.setattr(sys, "argv", ["gpu_bench", *words, "--output", str(path)])
    command.main()
    assert json.loads(path.read_text())["setting"]["shape"] == "tiny"
    assert "Verification after 1024 tokens" in capsys.readouterr().out

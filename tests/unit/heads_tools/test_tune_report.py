"""What tune-tree prints and writes."""

import io
from dataclasses import replace

import pytest
import yaml
from rich.console import Console

from medusa_dist.config import parse_config
from medusa_dist.heads_tools.tune_report import as_yaml, recommended, show
from medusa_dist.heads_tools.tune_tree import CAPS, BatchResult, Choice, Tuning
from medusa_dist.medusa.trees.tune import Point

TREE = tuple((i,) for i in range(10)) + tuple((i, j) for i in range(5) for j in range(5))


def result(batch: int, static: float | None = 1.3, dynamic: float | None = 1.4) -> BatchResult:
    points = [Point(batch, n, 1.0 + n / 100, 0.05 + n / 1000) for n in range(1, 64)]
    dynamics = [Point(batch, n, 1.1 + n / 100, 0.05) for n in CAPS]
    return BatchResult(
        plain=Point(batch, 0, 1.0, 0.04),
        static=points,
        dynamic=dynamics,
        best_static=Choice(points[34], 1.25, static, TREE),
        best_dynamic=Choice(dynamics[4], 1.5, dynamic),
    )


def tuning(*results: BatchResult) -> Tuning:
    return Tuning("demo", "float32", "cpu", 1234, list(results))


def test_tables_show_all_results_in_80_columns() -> None:
    stream = io.StringIO()
    show(tuning(result(1), result(4, None)), Console(file=stream, width=80))
    text = stream.getvalue()
    for part in ("1,234 recorded positions", "batch 4: static", "1.630", "113.0", "1.30", "-"):
        assert part in text, part
    assert "…" not in text and max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("mode", ["auto", "static"])
def test_written_yaml_is_a_valid_speculation_config(mode: str) -> None:
    text = as_yaml(tuning(result(1), result(4)), mode)
    keys = yaml.safe_load(text)
    config = parse_config({"model": "x", **keys})
    assert config.speculation.mode == mode
    if mode == "static":
        assert config.speculation.tree == TREE
    else:
        assert config.speculation.max_nodes == 7
    assert "measured gain 1.30" in text and text.count("speculation:") == 4
    assert max(map(len, text.splitlines())) <= 120


def test_commented_yaml_of_other_batch_sizes_is_valid_as_well() -> None:
    lines = as_yaml(tuning(result(1), result(4)), "auto").splitlines()
    begin = next(i for i, line in enumerate(lines) if line == "# speculation:" and "batch 4" in lines[i + 1])
    block = [line.removeprefix("# ") for line in lines[begin:]]
    assert yaml.safe_load("\n".join(block[: block.index("")]))["speculation"] == {"mode": "auto", "max_nodes": 7}


def test_recommended_mode_has_the_higher_measured_gain() -> None:
    assert recommended(tuning(result(1))) == "auto"
    assert recommended(tuning(result(1, static=1.5))) == "static"
    assert recommended(tuning(result(1, static=1.41))) == "auto", "a percent is within noise"
    unmeasured = replace(result(1), best_static=Choice(Point(1, 3, 1.2, 0.04), 1.6))
    assert recommended(tuning(unmeasured)) == "static"

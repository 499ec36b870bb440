"""The words of the commands around heads, where no model is needed."""

import sys

import pytest
from typer.testing import CliRunner, Result

from medusa_dist.cli.main import app


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("tune-tree", "--mode", "fast"), "--mode takes best, auto or static, not 'fast'"),
        (("tune-tree", "--batch", "none"), "--batch takes positive numbers"),
        (("train-heads", "out", "--taps", "3,x"), "--aux-layers takes layer numbers separated by commas, none or auto"),
        (("train-heads", "out", "--aux-layers", "3", "--form", "hidden"), "aux_layers belong to the form 'sequential'"),
        (("train-heads", "out", "--aux-layers=-1"), "aux_layers.0: "),
        (("eval-heads", "gone.yaml"), "gone.yaml cannot be read"),
        (("convert-heads", "nowhere/at/all", "out", "--base", "x"), "there is no folder"),
    ],
)
def test_wrong_argument_is_one_error_line_without_a_traceback(arguments: tuple[str, ...], error: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 1 and error in done.output and "Traceback" not in done.output


def test_plot_without_matplotlib_is_refused_before_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "medusa_dist.heads_tools.plots", raising=False)
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = run("eval-heads", "--plot", "heads.png")
    assert done.exit_code == 1 and "pip install 'medusa-dist[plots]'" in done.output

"""What eval-heads prints."""

import io

from rich.console import Console

from medusa_dist.heads_tools.eval_heads import HeadsReport
from medusa_dist.heads_tools.eval_report import show
from tests.support.heads_report import some_report


def shown(report: HeadsReport, width: int = 80) -> str:
    stream = io.StringIO()
    show(report, Console(file=stream, width=width))
    return stream.getvalue()


def test_report_shows_all_numbers_in_80_columns() -> None:
    text = shown(some_report())
    assert "mine on demo, float32, temperature 0: 60 positions in 3 answers to p.jsonl" in text
    for part in ("30.5", "40.0", "1.630", "1.315", "85.0", "12.0, calibrated 1.0 %", "code", "1.50", "25.0", "1.20"):
        assert part in text, part
    assert "…" not in text and max(map(len, text.splitlines())) <= 80


def test_report_leaves_speeds_empty_without_timing() -> None:
    text = shown(some_report(timed=False))
    assert "code" in text and "25.0" not in text


def test_heads_that_gain_nothing_show_a_gain_of_1() -> None:
    report = some_report()
    nothing = HeadsReport(**{**vars(report), "dynamic": [1.0] * 63, "static": [1.0] * 63, "categories": []})
    assert "1.000" in shown(nothing)

"""What eval-heads prints."""

import io

from rich.console import Console

from medusa_dist.jobs.eval_heads import Category, HeadsReport, Speed
from medusa_dist.jobs.eval_report import show
from medusa_dist.medusa.replay import Bin


def some_report(*, timed: bool = True) -> HeadsReport:
    speed = Speed(2, 1.5, 30.0, 25.0) if timed else None
    nodes = {n: 1.0 + n / 100 for n in (1, 3, 7, 15, 31, 63)}
    code = Category("code", 2, 40, [[0.31, 0.42], [0.1, 0.15]], nodes, speed)
    whole = Category("all", 3, 60, [[0.305, 0.4], [0.1, 0.15]], nodes, speed)
    return HeadsReport(
        model="demo",
        dtype="float32",
        heads="mine",
        temperature=0.0,
        max_tokens=20,
        prompts="p.jsonl",
        prompts_sha256="0",
        whole=whole,
        categories=[code],
        dynamic=[1.0 + n / 100 for n in range(1, 64)],
        static=[1.0 + n / 200 for n in range(1, 64)],
        confidence=[Bin(9, 0.05, 0.02), Bin(4, 0.85, 0.5)],
        calibrated=[Bin(13, 0.04, 0.04)],
        confidence_error=0.12,
        calibrated_error=0.01,
    )


def shown(report: HeadsReport, width: int = 80) -> str:
    stream = io.StringIO()
    show(report, Console(file=stream, width=width))
    return stream.getvalue()


def test_all_numbers_are_there_and_fit_80_columns() -> None:
    text = shown(some_report())
    assert "mine on demo, float32, temperature 0: 60 places in 3 answers to p.jsonl" in text
    for part in ("30.5", "40.0", "1.630", "1.315", "85.0", "12.0, calibrated 1.0 %", "code", "1.50", "25.0", "1.20"):
        assert part in text, part
    assert "…" not in text and max(map(len, text.splitlines())) <= 80


def test_what_was_not_timed_is_left_empty() -> None:
    text = shown(some_report(timed=False))
    assert "code" in text and "25.0" not in text


def test_heads_that_gain_nothing() -> None:
    report = some_report()
    nothing = HeadsReport(**{**vars(report), "dynamic": [1.0] * 63, "static": [1.0] * 63, "categories": []})
    assert "1.000" in shown(nothing)

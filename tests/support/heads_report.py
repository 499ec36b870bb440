"""A report on heads, made by hand."""

from medusa_dist.heads_tools.eval_heads import Category, HeadsReport, Speed
from medusa_dist.medusa.trees.replay import Bin


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

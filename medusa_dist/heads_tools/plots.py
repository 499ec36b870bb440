"""Plots of a heads report. Needs matplotlib, an extra: `pip install medusa-dist[plots]`.

Owns the drawing. Not here: the numbers (eval_heads.py).
"""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medusa_dist.errors import ConfigError
from medusa_dist.heads_tools.eval_heads import HeadsReport


def draw(report: HeadsReport, target: Path) -> None:
    """Accuracy curves, tokens per step by nodes, and reliability, next to each other. The suffix of target sets the
    format. Raises ConfigError for a format that is not supported."""
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    if target.suffix.lstrip(".").lower() not in figure.canvas.get_supported_filetypes():
        raise ConfigError(f"--plot: {target} must end in .png, .svg or .pdf")
    accuracy, curve, reliability = figure.subplots(1, 3)
    _accuracy(accuracy, report)
    _curve(curve, report)
    _reliability(reliability, report)
    figure.suptitle(f"{report.heads} on {report.model}, {report.whole.places:,} positions of {report.prompts}")
    figure.savefig(target, dpi=130)


def _accuracy(axes: Axes, report: HeadsReport) -> None:
    for head, shares in enumerate(report.whole.top_accuracies, start=1):
        axes.plot(range(1, len(shares) + 1), [100 * share for share in shares], marker="o", label=f"head {head}")
    axes.set(xlabel="k", ylabel="top-k accuracy, %", title="Accuracy", ylim=(0, None))
    axes.legend()
    axes.grid(alpha=0.3)


def _curve(axes: Axes, report: HeadsReport) -> None:
    nodes = range(1, len(report.dynamic) + 1)
    axes.plot(nodes, report.dynamic, label="dynamic trees")
    axes.plot(nodes, report.static, linestyle="--", label="best static tree")
    for category in report.categories:
        sizes = list(category.tokens_per_step)
        axes.plot(
            sizes, [category.tokens_per_step[n] for n in sizes], marker=".", lw=0.8, alpha=0.6, label=category.name
        )
    axes.set(xlabel="draft tokens per step", ylabel="tokens per step", title="Gain", ylim=(1, None))
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)


def _reliability(axes: Axes, report: HeadsReport) -> None:
    axes.plot([0, 100], [0, 100], color="grey", lw=0.8)
    for label, bins in (("raw", report.confidence), ("calibrated", report.calibrated)):
        axes.plot([100 * b.predicted for b in bins], [100 * b.measured for b in bins], marker="o", label=label)
    axes.set(xlabel="predicted acceptance, %", ylabel="measured acceptance, %", title="Confidence")
    axes.legend()
    axes.grid(alpha=0.3)

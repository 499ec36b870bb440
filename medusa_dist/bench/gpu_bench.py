"""What `make gpu` measures: `python -m medusa_dist.bench.gpu_bench`, on a model with random weights.

Owns what is measured on a GPU, its goals, and the table. Not here: the model (random_model.py), a single run
(timed_run.py), the kernels' tests (mark gpu).
Random heads are right by chance alone, so with drafts it is the cost of a step that counts: how many tokens a step has
to give to pay for its tree. Steps that compute prompts are not counted.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from medusa_dist.bench.machine import machine, read_bandwidth
from medusa_dist.bench.random_model import SHAPES, save_random_model
from medusa_dist.bench.timed_run import TimedRun, run_prompts
from medusa_dist.engine.startup.step_cost import rows_plan
from medusa_dist.engine.steps.record import LoggedStep
from medusa_dist.errors import ConfigError
from medusa_dist.llm import LLM
from medusa_dist.sampling_params import SamplingParams

TREE = [[0], [1], [2], [3], [0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [2, 0], [0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]]
TREE.append([0, 0, 0, 0])  # 15 nodes and the root: 16 rows
VERIFIED = (1, 4, 16, 64)  # rows
_CONTEXT = 1024  # tokens before the verified rows
_ROUNDS = 20
GOAL_ROOF = 0.75  # plain decoding of one sequence, of the time to read the weights
GOAL_TREE = 1.15  # 16 rows, over one


@dataclass(frozen=True)
class GpuSetting:
    """sides: (attention_backend, cuda_graphs), the first one for all batches, the others for the first batch alone."""

    shape: str
    device: str
    dtype: str
    batches: Sequence[int]
    max_tokens: int
    prompt_tokens: int
    sides: Sequence[tuple[str, str]]
    folder: Path | None = None  # where the model is, or is written; None: a temporary one


@dataclass(frozen=True)
class GpuRow:
    """Steps of `batch` sequences, plain and with a tree of 15 drafts each. roof_share: time to read the weights once /
    plain step. break_even: tokens per step at which the trees pay. same_answers: share with equal tokens."""

    backend: str
    graphs: str
    batch: int
    plain_ms: float
    plain_tokens_per_s: float
    roof_share: float
    tree_ms: float
    break_even: float
    same_answers: float


@dataclass(frozen=True)
class GpuReport:
    """verify_ms: by backend and rows, one sequence after 1,024 tokens. goals: name -> (value, bound, reached)."""

    machine: dict[str, Any]
    setting: dict[str, Any]
    weight_bytes: int
    bandwidth_bytes_per_s: float
    start_s: dict[str, float]
    rows: list[GpuRow]
    verify_ms: dict[str, dict[int, float]]
    goals: dict[str, tuple[float, float, bool]]
    seconds: float


def gpu_bench(setting: GpuSetting) -> GpuReport:
    """Measure all sides. Raises ConfigError where the device is missing."""
    begin = time.perf_counter()
    if setting.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("torch sees no NVIDIA GPU; --device cpu --shape tiny shows whether the measurement is whole")
    device = torch.device(setting.device)
    rows: list[GpuRow] = []
    verify_ms: dict[str, dict[int, float]] = {}
    start_s: dict[str, float] = {}
    with ExitStack() as stack:
        folder = setting.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="medusa-dist-gpu-")))
        if not (folder / "model.safetensors.index.json").is_file():
            save_random_model(folder, SHAPES[setting.shape], getattr(torch, setting.dtype), device)
        bandwidth = read_bandwidth(device, 1 << 32 if device.type == "cuda" else 1 << 24)
        for number, side in enumerate(setting.sides):
            started = time.perf_counter()
            with _open(folder, setting, side) as llm:
                name = f"{llm.facts['attention_backend']}, graphs: {llm.facts['cuda_graphs']}"
                start_s[name] = round(time.perf_counter() - started, 1)
                weight_bytes = int(llm.facts["weight_bytes"])
                verify_ms[name] = _verify_ms(llm)
                batches = setting.batches if number == 0 else setting.batches[:1]
                rows += [_row(llm, setting, side, batch, 1e3 * weight_bytes / bandwidth) for batch in batches]
            if device.type == "cuda":
                torch.cuda.empty_cache()
    first = next(iter(verify_ms.values()))
    tree = first[16] / first[1]
    goals = {
        "roof share of plain decoding, first batch": (rows[0].roof_share, GOAL_ROOF, rows[0].roof_share >= GOAL_ROOF),
        "16 rows over one": (round(tree, 3), GOAL_TREE, tree <= GOAL_TREE),
    }
    about = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(setting).items()}
    seconds = round(time.perf_counter() - begin, 1)
    return GpuReport(machine(device), about, weight_bytes, bandwidth, start_s, rows, verify_ms, goals, seconds)


def _open(folder: Path, setting: GpuSetting, side: tuple[str, str]) -> LLM:
    backend, graphs = side
    longest = max(_CONTEXT + 2 * max(VERIFIED), setting.prompt_tokens + setting.max_tokens + len(TREE) + 1)
    most = max(setting.batches)
    options: dict[str, Any] = {
        **{"device": setting.device, "attention_backend": backend, "cuda_graphs": graphs, "skip_tokenizer_init": True},
        **{"max_running": most, "max_model_len": longest, "max_batched_tokens": max(2048, most * (1 + len(TREE)))},
    }
    return LLM(
        str(folder),
        heads={"source": str(folder / "heads"), "allow_untrained": True},
        dtype=setting.dtype,
        speculation={"mode": "static", "tree": TREE, "min_accepted": 0.0},
        **options,
    )


def _row(llm: LLM, setting: GpuSetting, side: tuple[str, str], batch: int, roof_ms: float) -> GpuRow:
    rng = random.Random(batch)
    vocab = SHAPES[setting.shape].vocab_size
    prompts = [[rng.randrange(2, vocab) for _ in range(setting.prompt_tokens)] for _ in range(batch)]
    params = SamplingParams(max_tokens=setting.max_tokens, temperature=0.0, ignore_eos=True)
    steps: list[LoggedStep] = []
    llm.engine.recorder.observers.append(steps.append)
    runs: dict[bool, list[TimedRun]] = {True: [], False: []}
    for drafts in (False, True, False, True):  # the first two warm up
        if len(runs[True]) == len(runs[False]) == 1:
            steps.clear()
        runs[drafts].append(run_prompts(llm.engine, prompts, batch, params, drafts))
    llm.engine.recorder.observers.clear()
    plain_ms, tree_ms = (_step_ms(steps, batch, batch * rows) for rows in (1, 1 + len(TREE)))
    pairs = list(zip(runs[False][-1].tokens, runs[True][-1].tokens, strict=True))
    return GpuRow(
        *side,
        batch,
        round(plain_ms, 3),
        round(batch * 1e3 / plain_ms, 1),
        round(roof_ms / plain_ms, 3),
        round(tree_ms, 3),
        round(tree_ms / plain_ms, 3),
        round(sum(a == b for a, b in pairs) / len(pairs), 3),
    )


def _step_ms(steps: Sequence[LoggedStep], batch: int, num_rows: int) -> float:
    """Median milliseconds of the steps in which `batch` sequences decode with num_rows rows."""
    times = [sum(s.seconds.values()) for s in steps if len(s.trees) == batch and s.num_rows == num_rows]
    if not times:
        raise ConfigError(f"no step of {batch} sequences had {num_rows} rows; raise --max-tokens")
    return 1e3 * statistics.median(times)


def _verify_ms(llm: LLM) -> dict[int, float]:
    """Milliseconds of a verification by its rows: the median of some."""
    ranks = llm.engine.ranks
    found = {}
    for rows in VERIFIED:
        times = []
        for _ in range(_ROUNDS + 3):
            plan = rows_plan(ranks, rows, _CONTEXT)
            begin = time.perf_counter()
            ranks.verify(plan)  # ends on the host, so it waits for the device
            times.append(time.perf_counter() - begin)
        found[rows] = round(1e3 * statistics.median(times[3:]), 3)
    return found


def show(report: GpuReport) -> Table:
    """The rows as a table; verification and goals in its caption."""
    table = Table(title=f"{report.setting['shape']}, {report.setting['dtype']}; {report.machine['device']}")
    table.title_justify = "left"
    for name in ("attention", "graphs", "batch", "ms/step", "tokens/s", "roof", "ms/step, trees", "pays from", "same"):
        table.add_column(name, justify="right")
    for row in report.rows:
        table.add_row(
            *(row.backend, row.graphs, str(row.batch), f"{row.plain_ms:.2f}", f"{row.plain_tokens_per_s:.0f}"),
            *(f"{100 * row.roof_share:.0f} %", f"{row.tree_ms:.2f}", f"{row.break_even:.2f} tokens/step"),
            f"{100 * row.same_answers:.0f} %",
        )
    lines = [f"Verification after {_CONTEXT} tokens, milliseconds by rows:"]
    for name, found in report.verify_ms.items():
        lines.append(f"  {name}: {', '.join(f'{n}: {ms:.2f}' for n, ms in found.items())}")
    for name, (value, bound, is_reached) in report.goals.items():
        lines.append(f"{name}: {value:.2f} (goal {bound}): {'reached' if is_reached else 'missed'}")
    weights, bandwidth = report.weight_bytes / 1e9, report.bandwidth_bytes_per_s / 1e9
    lines.append(
        f"{weights:.2f} GB of weights, {bandwidth:.0f} GB/s; the whole measurement took {report.seconds:.0f} s"
    )
    table.caption = "\n".join(lines)
    table.caption_justify = "left"
    return table


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description="measure decoding and verification on a GPU, with random weights")
    parser.add_argument("--shape", default="8b", choices=SHAPES, help="sizes of the model")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--batches", default="1,4,16,64", help="sequences, separated by commas")
    parser.add_argument("--max-tokens", type=int, default=64, help="tokens per answer")
    parser.add_argument("--folder", type=Path, help="keep the model here, for the next time")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"), help="where the report is written")
    options = parser.parse_args()
    on_gpu = options.device == "cuda"
    sides = (("triton", "auto"), ("triton", "off"), ("sdpa", "off")) if on_gpu else (("auto", "auto"),)
    batches = [int(part) for part in options.batches.split(",")]
    setting = GpuSetting(
        *(options.shape, options.device, options.dtype, batches, options.max_tokens), 128, sides, options.folder
    )
    try:
        report = gpu_bench(setting)
    except ConfigError as error:
        parser.error(str(error))
    options.output.write_text(json.dumps(asdict(report), indent=2) + "\n")
    Console(width=160).print(show(report))
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()

"""Roofline model: the lower bound of a step's time on GPUs with known data sheets.

Owns the table of GPUs and the formula. Pure functions. Not here: a rank's bytes (model/sizing.py), the measured cost
of a step (engine/startup/step_cost.py). A step reads every weight of a rank once, for any number of tokens, and
computes
2 operations per weight and token. So it takes at least max(bytes / bandwidth, operations / peak): further tokens are
free up to the knee, where both are equal. Real steps take longer, because they reach neither limit, and ranks wait for
each other twice per layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from medusa_dist.errors import ConfigError
from medusa_dist.model.sizing import RankSize

_TERA, _GIB = 1e12, float(1 << 30)


@dataclass(frozen=True)
class GPU:
    """One GPU. memory_bytes: as its driver reports it. bandwidth: bytes/s. Peaks: operations/s, dense, no sparsity.

    half_peak: float16 and bfloat16 with float32 accumulation, on tensor cores; float_peak: float32 without TF32.
    """

    name: str
    memory_bytes: int
    bandwidth: float
    half_peak: float
    float_peak: float

    def peak(self, dtype: str) -> float:
        """Operations per second in a config's dtype."""
        return self.float_peak if dtype == "float32" else self.half_peak


# Bandwidth and peaks: NVIDIA's data sheets (SXM if there are variants). Memory: the total that PyTorch reports,
# which is below the advertised size; drivers differ by some hundred MB.
_SHEETS = (
    ("b200", 178.3, 8.0, 2250.0, 75.0),
    ("h200", 139.8, 4.8, 989.0, 67.0),
    ("h100", 79.1, 3.35, 989.0, 67.0),
    ("h100-pcie", 79.1, 2.0, 756.0, 51.0),
    ("a100-80g", 79.1, 2.039, 312.0, 19.5),
    ("a100-40g", 39.4, 1.555, 312.0, 19.5),
    ("l40s", 44.4, 0.864, 362.0, 91.6),
    ("a10", 22.0, 0.6, 125.0, 31.2),
    ("l4", 22.0, 0.3, 121.0, 30.3),
    ("rtx4090", 23.6, 1.008, 165.2, 82.6),
    ("rtx3090", 23.6, 0.936, 71.0, 35.6),
)
GPUS = {
    name: GPU(name, int(gib * _GIB), bandwidth * _TERA, half * _TERA, full * _TERA)
    for name, gib, bandwidth, half, full in _SHEETS
}


def find_gpu(name: str) -> GPU:
    """The GPU of that name. Raises ConfigError with the known names."""
    found = GPUS.get(name.lower().removeprefix("nvidia-"))
    if found is None:
        raise ConfigError(f"--gpu: {name!r} is unknown; use one of {', '.join(GPUS)}")
    return found


@dataclass(frozen=True)
class Work:
    """Bytes and operations of the slowest rank in a step. context: cached tokens per sequence.

    draft_bytes: of the heads and their lm_head rows, read once more if trees are drafted (rank 0).
    """

    size: RankSize
    experts_per_token: int
    kv_token_bytes: int
    context: int
    draft_bytes: int

    def weight_bytes(self, rows: int) -> float:
        """Weights read by a step; of experts, the share expected to be chosen by this number of tokens."""
        if not self.size.num_experts:
            return float(self.size.dense_bytes)
        missed = (1 - self.experts_per_token / self.size.num_experts) ** rows
        return self.size.dense_bytes + self.size.expert_bytes * (1 - missed)

    def operations(self, rows: int) -> float:
        """Operations of a step in matrix products with weights."""
        share = self.experts_per_token / self.size.num_experts if self.size.num_experts else 0.0
        return 2.0 * rows * (self.size.dense_params + share * self.size.expert_params)


@dataclass(frozen=True)
class RooflineStep:
    """A step of `sequences` with `rows` tokens in total. Lower bounds in seconds."""

    sequences: int
    rows: int
    memory_s: float
    compute_s: float
    draft_s: float

    @property
    def seconds(self) -> float:
        """The larger of memory and compute time, plus drafting."""
        return max(self.memory_s, self.compute_s) + self.draft_s


def step(gpu: GPU, dtype: str, work: Work, sequences: int, nodes: int) -> RooflineStep:
    """A decoding step with `nodes` draft tokens per sequence; 0 = plain."""
    rows = sequences * (1 + nodes)
    read = work.weight_bytes(rows) + sequences * work.context * work.kv_token_bytes
    return RooflineStep(
        sequences,
        rows,
        read / gpu.bandwidth,
        work.operations(rows) / gpu.peak(dtype),
        work.draft_bytes / gpu.bandwidth if nodes else 0.0,
    )


def knee(gpu: GPU, dtype: str, work: Work) -> int:
    """Most tokens that a step can compute while it reads the weights: up to this, drafts are nearly free."""
    rows = 1
    while work.operations(rows + 1) / gpu.peak(dtype) <= work.weight_bytes(rows + 1) / gpu.bandwidth:
        rows += 1
    return rows


def steps(
    gpu: GPU, dtype: str, work: Work, batches: Sequence[int], nodes: int
) -> list[tuple[RooflineStep, RooflineStep]]:
    """For each batch size, the plain step and the step with trees of `nodes` draft tokens."""
    return [(step(gpu, dtype, work, size, 0), step(gpu, dtype, work, size, nodes)) for size in batches]

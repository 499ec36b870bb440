"""`medusa-dist check`: validates a Serve config on any machine, without loading weights.

Owns the order of the checks and the content of a report. Not here: the checks (serve/config_file.py, placement.py,
memory.py, roofline.py), the report's format (report.py).
A failed check skips only those that need its result; skipped checks are listed.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from ray.serve.schema import ServeApplicationSchema

from medusa_dist.check.memory import DraftBytes, GroupMemory, draft_bytes, group_memory, memory_notes, misfits
from medusa_dist.check.placement import Placement, misplacements, place
from medusa_dist.check.roofline import GPU, RooflineStep, Work, find_gpu, knee, steps
from medusa_dist.config import LOOKUP, Config
from medusa_dist.engine.startup.find_heads import find_heads, read_source
from medusa_dist.engine.startup.kv_sizing import MIN_BLOCKS
from medusa_dist.errors import ConfigError, HeadsError, HubUnreachableError
from medusa_dist.medusa.eagle3.checkpoint import Eagle3File
from medusa_dist.medusa.heads.heads_file import DESCRIPTION
from medusa_dist.medusa.published.reader import CONFIG, AnyHeads, described_any_heads
from medusa_dist.medusa.trees.draft import DRAFT_TOP_K
from medusa_dist.medusa.trees.tree import check_paths
from medusa_dist.model.context_length import check_cache_holds, context_length, resolve_max_model_len
from medusa_dist.model.fingerprint import fingerprint
from medusa_dist.model.safetensors_headers import Headers, read_headers
from medusa_dist.model.sharding_plans import HeadShape, check_tp_size, legal_tp_sizes
from medusa_dist.model.sizing import HeaderCheckpoint, RankSize, own_shapes, rank_size
from medusa_dist.model.source.resolve_model import hub_folder, is_hub_id
from medusa_dist.model.support_check import model_class, output_width, read_config
from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS
from medusa_dist.ops.cpu.packed_weights import INT8
from medusa_dist.ops.dtypes import AUTO, choose_dtype, dtype_name
from medusa_dist.ops.tp_group import TPGroup
from medusa_dist.serve.config_file import ServeFile

DEFAULT_GPU = "h100"
_CPU = torch.device("cpu")
SEEN = {
    "folder": "from the weight files' headers",
    "hub": "from the weight files' headers on the hub",
    "none": "from config.json only: no weights were read, shapes follow from the architecture",
}


@dataclass(frozen=True)
class Options:
    """Command-line options. model: a folder to read instead of the config's model. context: tokens."""

    gpu: str | None = None
    model: str | None = None
    context: int = 1024
    gpus_per_node: int = 8


@dataclass(frozen=True)
class Roof:
    """Steps by the roofline model, per batch size (plain, with trees), and the knee in tokens."""

    context: int
    steps: list[tuple[RooflineStep, RooflineStep]]
    knee: int


@dataclass
class CheckReport:
    """The result for one application. problems: why it cannot work. notes: it works, with a caveat."""

    application: str
    config: Config
    gpu: GPU | None
    placement: Placement
    weights_seen: str = ""
    memory: GroupMemory | None = None
    heads: str = "none"
    roof: Roof | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if there are no problems."""
        return not self.problems


def check(file: ServeFile, options: Options) -> list[CheckReport]:
    """One report per medusa_dist application of a Serve config. Raises ConfigError for invalid options."""
    applications = {application.name: application for application in file.schema.applications}
    return [check_application(config, applications[name], options) for name, config in file.configs.items()]


def check_application(config: Config, application: ServeApplicationSchema, options: Options) -> CheckReport:
    """Check placement, model, number of ranks, heads, memory and roofline, in this order."""
    gpu, notes = choose_gpu(config, options)
    # auto is bfloat16 on every GPU of the table
    dtype = "bfloat16" if gpu is not None and config.dtype == AUTO else dtype_name(choose_dtype(config.dtype, _CPU))
    resolved = config.model_copy(update={"device": "cpu" if gpu is None else "cuda", "dtype": dtype})
    plan = place(resolved, application, options.gpus_per_node)
    report = CheckReport(application.name, resolved, gpu, plan, notes=notes)
    report.problems += misplacements(resolved, plan, application)
    if config.quantization == INT8 and gpu is not None:
        report.problems.append("quantization: there are no 8-bit products for GPUs yet; use none, or device: cpu")
    try:
        headers = read_headers(options.model or config.model, None if options.model else config.revision)
        base = read_config(headers.folder, config.trust_remote_code)
        model_class(base, config.trust_remote_code)
    except ConfigError as error:
        report.problems.append(f"model: {error.message}")
        report.unchecked.append("tensor_parallel_size, heads, memory and step cost require at least the model's config")
        if is_hub_id(config.model):
            report.unchecked[-1] += "; use --model FOLDER to read it from a folder with a config.json"
        return report
    report.weights_seen = headers.seen
    heads = _heads(report, headers, base)
    try:
        check_tp_size(base, config.tensor_parallel_size)
        sizes = rank_sizes(resolved, headers, base)
    except ConfigError as error:
        report.problems.append(error.message)
        report.unchecked.append("memory and step cost require a valid number of ranks")
        return report
    _measure(report, base, sizes, heads, options.context)
    return report


def choose_gpu(config: Config, options: Options) -> tuple[GPU | None, list[str]]:
    """The GPU to calculate for (None: a CPU), and notes on the choice."""
    if config.device == "cpu":
        if options.gpu is not None:
            raise ConfigError(f"--gpu: {config.name} has device: cpu; set device: auto or cuda, or remove --gpu")
        return None, []
    if options.gpu is None:
        return find_gpu(DEFAULT_GPU), [f"--gpu is not set: assuming {DEFAULT_GPU}"]
    return find_gpu(options.gpu), []


def rank_sizes(config: Config, headers: Headers, base: Any) -> list[RankSize]:
    """Each rank's shard of the model. Raises ModelError if config and weights do not match."""
    dtype: torch.dtype = getattr(torch, config.dtype)
    trust, world = config.trust_remote_code, config.tensor_parallel_size
    shapes = headers.shapes if headers.shapes is not None else own_shapes(base, dtype, trust)
    checkpoint = HeaderCheckpoint(headers.folder, shapes)

    def size(rank: int) -> RankSize:
        return rank_size(base, checkpoint, TPGroup(rank, world), dtype, config.device, trust, config.quantization)

    dimensions = {d for shape in shapes.values() for d in shape} | {HeadShape.of(base, TPGroup()).num_kv_heads}
    if all(d % world == 0 for d in dimensions):  # all shards are even, so all ranks are equal
        return [size(0)] * world
    return [size(rank) for rank in range(world)]


def heads_file(config: Config, base: Any) -> AnyHeads | None:
    """The heads that would be served, from their headers or their description alone; None: there are none.

    base: the model's config. Raises ConfigError if they are missing or invalid, or a description does not say enough.
    """
    source = config.heads.source
    if config.speculation.mode != "off" and source is not None and is_hub_id(source):
        folder = hub_folder(source, None, [DESCRIPTION, CONFIG])
        if not any(folder.glob("*.safetensors")):
            described = described_any_heads(folder)
            if described is None:
                raise HeadsError(
                    f"heads: {CONFIG} alone does not describe Medusa heads; give a folder with their tensors"
                )
            return described
    else:
        found = find_heads(config)
        if found is None:
            return None
        folder = found
    return read_source(folder, config.model, base, shapes_only=True)


def _heads(report: CheckReport, headers: Headers, base: Any) -> AnyHeads | None:
    """The heads, if they exist and fit; problems are added to the report."""
    config = report.config
    try:
        file = heads_file(config, base)
        if file is None:
            if config.speculation.mode != "off":
                instead = "lookup alone drafts" if LOOKUP in config.speculation.drafters else "nothing drafts"
                report.notes.append(f"heads.source is not set, and this model has no shipped heads: {instead}")
            return None
        made_for = file.fingerprint
        known = fingerprint(headers.folder) if made_for and headers.seen == "folder" else None
        file.check_base(output_width(base), base.vocab_size, known, config.heads.allow_untrained)
        file.check_layers(int(base.num_hidden_layers), int(base.hidden_size))
        if config.speculation.tree is not None:
            check_paths(config.speculation.tree, file.num_levels, DRAFT_TOP_K)
    except HubUnreachableError as error:
        report.heads = "not counted"
        report.unchecked.append(f"heads: neither their fit nor their memory: {error.message}")
        return None
    except ConfigError as error:
        report.problems.append(error.message if error.message.startswith(("heads", "spec")) else f"heads: {error}")
        return None
    if made_for and known is None:
        report.unchecked.append(
            "whether the heads were trained for these weights: no weights to compute a fingerprint from"
        )
    kind = "EAGLE-3 levels" if isinstance(file, Eagle3File) else "heads"
    report.heads = f"{file.num_levels} {kind} for {file.made_for}"
    return file


def _measure(report: CheckReport, base: Any, sizes: list[RankSize], heads: AnyHeads | None, context: int) -> None:
    """Add memory and roofline to the report."""
    config, gpu = report.config, report.gpu
    longest = context_length(base)
    try:
        max_model_len = resolve_max_model_len(config.max_model_len, longest)
    except ConfigError as error:
        report.problems.append(error.message)
        max_model_len = longest.tokens
    draft = DraftBytes()
    if heads is not None:
        dtype, device = getattr(torch, config.dtype), torch.device(config.device)
        draft = draft_bytes(heads, sizes[0].output_shape[0], sizes[0].input_shape[0], dtype, device)
    num_layers = int(base.num_hidden_layers)
    memory = report.memory = group_memory(config, sizes, num_layers, max_model_len, draft, gpu)
    try:
        if memory.kv_blocks >= MIN_BLOCKS:
            check_cache_holds(config.max_model_len, max_model_len, memory.kv_tokens, config.kv_cache_tokens)
        report.notes += memory_notes(memory)
    except ConfigError as error:
        report.problems.append(error.message)
    if gpu is None:
        report.unchecked.append("step cost: not calculated for CPUs; `medusa-dist bench` measures it")
        return
    report.problems += misfits(config, memory, gpu, legal_tp_sizes(base)[-1])
    work = Work(
        size=max(sizes, key=lambda size: size.dense_bytes + size.expert_bytes),
        experts_per_token=int(getattr(base, "num_experts_per_tok", None) or 1),
        kv_token_bytes=max(rank.block_bytes for rank in memory.ranks) // BLOCK_TOKENS,
        context=min(context, max_model_len),
        draft_bytes=draft.read,
    )
    batches = sorted({1, config.max_running})
    nodes = 0 if config.speculation.mode == "off" else config.speculation.most_nodes
    fitting = min(nodes, max(0, config.max_batched_tokens // batches[-1] - 1))
    if fitting < nodes:
        report.notes.append(
            f"max_batched_tokens {config.max_batched_tokens} leaves {fitting} draft tokens per sequence at max_running"
        )
    pairs = steps(gpu, config.dtype, work, batches[:1], nodes) + steps(gpu, config.dtype, work, batches[1:], fitting)
    report.roof = Roof(work.context, pairs, knee(gpu, config.dtype, work))

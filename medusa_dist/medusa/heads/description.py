"""heads.json: what a head file of ours says about its heads.

Owns its keys. Not here: the tensors (heads_file.py), the modules (medusa_heads.py, sequential.py, prefix_layer.py).
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from medusa_dist.config_parts.strict import Strict


class BaseModelFacts(Strict):
    """The base model that the heads were made for."""

    name: str = Field(description="Where it came from, for display.")
    fingerprint: str | None = Field(description="model/fingerprint.py of its folder; None: not recorded.")
    hidden_size: Annotated[int, Field(ge=1)]
    vocab_size: Annotated[int, Field(ge=1)]
    layer_width: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Width of the hidden states between layers, for heads that read them; None: hidden_size.",
    )


class PrefixLayerShape(Strict):
    """A decoder layer of the heads' own, with keys and values for all tokens (prefix_layer.py)."""

    num_heads: Annotated[int, Field(ge=1)]
    num_kv_heads: Annotated[int, Field(ge=1)]
    head_dim: Annotated[int, Field(ge=2, multiple_of=2)]
    inner: Annotated[int, Field(ge=1, description="Inner width of its MLP.")]
    rope_theta: Annotated[float, Field(gt=0)] = 10_000.0
    eps: Annotated[float, Field(gt=0)] = 1e-6

    @model_validator(mode="after")
    def _heads_in_groups(self) -> "PrefixLayerShape":
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is no multiple of num_kv_heads {self.num_kv_heads}")
        return self

    def shapes(self, hidden: int, width: int) -> dict[str, tuple[int, ...]]:
        """Name -> shape of its tensors, for a base with this hidden size, and rows this wide that it reads."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {
            "fuse.weight": (hidden, width),
            "attention_norm": (hidden,),
            "q_proj.weight": (queries, hidden),
            "k_proj.weight": (keys, hidden),
            "v_proj.weight": (keys, hidden),
            "o_proj.weight": (hidden, queries),
            "mlp_norm": (hidden,),
            "gate_proj.weight": (self.inner, hidden),
            "up_proj.weight": (self.inner, hidden),
            "down_proj.weight": (hidden, self.inner),
        }


class HeadsDescription(Strict):
    """heads.json. Head k (1-based) guesses the token k positions after the one just emitted: offsets[k-1] = k."""

    format_version: Literal[1] = 1
    form: Literal["hidden", "hidden+embedding", "sequential"] = Field(
        description="hidden: Medusa's own form, x = last hidden state after the final norm. hidden+embedding: x = that "
        "and the input embedding of the token just emitted, times embedding_scale. sequential: one cell, applied head "
        "by head to its own last state and the embedding of the last guessed token (medusa/heads/sequential.py)."
    )
    width: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Inner width of the cell; required for the form sequential, invalid for others."
    )
    embedding_scale: float = 1.0
    tapped_layers: tuple[int, ...] = Field(
        default=(-1,),
        description="Layers whose output the heads read. First -1: the input of the lm_head, after the final norm. "
        "Then, only for the form sequential, aux layers in ascending order, counted from 0.",
    )
    prefix: PrefixLayerShape | None = Field(
        default=None, description="The layer that lets the heads read the whole text; only for the form sequential."
    )
    num_heads: Annotated[int, Field(ge=1, le=16)]
    num_blocks: Annotated[int, Field(ge=1)] = Field(default=1, description="Residual blocks per head.")
    bias: bool = True
    lm_head: Literal["shared", "own"] = "shared"
    draft_vocab_size: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="None: the heads know the whole vocabulary."
    )
    offsets: tuple[int, ...] = Field(description="Distance of each head's token from the one just emitted.")
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    dtype: Literal["float32", "bfloat16", "float16"]
    base: BaseModelFacts
    training: dict[str, Any] = Field(default_factory=dict, description="Data and recipe, for display.")
    top_accuracies: tuple[tuple[float, ...], ...] = Field(
        default=(), description="Measured: [head][rank] = share of positions where that guess was right."
    )

    @model_validator(mode="after")
    def _cell_belongs_to_sequential(self) -> "HeadsDescription":
        if (self.form == "sequential") != (self.width is not None):
            raise ValueError("width is needed by the form 'sequential' and belongs to no other form")
        if self.form == "sequential" and (self.lm_head != "shared" or self.num_blocks != 1 or not self.bias):
            raise ValueError("the form 'sequential' has lm_head 'shared', num_blocks 1 and bias")
        if self.prefix is not None and self.form != "sequential":
            raise ValueError(f"prefix belongs to the form 'sequential', not to {self.form!r}")
        return self

    @model_validator(mode="after")
    def _taps_in_order(self) -> "HeadsDescription":
        if self.tapped_layers[:1] != (-1,) or list(self.aux_layers) != sorted(
            {layer for layer in self.aux_layers if layer >= 0}
        ):
            raise ValueError(f"tapped_layers {list(self.tapped_layers)} must be -1 and then ascending layers from 0 on")
        if self.aux_layers and self.form != "sequential":
            raise ValueError(f"tapped_layers other than [-1] belong to the form 'sequential', not to {self.form!r}")
        return self

    @property
    def aux_layers(self) -> tuple[int, ...]:
        """The aux layers whose hidden states the heads read besides the last one."""
        return self.tapped_layers[1:]

    @property
    def tap_width(self) -> int:
        """Width of the hidden state of one aux layer."""
        return self.base.layer_width or self.base.hidden_size

    @property
    def read_width(self) -> int:
        """Width of the rows that the heads start from: of the prefix layer's output, or else input_width."""
        return self.input_width if self.prefix is None else self.base.hidden_size

    @property
    def input_width(self) -> int:
        """Width of the rows that the heads, or their prefix layer, read: the last hidden state, then the aux hidden
        states."""
        return self.base.hidden_size + len(self.aux_layers) * self.tap_width

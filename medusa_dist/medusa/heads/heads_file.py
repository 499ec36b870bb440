"""The head file: a folder with heads.safetensors and heads.json, format version 1.

Owns the format: reading, checking against a base model, writing. Not here: the modules that run heads (medusa_heads.py,
sequential.py), other projects' formats (published_heads.py).
Tensors:
`heads.{k}.blocks.{l}.weight` [H, H_in] and `.bias` [H] for head k (0-based) and block l, where H_in = H, or 2 H for the
first block of the form "hidden+embedding"; `heads.{k}.lm_head.weight` [D, H] for own output rows;
the form "sequential" has one cell instead: `cell.up.weight` [width, 2 H] and `.bias` [width], `cell.down.weight` [H,
width], and `taps.weight` [H, T W] if it reads the hidden states of T aux layers, each W wide;
`draft_vocab` [D] int32, ascending, where the heads know only D of the model's tokens.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from medusa_dist.config import explain_validation
from medusa_dist.config_parts.strict import Strict
from medusa_dist.errors import HeadsError

FORMAT_VERSION = 1
TENSORS, DESCRIPTION = "heads.safetensors", "heads.json"


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
    def input_width(self) -> int:
        """Width of the rows that the heads read: the last hidden state, then the aux hidden states."""
        return self.base.hidden_size + len(self.aux_layers) * self.tap_width


class HeadsFile:
    """A head file in memory: its description and tensors."""

    def __init__(self, description: HeadsDescription, tensors: dict[str, Tensor]) -> None:
        self.description = description
        self.tensors = tensors
        _check_shapes(description, tensors)

    @property
    def draft_vocab(self) -> Tensor | None:
        """[D] int64 token ids that the heads know, or None for all."""
        return self.tensors["draft_vocab"].long() if "draft_vocab" in self.tensors else None

    @property
    def made_for(self) -> str:
        """The base's name, for display."""
        return self.description.base.name

    @property
    def fingerprint(self) -> str | None:
        """Of the base, if it is recorded."""
        return self.description.base.fingerprint

    @property
    def dtype(self) -> str:
        """Of the stored tensors."""
        return self.description.dtype

    @property
    def num_levels(self) -> int:
        """How many tokens ahead they draft."""
        return self.description.num_heads

    @property
    def num_known(self) -> int:
        """Tokens that they can draft."""
        return self.description.draft_vocab_size or self.description.base.vocab_size

    def aux_layers(self, _num_layers: int) -> tuple[int, ...]:
        """The aux layers that they read."""
        return self.description.aux_layers

    def check_base(self, hidden_size: int, vocab_size: int, fingerprint: str | None, allow_other: bool) -> None:
        """Raise HeadsError if these heads cannot draft for the model, or were made for another one."""
        base = self.description.base
        for what, theirs, ours in (
            ("hidden size", base.hidden_size, hidden_size),
            ("vocabulary", base.vocab_size, vocab_size),
        ):
            if theirs != ours:
                raise HeadsError(f"heads: made for {base.name!r} with {what} {theirs}, but the model has {ours}")
        if base.fingerprint and fingerprint and base.fingerprint != fingerprint and not allow_other:
            raise HeadsError(
                f"heads: made for another base model ({base.name!r}; fingerprints differ). Train heads for this model, "
                "or set heads.allow_untrained: true to draft with them anyway (output stays exact, but may be slower)"
            )

    def check_layers(self, num_layers: int, layer_width: int) -> None:
        """Raise HeadsError if the model lacks an aux layer that these heads read, or its layers have another width."""
        about = self.description
        missing = [layer for layer in about.aux_layers if layer >= num_layers]
        if missing:
            raise HeadsError(f"heads: tapped_layers has layer {missing[0]}, but the model's are 0 to {num_layers - 1}")
        if about.aux_layers and about.tap_width != layer_width:
            raise HeadsError(
                f"heads: base.layer_width says that states between layers are {about.tap_width} wide, but the model's "
                f"are {layer_width}"
            )

    def save(self, folder: Path) -> None:
        """Write both files."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: t.contiguous() for name, t in self.tensors.items()}, folder / TENSORS)
        (folder / DESCRIPTION).write_text(self.description.model_dump_json(indent=2) + "\n")


def read_heads(folder: Path, shapes_only: bool = False) -> HeadsFile:
    """Read and check a head file. Raises HeadsError naming the file and the problem.

    shapes_only: read only the header; all tensors but draft_vocab have no values (device meta).
    """
    for name in (DESCRIPTION, TENSORS):
        if not (folder / name).is_file():
            raise HeadsError(
                f"heads: {folder / name} is missing; a head file is a folder with {DESCRIPTION} and {TENSORS}"
            )
    description = read_description(folder)
    try:
        with safe_open(folder / TENSORS, framework="pt") as file:
            names = list(file.keys())
            blank = [name for name in names if shapes_only and name != "draft_vocab"]
            tensors = {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in blank}
            tensors |= {name: file.get_tensor(name) for name in names if name not in blank}
    except (SafetensorError, OSError) as error:
        raise HeadsError(f"heads: {folder / TENSORS} cannot be read: {error}") from None
    return HeadsFile(description, tensors)


def described_heads(description: HeadsDescription) -> HeadsFile:
    """The head file that a description implies, without values, for callers that only have heads.json."""
    tensors = {name: torch.empty(shape, device="meta") for name, shape in expected_shapes(description).items()}
    if description.draft_vocab_size is not None:
        tensors["draft_vocab"] = torch.arange(description.draft_vocab_size)  # their number is known, the ids are not
    return HeadsFile(description, tensors)


def read_description(folder: Path) -> HeadsDescription:
    """Read heads.json only."""
    if not (folder / DESCRIPTION).is_file():
        raise HeadsError(f"heads: {folder / DESCRIPTION} is missing; only heads in our own format have it")
    try:
        return HeadsDescription.model_validate(json.loads((folder / DESCRIPTION).read_text()))
    except ValidationError as error:
        raise HeadsError(f"heads: {folder / DESCRIPTION}: {explain_validation(error)}") from None
    except json.JSONDecodeError as error:
        raise HeadsError(f"heads: {folder / DESCRIPTION} is not JSON: {error}") from None


def expected_shapes(description: HeadsDescription) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor implied by the description."""
    hidden = description.base.hidden_size
    known = description.draft_vocab_size or description.base.vocab_size
    shapes: dict[str, tuple[int, ...]] = {}
    if description.width is not None:
        shapes["cell.up.weight"] = (description.width, 2 * hidden)
        shapes["cell.up.bias"] = (description.width,)
        shapes["cell.down.weight"] = (hidden, description.width)
    if description.aux_layers:
        shapes["taps.weight"] = (hidden, len(description.aux_layers) * description.tap_width)
    for head in range(description.num_heads if description.width is None else 0):
        for block in range(description.num_blocks):
            doubled = block == 0 and description.form == "hidden+embedding"
            shapes[f"heads.{head}.blocks.{block}.weight"] = (hidden, 2 * hidden if doubled else hidden)
            if description.bias:
                shapes[f"heads.{head}.blocks.{block}.bias"] = (hidden,)
        if description.lm_head == "own":
            shapes[f"heads.{head}.lm_head.weight"] = (known, hidden)
    if description.draft_vocab_size is not None:
        shapes["draft_vocab"] = (description.draft_vocab_size,)
    return shapes


def _check_shapes(description: HeadsDescription, tensors: dict[str, Tensor]) -> None:
    expected = expected_shapes(description)
    for name, shape in expected.items():
        if name not in tensors:
            raise HeadsError(f"heads: tensor {name} is missing ({description.num_heads} heads are described)")
        if tuple(tensors[name].shape) != shape:
            raise HeadsError(
                f"heads: tensor {name} has shape {tuple(tensors[name].shape)}, but heads.json implies {shape}"
            )
    extra = sorted(set(tensors) - set(expected))
    if extra:
        raise HeadsError(f"heads: tensor {extra[0]} is not in the description; is num_heads or num_blocks wrong?")
    if description.offsets != tuple(range(1, description.num_heads + 1)):
        raise HeadsError(f"heads: offsets {list(description.offsets)} are not 1..{description.num_heads}")
    ids = tensors.get("draft_vocab")
    if ids is not None:
        ordered = bool((ids[1:] > ids[:-1]).all())
        if not ordered or int(ids[0]) < 0 or int(ids[-1]) >= description.base.vocab_size:
            raise HeadsError("heads: draft_vocab must be ascending token ids inside the base's vocabulary")


def dtype_name(dtype: torch.dtype) -> Literal["float32", "bfloat16", "float16"]:
    """The name used in heads.json."""
    names: dict[torch.dtype, Literal["float32", "bfloat16", "float16"]] = {
        torch.float32: "float32",
        torch.bfloat16: "bfloat16",
        torch.float16: "float16",
    }
    return names[dtype]

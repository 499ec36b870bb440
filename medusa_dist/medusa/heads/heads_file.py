"""The head file: a folder with heads.safetensors and heads.json, format version 1.

Owns the tensors: reading, checking against a base model, writing. Not here: heads.json (description.py), the modules
that run heads (medusa_heads.py, sequential.py, prefix_layer.py), other projects' formats (published_heads.py).
Tensors:
`heads.{k}.blocks.{l}.weight` [H, H_in] and `.bias` [H] for head k (0-based) and block l, where H_in = H, or 2 H for the
first block of the form "hidden+embedding"; `heads.{k}.lm_head.weight` [D, H] for own output rows;
the form "sequential" has one cell instead: `cell.up.weight` [width, 2 H] and `.bias` [width], `cell.down.weight` [H,
width], and `taps.weight` [H, T W] if it reads the hidden states of T aux layers, each W wide; with a prefix layer
`cell.norm` [H], and in place of `taps.weight` `prefix.fuse.weight` [H, H + T W], `prefix.attention_norm`,
`prefix.mlp_norm` [H], `prefix.q_proj.weight` [heads d, H], `prefix.k_proj.weight`,
`prefix.v_proj.weight` [kv heads d, H], `prefix.o_proj.weight` [H, heads d], `prefix.gate_proj.weight`,
`prefix.up_proj.weight` [inner, H], `prefix.down_proj.weight` [H, inner];
`draft_vocab` [D] int32, ascending, where the heads know only D of the model's tokens.
"""

import json
from pathlib import Path
from typing import Literal

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from medusa_dist.config import explain_validation
from medusa_dist.errors import HeadsError
from medusa_dist.medusa.heads.description import HeadsDescription

TENSORS, DESCRIPTION = "heads.safetensors", "heads.json"


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
    if description.prefix is not None:
        inner = description.prefix.shapes(hidden, description.input_width)
        shapes |= {"cell.norm": (hidden,)} | {f"prefix.{name}": shape for name, shape in inner.items()}
    elif description.aux_layers:
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

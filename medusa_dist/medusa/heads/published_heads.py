"""Layouts of published Medusa heads, and the name of each tensor in our format.

Owns the names, and the check that tensors and config agree. Pure: it uses names and shapes only. Not here: files
(heads_tools/convert_heads.py), our format (heads_file.py).
Known layouts; h = head and l = residual block, counted from 0, n = number of blocks:
  Medusa v0.1, v1; TGI v1: {h}.{l}.linear.weight|bias, own output rows {h}.{n}.weight; or with the prefix medusa_head.
  TGI v2, Medusa's legacy training: the same without output rows, which are the base model's
  ModelOpt:                as Medusa, with the prefix medusa_heads.; the blocks of a head are one layer, stored once
                           as block 0
  TensorRT-LLM:            medusa_heads.{h}.medusa_layers.{l}.linear.weight|bias, medusa_heads.{h}.lm_head.weight
  vLLM:                    blocks.{h}.layers.{l}.weight|bias, lm_heads.{h}.weight; only lm_heads.0.weight or
                           lm_head.weight if all share the base's; token_map: the token id of each output row, or the
                           rows to use
Whole models that contain heads (Medusa-2) hold the same names among others.
Sources: FasterDecoding/Medusa e2a5d20 (medusa_model.py), huggingface/text-generation-inference 91560ed
(layers/medusa.py), vllm-project/vllm 01dbb08 (models/medusa.py), NVIDIA/TensorRT-Model-Optimizer 0547135
(speculative/plugins/transformers.py), the names in NVIDIA/TensorRT-LLM's loader.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from medusa_dist.errors import HeadsError

_HEAD = r"(?:.*\.)?(?:medusa_heads?\.)"


@dataclass(frozen=True)
class _Layout:
    name: str
    block: re.Pattern[str]  # groups: head, block, weight or bias
    output: re.Pattern[str]  # group: head; in the first layout also the index after the blocks


_LAYOUTS = (
    _Layout(
        "medusa",
        re.compile(rf"{_HEAD}?(\d+)\.(\d+)\.linear\.(weight|bias)"),
        re.compile(rf"{_HEAD}?(\d+)\.(\d+)\.weight"),
    ),
    _Layout(
        "tensorrt-llm",
        re.compile(rf"{_HEAD}(\d+)\.medusa_layers\.(\d+)\.linear\.(weight|bias)"),
        re.compile(rf"{_HEAD}(\d+)\.lm_head\.weight"),
    ),
    _Layout(
        "vllm",
        re.compile(r"(?:medusa_heads?\.)?blocks\.(\d+)\.layers\.(\d+)\.(weight|bias)"),
        re.compile(r"(?:medusa_heads?\.)?lm_heads\.(\d+)\.weight"),
    ),
)
TOKEN_MAP = "token_map"


@dataclass(frozen=True)
class Published:
    """What was found. names: ours -> theirs. The counts are those of the tensors."""

    layout: str
    num_heads: int
    num_blocks: int
    has_bias: bool
    has_own_outputs: bool
    names: dict[str, str] = field(default_factory=dict)
    token_map: str | None = None


def recognise(theirs: Iterable[str]) -> Published:
    """Detect the layout of these tensor names and map each tensor; names that belong to no head are ignored.

    Raises HeadsError if no layout matches, or heads or blocks are missing.
    """
    theirs = sorted(theirs)
    for layout in _LAYOUTS:
        blocks = {name: found.groups() for name in theirs if (found := layout.block.fullmatch(name))}
        if blocks:
            return _read(layout, blocks, theirs)
    some = ", ".join(theirs[:3]) or "none"
    raise HeadsError(
        f"heads: the tensors match no known layout of Medusa heads (Medusa, TGI, TensorRT-LLM, vLLM): {some}"
    )


def _read(layout: _Layout, blocks: Mapping[str, tuple[str | Any, ...]], theirs: list[str]) -> Published:
    names: dict[str, str] = {}
    sizes: dict[int, set[int]] = {}
    for name, (head, block, what) in blocks.items():
        _put(names, f"heads.{head}.blocks.{block}.{what}", name)
        sizes.setdefault(int(head), set()).add(int(block))
    outputs = {name: found.groups() for name in theirs if (found := layout.output.fullmatch(name))}
    if layout.name == "medusa":  # the output rows are the module after the last block
        places = {int(place) for _, place in outputs.values()}
        _repeat_blocks(names, sizes, places)
    num_heads, num_blocks = _count(sizes)
    if layout.name == "medusa" and places - {num_blocks}:
        raise HeadsError(f"heads: output rows come after {max(places)} blocks, but a head has {num_blocks}")
    for name, (head, *_) in outputs.items():
        _put(names, f"heads.{head}.lm_head.weight", name)
    heads = range(num_heads)
    if layout.name == "vllm" and len(outputs) == 1:  # stored for head 0 and used by all: a copy of the base model's
        names = {ours: name for ours, name in names.items() if not ours.endswith("lm_head.weight") or num_heads == 1}
    for what, wanted in (
        ("lm_head.weight", [f"heads.{h}.lm_head.weight" for h in heads]),
        ("bias", [f"heads.{h}.blocks.{b}.bias" for h in heads for b in range(num_blocks)]),
        ("weight", [f"heads.{h}.blocks.{b}.weight" for h in heads for b in range(num_blocks)]),
    ):
        missing = [name for name in wanted if name not in names]
        if missing and (what == "weight" or len(missing) < len(wanted)):
            raise HeadsError(f"heads: some heads have a {what} and others have none; missing is {missing[0]}")
    return Published(
        layout=layout.name,
        num_heads=num_heads,
        num_blocks=num_blocks,
        has_bias="heads.0.blocks.0.bias" in names,
        has_own_outputs="heads.0.lm_head.weight" in names,
        names=names,
        token_map=next((name for name in theirs if name.split(".")[-1] == TOKEN_MAP), None),
    )


def _repeat_blocks(names: dict[str, str], sizes: dict[int, set[int]], places: set[int]) -> None:
    """Restore blocks of files whose heads apply one shared block several times: safetensors stores it once, and the
    index of the output rows, after the last block, tells how often."""
    if len(places) != 1 or any(blocks != {0} for blocks in sizes.values()):
        return
    for ours, theirs in list(names.items()):
        for block in range(1, max(places)):
            names[ours.replace(".blocks.0.", f".blocks.{block}.")] = theirs
    for blocks in sizes.values():
        blocks |= set(range(max(places)))


def _put(names: dict[str, str], ours: str, theirs: str) -> None:
    if ours in names:
        raise HeadsError(f"heads: {names[ours]} and {theirs} are both {ours}; the file holds two sets of heads")
    names[ours] = theirs


def _count(sizes: Mapping[int, set[int]]) -> tuple[int, int]:
    """Number of heads and blocks: numbered from 0 without gaps, and the same number of blocks in all heads."""
    num_heads, num_blocks = len(sizes), max(len(blocks) for blocks in sizes.values())
    if sorted(sizes) != list(range(num_heads)):
        raise HeadsError(f"heads: the tensors have heads {sorted(sizes)}, which are not 0..{num_heads - 1}")
    for head, blocks in sorted(sizes.items()):
        if sorted(blocks) != list(range(num_blocks)):
            raise HeadsError(f"heads: head {head} has blocks {sorted(blocks)}, others have 0..{num_blocks - 1}")
    return num_heads, num_blocks


def check_config(config: Mapping[str, Any], found: Published) -> None:
    """Raise HeadsError if a published config.json disagrees with the tensors about the number of heads or blocks."""
    counts = [
        (key, count, what)
        for count, what, keys in (
            (found.num_heads, "heads", ("medusa_num_heads", "num_medusa_heads")),
            (found.num_blocks, "blocks per head", ("medusa_num_layers", "num_medusa_layers")),
        )
        for key in keys
    ]
    if isinstance(config.get("medusa"), dict):  # ModelOpt's
        config = {**config, **config["medusa"]}
    if config.get("model_type") == "medusa":  # vLLM's spelling; elsewhere these keys describe the base model
        counts += [("num_heads", found.num_heads, "heads"), ("num_hidden_layers", found.num_blocks, "blocks per head")]
    for key, count, what in counts:
        if key in config and config[key] != count:
            raise HeadsError(
                f"heads: config.json says {key}: {config[key]}, but the tensors hold {count} {what}; one of them is "
                "wrong. If it is the config (some published ones are), use --trust-tensors"
            )

"""Builds one rank's sharded layers, with weights, in a transformers model.

Owns the walk over the modules: which are replaced by our layers (ops/linear.py), what each one reads, tied weights,
buffers. Not here: the sharding plans (sharding_plans.py), reading (source/checkpoint.py).
"""

import copy
import logging
import re
from collections.abc import Callable
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from medusa_dist.errors import ModelError
from medusa_dist.model.attention_bridge import IMPLEMENTATION
from medusa_dist.model.sharding_plans import (
    LOCAL_ATTRIBUTES,
    HeadShape,
    Style,
    cut_of,
    match,
    plan_of,
    style_of,
    vocab_cut,
)
from medusa_dist.model.source.checkpoint import Checkpoint, Cut, StoredTensor, map_parameters
from medusa_dist.ops.cpu.packed_weights import packing_refusal
from medusa_dist.ops.linear import Linear, RowLinear, Summed, VocabEmbedding
from medusa_dist.ops.tp_group import TPGroup

logger = logging.getLogger(__name__)


def empty_model(found: type[PreTrainedModel], config: Any, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The model on the meta device, with our attention, in eval mode. Weights take no memory yet."""
    options: dict[str, Any] = {"attn_implementation": IMPLEMENTATION, "dtype": dtype}
    if device.type == "cpu":
        options["experts_implementation"] = "eager"  # the plain loop over experts; the fused forms are made for GPUs
    try:
        with torch.device("meta"):
            model: PreTrainedModel = found._from_config(copy.deepcopy(config), **options)
    except (KeyError, ValueError, ImportError, AttributeError) as error:
        raise ModelError(f"{found.__name__} cannot be built: {error!r}") from error
    return model.eval()


class Builder:
    """Fills one model, module by module, so that at most one tensor is held besides the rank's part."""

    def __init__(
        self,
        model: PreTrainedModel,
        checkpoint: Checkpoint,
        parallel: TPGroup,
        *,
        dtype: torch.dtype,
        device: torch.device,
        packs: bool,
        finish: Callable[[nn.Module], nn.Module] = lambda part: part,
    ) -> None:
        """packs: `finish` packs linear layers where it can, so their plain weights are needed until then only.

        finish: called with each decoder layer once it is filled, then with the model; what it returns takes its place.
        """
        self.model, self.checkpoint, self.parallel = model, checkpoint, parallel
        self.dtype, self.device, self._finish = dtype, device, finish
        self.packs = packs and packing_refusal(device, dtype) is None
        self.heads = HeadShape.of(model.config, parallel)
        self.plan = plan_of(model.config) if parallel.world_size > 1 else {}
        self.pattern = match(self.plan, model.base_model_prefix)
        self.stored = map_parameters(model, checkpoint)
        self.names_of: dict[int, list[str]] = {}  # tied parameters are one object under several names
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self.names_of.setdefault(id(parameter), []).append(name)
        self._tied: dict[tuple[int, Cut | None], Tensor] = {}
        self._attentions: dict[str, nn.Module] = {}
        self.used: set[str] = set()
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        if embedding is None or head is None:
            raise ModelError(f"{type(model).__name__} has no input embedding or no output matrix to serve")
        self.embedding, self.old_head = embedding, head
        self.vocab_size, self.output_width = head.weight.shape
        self.vocab_rows = {
            "input": self._locate(embedding.weight, "the input embedding"),
            "output": self._locate(head.weight, "the output matrix"),
        }
        self.output_head: nn.Module = head

    def fill(self) -> None:
        """Read every parameter of this rank, replace the layers, create the buffers."""
        self._make_buffers()
        for path, modules in groupby(list(self.model.named_modules()), lambda named: _decoder_layer(named[0])):
            for name, module in modules:
                self._fill_module(name, module)
            if path:
                self._replace(path, self._finish(self.model.get_submodule(path)))
        self._finish(self.model)
        self._check_attention_parameters()
        self._tied.clear()
        self.model.requires_grad_(False)
        unread = [n for n in self.stored if n not in self.used and not self._is_ignored(n)]
        if unread:
            logger.warning("%d stored tensors belong to no parameter, for example %s", len(unread), unread[0])

    def _fill_module(self, name: str, module: nn.Module) -> None:
        style = style_of(name, self.plan, self.pattern) if self.plan else None
        if style is not None and style.is_attention_input:
            self._localise(name.rpartition(".")[0])
        if module is self.old_head:
            self.output_head = self._linear(module, vocab_cut(self.vocab_size, self.parallel), None)
            self._replace(name, self.output_head)
        elif module is self.embedding and self.parallel.world_size > 1:
            self._fill_embedding(name, module)
        elif isinstance(module, (nn.Linear, Conv1D)):
            shape = _rows_first(module).shape
            cut = None if style is None else cut_of(style, tuple(shape), self.heads, self.parallel)
            self._replace(name, self._linear(module, cut, style))
        else:
            self._fill_plain(name, module)
            if style is Style.EXPERTS:
                self._replace(name, Summed(module, self.parallel))
            elif style is not None:
                raise ModelError(f"{name} is a {type(module).__name__}, but the sharding plan expects a linear layer")

    def _linear(self, module: Any, cut: Cut | None, style: Style | None) -> Linear:
        """Our layer in place of an nn.Linear or GPT-2's Conv1D (whose weight is stored as [I, O])."""
        stored_cut = cut
        if isinstance(module, Conv1D) and cut is not None:
            stored_cut = Cut(1 - cut.dim, cut.ranges, cut.pad)
        weight = self._read(module.weight, stored_cut, lend=self.packs)
        if isinstance(module, Conv1D):
            weight = weight.t().contiguous()
        bias = None
        if module.bias is not None:
            bias = self._read(module.bias, cut if cut is not None and cut.dim == 0 else None)
        if style is not None and style.is_summed:
            return RowLinear(weight, bias, False, self.parallel)
        return Linear(weight, bias, prepack=False)

    def _fill_embedding(self, name: str, module: Any) -> None:
        num_ids = int(module.weight.shape[0])
        weight = self._read(module.weight, vocab_cut(num_ids, self.parallel))
        module.weight = nn.Parameter(weight, requires_grad=False)
        if isinstance(module, nn.Embedding):
            module.num_embeddings, module.padding_idx = weight.shape[0], None  # padding matters only for gradients
        self._replace(name, VocabEmbedding(module, num_ids, self.parallel))

    def _fill_plain(self, name: str, module: nn.Module) -> None:
        """A module that keeps its class: its own parameters are read whole, or sharded if the plan names them."""
        for key, parameter in list(module.named_parameters(recurse=False)):
            style = style_of(f"{name}.{key}", self.plan, self.pattern) if self.plan else None
            cut = None if style is None else cut_of(style, tuple(parameter.shape), self.heads, self.parallel)
            setattr(module, key, nn.Parameter(self._read(parameter, cut), requires_grad=False))

    def _read(self, parameter: Tensor, cut: Cut | None, lend: bool = False) -> Tensor:
        """This rank's part of a parameter, on the device. Tied parameters that are sharded alike share one tensor."""
        names = self.names_of[id(parameter)]
        key = (id(parameter), cut)
        if key in self._tied:
            return self._tied[key]
        stored = self._locate(parameter, names[0])
        found, expected = self.checkpoint.shape_of(stored), tuple(parameter.shape)
        if found != expected:
            raise ModelError(
                f"{names[0]}: config.json implies {expected}, but the weights have {found}; they do not match"
            )
        dtype = self.dtype if parameter.is_floating_point() else parameter.dtype
        tensor = self.checkpoint.read(stored, cut, dtype, lend and len(names) == 1).to(self.device)
        if len(names) > 1:
            self._tied[key] = tensor
        return tensor

    def _locate(self, parameter: Tensor, words: str) -> StoredTensor:
        names = self.names_of[id(parameter)]
        name = next((n for n in names if n in self.stored), None)
        if name is None:
            raise ModelError(f"{self.checkpoint.folder} lacks the weights of {words} ({names[0]})")
        self.used.update(names)
        return self.stored[name]

    def _localise(self, path: str) -> None:
        """Set attributes that an attention module derives from the config to this rank's values, once per module."""
        if path in self._attentions:
            return
        attention = self._attentions[path] = self.model.get_submodule(path)
        local = self.heads.local()
        for name, word in LOCAL_ATTRIBUTES.items():
            if hasattr(attention, name):
                setattr(attention, name, local[word])
        config = copy.copy(self.model.config)  # some forward passes split fused projections by the config's head counts
        config.num_attention_heads = local["num_heads"]
        if getattr(config, "num_key_value_heads", None):
            config.num_key_value_heads = local["num_kv_heads"]
        attention.config = config

    def _check_attention_parameters(self) -> None:
        """Refuse attention with replicated parameters that are not per head element, such as a norm over all heads."""
        for parent, attention in self._attentions.items():
            for key, parameter in attention.named_parameters():
                if tuple(parameter.shape) != (self.heads.head_dim,):
                    raise ModelError(f"{parent}.{key} spans all heads, so the model supports one rank only")

    def _replace(self, name: str, module: nn.Module) -> None:
        parent, _, child = name.rpartition(".")
        setattr(self.model.get_submodule(parent), child, module)

    def _make_buffers(self) -> None:
        """Fill the buffers (rotary frequencies, scales) by the model's own initialisation, or from the checkpoint."""
        for name, module in self.model.named_modules():
            own = dict(module.named_buffers(recurse=False))
            if not own:
                continue
            for key, buffer in own.items():
                blank = torch.full(buffer.shape, _blank(buffer.dtype), dtype=buffer.dtype, device=self.device)
                setattr(module, key, blank)
            with torch.no_grad():
                self.model._init_weights(module)
            for key in own:
                path = f"{name}.{key}" if name else key
                buffer = getattr(module, key)
                if path in self.stored and key not in module._non_persistent_buffers_set:
                    buffer.copy_(self.checkpoint.read(self.stored[path], None, buffer.dtype))
                    self.used.add(path)
                elif _has_blank(buffer):
                    raise ModelError(f"{type(self.model).__name__} is not supported: nothing fills its buffer {path}")

    def _is_ignored(self, name: str) -> bool:
        return name.endswith(_OBSOLETE)


_OBSOLETE = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")


def _decoder_layer(name: str) -> str:
    """The path of the decoder layer that a module is part of, as model.layers.3; empty for others."""
    found = re.match(r"[^0-9]*\.[0-9]+(?=\.|$)", name)
    return found[0] if found else ""


def _rows_first(module: Any) -> Tensor:
    """The weight as [O, I]."""
    weight: Tensor = module.weight
    return weight.t() if isinstance(module, Conv1D) else weight


def _blank(dtype: torch.dtype) -> float | int | bool:
    """A value that no initialised buffer has: NaN, or the lowest integer; booleans have none."""
    if dtype.is_floating_point:
        return float("nan")
    return False if dtype == torch.bool else torch.iinfo(dtype).min


def _has_blank(buffer: Tensor) -> bool:
    if buffer.is_floating_point():
        return bool(buffer.isnan().any())
    return buffer.dtype != torch.bool and bool((buffer == _blank(buffer.dtype)).any())

"""Aux hidden states: outputs of inner layers, for heads that read them.

Owns which modules the layers are, and the forward hooks. Not here: what the heads compute from them
(medusa/heads/sequential.py).
A layer's output is the residual stream before the final norm. It is read after the layer's all-reduces, so every rank
has all of it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from medusa_dist.errors import ConfigError, ModelError


def decoder_layers(model: nn.Module, num_layers: int) -> list[nn.Module]:
    """The decoder layers in order: the outermost list of num_layers modules whose i-th holds the attention of layer i.
    All supported architectures have one. Raises ModelError if there is none."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            found = [{getattr(part, "layer_idx", None) for part in layer.modules()} - {None} for layer in module]
            if found == [{index} for index in range(num_layers)]:
                return list(module)
    raise ModelError(
        f"{type(model).__name__} has no list of its {num_layers} layers, so aux hidden states cannot be read"
    )


def tapped_layers(model: nn.Module, num_layers: int, aux_layers: Sequence[int]) -> tuple[nn.Module, ...]:
    """The modules of the layers `aux_layers`. Raises ConfigError for a layer that the model lacks."""
    if any(not 0 <= layer < num_layers for layer in aux_layers):
        asked = list(aux_layers)
        raise ConfigError(f"aux layers {asked} were requested, but the model has layers 0 to {num_layers - 1}")
    layers = decoder_layers(model, num_layers) if aux_layers else []
    return tuple(layers[layer] for layer in aux_layers)


@contextmanager
def tapping(layers: Sequence[nn.Module], rows: Tensor | slice) -> Iterator[list[Tensor]]:
    """Within the block, a pass [1, T, W] appends the rows [R] of each layer's output to the list: [R, W] each, in
    order.

    The other rows are not kept.
    """
    states: list[Tensor] = []

    def read(_layer: nn.Module, _inputs: object, output: Any) -> None:
        states.append((output[0] if isinstance(output, tuple) else output)[0, rows])

    hooks = [layer.register_forward_hook(read) for layer in layers]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()

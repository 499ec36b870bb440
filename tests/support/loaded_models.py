"""Tiny models as the loader makes them, and one forward pass."""

from pathlib import Path

import torch

from medusa_dist.model.attention_bridge import attention_context
from medusa_dist.model.load import ShardedModel, load_model
from medusa_dist.ops.tp_group import TPGroup
from tests.support.tiny_models import configs, dense_attend, tokens

NAMES = list(configs())


CPU = torch.device("cpu")


ROWS = torch.tensor([12, 0, 5, 6])


def load(folder: Path, parallel: TPGroup | None = None, **options: object) -> ShardedModel:
    return load_model(folder, dtype=torch.float32, device=CPU, parallel=parallel or TPGroup(), **options)


@torch.inference_mode()
def run(model: ShardedModel, rows: torch.Tensor = ROWS) -> tuple[torch.Tensor, torch.Tensor]:
    ids = tokens()
    with attention_context.using(dense_attend):
        return model.forward(ids, torch.arange(len(ids)), rows)

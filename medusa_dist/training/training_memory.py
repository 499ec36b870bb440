"""Peak memory of training heads: of the pass over the answers, and of the training.

Owns the arithmetic. Not here: what a rank holds of a model (model/sizing.py).
"""

from torch import Tensor

from medusa_dist.engine.startup.process_group import choose_device
from medusa_dist.medusa.heads.trainable import TrainableHeads
from medusa_dist.model.load import Outline
from medusa_dist.model.sizing import rank_size
from medusa_dist.ops.tp_group import TPGroup
from medusa_dist.training.hidden_states import KEPT, PASS_ROWS, Positions
from medusa_dist.training.hidden_states_config import HiddenStatesConfig
from medusa_dist.training.train_loop import Recipe


def reading_bytes(config: HiddenStatesConfig, base: Outline, num_places: int) -> int:
    """Peak bytes of the pass on rank 0, which holds most: its part of the model, the activations and logits of one
    pass, and twice the result, which is concatenated at the end."""
    parallel = TPGroup(0, config.tensor_parallel_size)
    device = choose_device(config).type
    size = rank_size(base.config, base.checkpoint, parallel, base.dtype, device, config.trust_remote_code)
    row = (6 * base.layer_width + 3 * size.widest + size.vocab_shard) * base.dtype.itemsize
    width = base.hidden_size + len(config.aux_layers) * base.layer_width
    place = width * base.dtype.itemsize + KEPT * 6 + 16
    return size.weight_bytes + PASS_ROWS * row + 2 * num_places * place


def training_bytes(heads: TrainableHeads, places: Positions, vocab: Tensor, recipe: Recipe) -> int:
    """Peak bytes: the dataset, parameters with gradients, Adam's moments and two copies, frozen rows, and the logits of
    one batch with what their gradients need."""
    kept = sum(t.numel() * t.element_size() for t in (places.hidden, places.base_ids, places.base_chances))
    learned = sum(t.numel() for t in heads.parameters()) * 4 * 6
    frozen = sum(t.numel() * t.element_size() for t in heads.buffers())
    logits = recipe.batch_tokens * len(vocab) * heads.about.num_heads * 12
    return 2 * kept + learned + frozen + logits

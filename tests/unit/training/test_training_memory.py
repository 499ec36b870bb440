"""What the estimates count: a rank's own part of the model, and the places."""

from pathlib import Path

import torch

from medusa_dist.config import parse_config
from medusa_dist.medusa.heads.trainable import TrainableHeads
from medusa_dist.model.load import load_model, read_outline
from medusa_dist.ops.tp_group import TPGroup
from medusa_dist.training.hidden_states import KEPT, PASS_ROWS, Positions
from medusa_dist.training.hidden_states_config import HiddenStatesConfig
from medusa_dist.training.train_loop import Recipe
from medusa_dist.training.training_memory import reading_bytes, training_bytes
from tests.support.tiny_engine import save_model
from tests.support.tiny_heads import HIDDEN, VOCAB, describe

CPU = torch.device("cpu")


def config(folder: Path, ranks: int, aux_layers: tuple[int, ...] = ()) -> HiddenStatesConfig:
    keys = {"model": str(folder), "dtype": "float32", "device": "cpu", "tensor_parallel_size": ranks}
    told = {"answers": folder, "target": folder, "key": "", "aux_layers": aux_layers}
    return HiddenStatesConfig.model_validate(parse_config(keys).model_dump() | told)


def test_reading_bytes_count_the_ranks_own_part_of_the_model(tmp_path: Path) -> None:
    save_model("llama", tmp_path)
    base = read_outline(tmp_path, dtype=torch.float32, device=CPU)
    whole = load_model(tmp_path, dtype=torch.float32, device=CPU, parallel=TPGroup())
    one, two, three = (reading_bytes(config(tmp_path, ranks), base, 0) for ranks in (1, 2, 3))
    widest = 72  # what attention puts out, on any number of ranks; the MLP is 64 wide
    rows = [PASS_ROWS * 4 * (6 * 72 + 3 * widest + vocab_shard) for vocab_shard in (31, 16)]
    assert one == whole.weight_bytes() + rows[0]
    # 9 query heads and 3 key-value heads: 6 and 2 of them on the first of two ranks, 3 and 1 on each of three.
    assert one > two > three
    assert 0.5 * whole.weight_bytes() < two - rows[1] < 0.7 * whole.weight_bytes()
    tapped = reading_bytes(config(tmp_path, 1, (0,)), base, 1000)
    assert reading_bytes(config(tmp_path, 1), base, 1000) - one == 2 * 1000 * (72 * 4 + KEPT * 6 + 16)
    assert tapped - reading_bytes(config(tmp_path, 1), base, 1000) == 2 * 1000 * 72 * 4


def test_training_bytes_count_heads_positions_and_logits() -> None:
    about = describe(form="sequential", width=5, tapped_layers=(-1, 2))
    heads = TrainableHeads(about, torch.zeros(VOCAB, HIDDEN), torch.zeros(VOCAB, HIDDEN))
    ids, chances = torch.zeros(9, 2).int(), torch.zeros(9, 2).half()
    tokens, is_output = torch.zeros(9).long(), torch.ones(9, dtype=torch.bool)
    places = Positions(torch.zeros(9, 2 * HIDDEN), tokens, ids, chances, torch.zeros(9).long(), is_output)
    learned = 5 * 2 * HIDDEN + 5 + HIDDEN * 5 + HIDDEN * HIDDEN
    expected = 2 * 9 * (2 * HIDDEN * 4 + 2 * 6) + 24 * learned + 2 * VOCAB * HIDDEN * 4 + 7 * VOCAB * 3 * 12
    assert training_bytes(heads, places, torch.arange(VOCAB), Recipe(batch_tokens=7)) == expected

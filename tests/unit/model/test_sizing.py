"""A rank's bytes from shapes alone, against ranks that are loaded."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from medusa_dist.errors import ModelError
from medusa_dist.model.load import load_model
from medusa_dist.model.sizing import HeaderCheckpoint, RankSize, own_shapes, rank_size
from medusa_dist.model.source.checkpoint import Checkpoint
from medusa_dist.model.support_check import read_config
from medusa_dist.ops.attention.kv_cache import KVCache, block_bytes
from medusa_dist.ops.cpu.packed_weights import int8_refusal
from medusa_dist.ops.linear import Linear
from medusa_dist.ops.tp_group import TPGroup
from tests.support.tiny_models import VOCAB, configs, save_tiny

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Alone(TPGroup):
    """A rank whose peers do not exist: its sums are wrong, its shapes are not."""

    def all_reduce(self, x: Tensor) -> Tensor:
        return x


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) for name in configs()}
    for name, folder in folders.items():
        save_tiny(name, folder)
    return folders


def sized(
    folder: Path, parallel: TPGroup, dtype: torch.dtype, device: str = "cpu", quantization: str = "none"
) -> RankSize:
    stored = Checkpoint(folder)
    shapes = {name: stored.shape(name) for name in stored.names()}
    return rank_size(
        read_config(folder), HeaderCheckpoint(folder, shapes), parallel, dtype, device, False, quantization
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["packed", "plain"])  # float16 is never packed
@pytest.mark.parametrize("name", list(configs()))
def test_rank_size_equals_that_of_a_loaded_rank(zoo: dict[str, Path], name: str, dtype: torch.dtype) -> None:
    for world in (1, 2):
        for rank in range(world):
            parallel = Alone(rank, world)
            model = load_model(zoo[name], dtype=dtype, device=CPU, parallel=parallel)
            size = sized(zoo[name], parallel, dtype)
            assert size.weight_bytes == model.weight_bytes()
            assert (size.num_heads, size.num_kv_heads, size.head_dim) == (
                model.num_heads,
                model.num_kv_heads,
                model.head_dim,
            )
            assert size.vocab_shard == model.vocab_shard and size.output_shape[0] == VOCAB
            linears = [m for m in model.module.modules() if isinstance(m, Linear)]
            assert size.dense_params == sum(m.in_features * m.out_features for m in linears)
            pool = KVCache.allocate(2, size.num_kv_heads, size.head_dim, 3, dtype, CPU)
            assert pool.rows.nbytes == 3 * block_bytes(model.num_layers, model.num_kv_heads, model.head_dim, dtype)


@pytest.mark.skipif(int8_refusal() is not None, reason=f"8-bit products: {int8_refusal()}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "llama-tied", "gemma2", "mixtral", "gpt2"])
def test_rank_size_in_8_bits_equals_that_of_a_loaded_rank(zoo: dict[str, Path], name: str, dtype: torch.dtype) -> None:
    for rank in range(2):
        parallel = Alone(rank, 2)
        model = load_model(zoo[name], dtype=dtype, device=CPU, parallel=parallel, quantization="int8")
        assert sized(zoo[name], parallel, dtype, quantization="int8").weight_bytes == model.weight_bytes()


@pytest.mark.parametrize("name", list(configs()))
def test_config_alone_gives_the_same_rank_size(zoo: dict[str, Path], name: str) -> None:
    config = read_config(zoo[name])
    alone = HeaderCheckpoint(zoo[name], own_shapes(config, torch.float32))
    parallel = TPGroup(1, 2)
    assert rank_size(config, alone, parallel, torch.float32, "cuda") == sized(
        zoo[name], parallel, torch.float32, "cuda"
    )


def test_step_reads_all_weights_but_an_untied_input_embedding(zoo: dict[str, Path]) -> None:
    size = sized(zoo["llama"], TPGroup(), torch.float16, "cuda")
    assert size.weight_bytes - size.dense_bytes == VOCAB * 72 * 2  # the input embedding
    tied = sized(zoo["llama-tied"], TPGroup(), torch.float16, "cuda")
    assert tied.weight_bytes == tied.dense_bytes  # the output matrix is the embedding, and read


def test_expert_weights_are_counted_separately(zoo: dict[str, Path]) -> None:
    size = sized(zoo["mixtral"], TPGroup(), torch.float16, "cuda")
    assert size.num_experts == 4 and size.expert_params == 2 * 4 * 3 * 48 * 67
    assert size.expert_bytes == 2 * size.expert_params
    halves = [sized(zoo["mixtral"], TPGroup(rank, 2), torch.float16, "cuda").expert_params for rank in (0, 1)]
    assert sum(halves) == size.expert_params and halves[0] > halves[1]  # 67 is dealt as 34 + 33


def test_weights_of_another_config_are_refused(zoo: dict[str, Path]) -> None:
    config = read_config(zoo["llama"])
    shapes = own_shapes(config, torch.float32)
    wrong = HeaderCheckpoint(zoo["llama"], shapes | {"lm_head.weight": (VOCAB, 71)})
    with pytest.raises(ModelError, match=r"lm_head\.weight: config\.json implies \(97, 72\), but the weights have"):
        rank_size(config, wrong, TPGroup(), torch.float32, "cuda")
    del shapes["lm_head.weight"]
    with pytest.raises(ModelError, match="lacks the weights of the output matrix"):
        rank_size(config, HeaderCheckpoint(zoo["llama"], shapes), TPGroup(), torch.float32, "cuda")

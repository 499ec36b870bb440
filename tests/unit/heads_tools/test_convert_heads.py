"""convert-heads: equal logits after the journey, readable errors, and pickles that do not run."""

import json
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

from medusa_dist.cli.main import app
from medusa_dist.errors import HeadsError, ModelError
from medusa_dist.heads_tools.convert_heads import convert_heads
from medusa_dist.medusa.eagle3.checkpoint import Eagle3File
from medusa_dist.medusa.heads.description import BaseModelFacts
from medusa_dist.medusa.heads.heads_file import read_heads
from medusa_dist.medusa.heads.medusa_heads import MedusaHeads
from medusa_dist.medusa.published.reader import read_any_heads
from medusa_dist.model.fingerprint import fingerprint
from tests.support.tiny_eagle3 import checkpoint
from tests.support.tiny_models import VOCAB, save_tiny

HIDDEN, HEADS = 72, 3


class Block(nn.Module):
    """Medusa's residual block, by its own names."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.silu(self.linear(x))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("base")
    save_tiny("llama", made)
    return made


def published(num_blocks: int = 1, own: bool = True) -> nn.ModuleList:
    torch.manual_seed(num_blocks)
    tail = [nn.Linear(HIDDEN, VOCAB, bias=False)] if own else []
    return nn.ModuleList(
        nn.Sequential(*(Block() for _ in range(num_blocks)), *(nn.Linear(HIDDEN, VOCAB, bias=False) for _ in tail))
        for _ in range(HEADS)
    ).requires_grad_(False)


def save(folder: Path, state: dict[str, Tensor], kind: str, **config: object) -> None:
    folder.mkdir(exist_ok=True)
    if kind == "pt":
        torch.save(state, folder / "medusa_lm_head.pt")
    else:
        save_file(state, folder / "medusa_lm_head.safetensors")
    if config:
        (folder / "config.json").write_text(json.dumps(config))


def logits_of(folder: Path, hidden: Tensor, output_rows: Tensor | None) -> Tensor:
    file = read_heads(folder)
    if file.draft_vocab is not None and output_rows is not None:
        output_rows = output_rows[file.draft_vocab]
    with torch.inference_mode():
        return MedusaHeads(file, output_rows, torch.float32, torch.device("cpu"))(hidden, None)


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
@pytest.mark.parametrize("num_blocks", [1, 2])
@pytest.mark.parametrize("own", [True, False])
def test_converted_heads_give_the_logits_of_the_published_ones(
    base: Path, tmp_path: Path, kind: str, num_blocks: int, own: bool
) -> None:
    theirs = published(num_blocks, own)
    save(
        tmp_path / "in",
        theirs.state_dict(),
        kind,
        medusa_num_heads=HEADS,
        medusa_num_layers=num_blocks,
        base_model_name_or_path="their/base",
    )
    convert_heads(str(tmp_path / "in"), tmp_path / "out", str(base))
    about = read_heads(tmp_path / "out").description
    assert (about.num_heads, about.num_blocks, about.lm_head) == (HEADS, num_blocks, "own" if own else "shared")
    assert about.base.fingerprint == fingerprint(base) and about.training["made_for"] == "their/base"
    hidden, rows = torch.randn(5, HIDDEN), torch.randn(VOCAB, HIDDEN)
    expected = torch.stack([head(hidden) if own else head(hidden) @ rows.T for head in theirs], dim=1)
    torch.testing.assert_close(logits_of(tmp_path / "out", hidden, None if own else rows), expected)


def test_block_repeated_in_shared_memory_is_converted(base: Path, tmp_path: Path) -> None:
    """Medusa's own code repeats one layer; its tensors share memory."""
    block = Block().requires_grad_(False)
    theirs = nn.ModuleList([nn.Sequential(block, block)])
    save(tmp_path / "in", theirs.state_dict(), "pt")
    convert_heads(str(tmp_path / "in"), tmp_path / "out", str(base))
    hidden, rows = torch.randn(2, HIDDEN), torch.randn(VOCAB, HIDDEN)
    torch.testing.assert_close(logits_of(tmp_path / "out", hidden, rows)[:, 0], theirs[0](hidden) @ rows.T)


def test_vllm_heads_of_a_short_vocabulary_are_converted(base: Path, tmp_path: Path) -> None:
    theirs = published()
    ids = torch.tensor([7, 3, 96, 11, 50])
    state = {"token_map": ids}
    for h, head in enumerate(theirs):
        state |= {f"blocks.{h}.layers.0.{name}": value for name, value in head[0].linear.state_dict().items()}
        state[f"lm_heads.{h}.weight"] = head[1].weight[ids]
    save(tmp_path / "in", state, "safetensors", model_type="medusa", num_heads=HEADS, num_hidden_layers=1)
    convert_heads(str(tmp_path / "in"), tmp_path / "out", str(base))
    assert read_heads(tmp_path / "out").draft_vocab.tolist() == [3, 7, 11, 50, 96]
    hidden = torch.randn(4, HIDDEN)
    expected = torch.stack([head(hidden)[:, [3, 7, 11, 50, 96]] for head in theirs], dim=1)
    torch.testing.assert_close(logits_of(tmp_path / "out", hidden, None), expected)


def vllm_blocks(theirs: nn.ModuleList) -> dict[str, Tensor]:
    return {
        f"blocks.{h}.layers.0.{name}": value
        for h, head in enumerate(theirs)
        for name, value in head[0].linear.state_dict().items()
    }


def test_vllm_full_output_rows_with_a_token_map_are_shortened(base: Path, tmp_path: Path) -> None:
    """vLLM takes the map's rows of them when it loads."""
    theirs, ids = published(), torch.tensor([7, 3, 96])
    state = (
        vllm_blocks(theirs) | {"token_map": ids} | {f"lm_heads.{h}.weight": x[1].weight for h, x in enumerate(theirs)}
    )
    config = {"model_type": "medusa", "num_heads": HEADS, "truncated_vocab_size": 3, "logit_scale": 0.25}
    save(tmp_path / "in", state, "safetensors", **config)
    convert_heads(str(tmp_path / "in"), tmp_path / "out", str(base))
    hidden = torch.randn(4, HIDDEN)
    expected = torch.stack([0.25 * head(hidden)[:, [3, 7, 96]] for head in theirs], dim=1)
    torch.testing.assert_close(logits_of(tmp_path / "out", hidden, None), expected)


@pytest.mark.parametrize("name", ["lm_heads.0.weight", "lm_head.weight"])
@pytest.mark.parametrize("short", [False, True])
def test_vllm_single_output_matrix_becomes_the_shared_one(base: Path, tmp_path: Path, name: str, short: bool) -> None:
    theirs, rows = published(own=False), torch.randn(VOCAB, HIDDEN)
    state = vllm_blocks(theirs) | {name: rows} | ({"token_map": torch.tensor([9, 4])} if short else {})
    save(tmp_path / "in", state, "safetensors", model_type="medusa", num_heads=HEADS, original_lm_head=True)
    file, _ = convert_heads(str(tmp_path / "in"), tmp_path / "out", str(base))
    assert file.description.lm_head == "shared"
    hidden = torch.randn(4, HIDDEN)
    known = [4, 9] if short else list(range(VOCAB))
    expected = torch.stack([head(hidden) @ rows[known].T for head in theirs], dim=1)
    torch.testing.assert_close(logits_of(tmp_path / "out", hidden, rows), expected)


def test_modelopt_repeated_block_stored_once_is_converted(base: Path, tmp_path: Path) -> None:
    """A whole model, saved as transformers does: of tensors that are one, the first name stays."""
    blocks = [Block().requires_grad_(False) for _ in range(HEADS)]
    theirs = nn.ModuleList(nn.Sequential(b, b, nn.Linear(HIDDEN, VOCAB, bias=False)) for b in blocks)
    state = {f"medusa_heads.{n}": t for n, t in theirs.state_dict().items() if ".1.linear." not in n}
    (tmp_path / "in").mkdir()
    save_file({**state, "model.norm.weight": torch.ones(3)}, tmp_path / "in" / "model.safetensors")
    config = {"model_type": "llama", "medusa": {"num_medusa_heads": HEADS, "num_medusa_layers": 2}}
    (tmp_path / "in" / "config.json").write_text(json.dumps(config))
    convert_heads(str(tmp_path / "in"), tmp_path / "out", str(base))
    hidden = torch.randn(2, HIDDEN)
    with torch.no_grad():
        expected = torch.stack([head(hidden) for head in theirs], dim=1)
    torch.testing.assert_close(logits_of(tmp_path / "out", hidden, None), expected)


def test_heads_inside_a_whole_model_are_found(base: Path, tmp_path: Path) -> None:
    state = {f"medusa_head.{name}": value for name, value in published().state_dict().items()}
    (tmp_path / "in").mkdir()
    save_file({**state, "model.norm.weight": torch.ones(3)}, tmp_path / "in" / "model-00001-of-00001.safetensors")
    file, found = convert_heads(str(tmp_path / "in"), tmp_path / "out", str(base))
    assert found.layout == "medusa" and file.description.num_heads == HEADS


def test_config_with_another_head_count_is_refused_unless_trusted(base: Path, tmp_path: Path) -> None:
    save(tmp_path / "in", published().state_dict(), "pt", medusa_num_heads=2)
    with pytest.raises(HeadsError, match="medusa_num_heads: 2, but the tensors hold 3 heads"):
        convert_heads(str(tmp_path / "in"), tmp_path / "out", str(base))
    assert not (tmp_path / "out").exists()
    file, _ = convert_heads(str(tmp_path / "in"), tmp_path / "out", str(base), trust_tensors=True)
    assert file.description.num_heads == 3
    with pytest.raises(HeadsError, match="already holds a head file"):
        convert_heads(str(tmp_path / "in"), tmp_path / "out", str(base), trust_tensors=True)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (
            {"0.1.weight": torch.zeros(VOCAB + 3, HIDDEN)},
            r"heads\.0\.lm_head\.weight is \[100, 72\].* must be \[97, 72\]",
        ),
        ({"1.0.linear.weight": torch.zeros(64, 64)}, r"heads\.1\.blocks\.0\.weight is \[64, 64\]"),
        ({"0.0.linear.weight": torch.zeros(HIDDEN, HIDDEN, dtype=torch.int8)}, "tensors of type torch.int8"),
        ({"2.0.linear.bias": torch.zeros(5)}, r"heads\.2\.blocks\.0\.bias has shape \(5,\)"),
    ],
)
def test_misfitting_tensor_is_refused_and_nothing_is_written(
    base: Path, tmp_path: Path, change: dict[str, Tensor], error: str
) -> None:
    save(tmp_path / "in", {**published().state_dict(), **change}, "pt")
    with pytest.raises(HeadsError, match=error):
        convert_heads(str(tmp_path / "in"), tmp_path / "out", str(base))
    assert not (tmp_path / "out").exists()


class Malice:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return (eval, (f"open({str(self.mark)!r}, 'w').write('ran')",))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_pickle_does_not_run(base: Path, tmp_path: Path, legacy: bool) -> None:
    mark = tmp_path / "mark"
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / "medusa_lm_head.pt"
    evil = {**published().state_dict(), "evil": Malice(mark)}
    torch.save(evil, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(HeadsError, match=r"medusa_lm_head\.pt holds more than tensors and was not loaded"):
        convert_heads(str(tmp_path / "in"), tmp_path / "out", str(base))
    assert not mark.exists()
    torch.load(file, weights_only=False)
    assert mark.exists(), "the file would have run"


def test_file_without_heads_is_refused_with_its_name(base: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    with pytest.raises(HeadsError, match=r"has no \.safetensors, \.pt or \.bin file"):
        convert_heads(str(source), tmp_path / "out", str(base))
    (source / "heads.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(HeadsError, match=r"heads\.pt"):
        convert_heads(str(source / "heads.pt"), tmp_path / "out", str(base))
    with zipfile.ZipFile(source / "heads.pt", "w") as archive:
        archive.writestr("readme", "nothing")
    with pytest.raises(HeadsError, match=r"heads\.pt cannot be read"):
        convert_heads(str(source), tmp_path / "out", str(base))
    torch.save([1, 2], source / "heads.pt")
    with pytest.raises(HeadsError, match="not a state dict"):
        convert_heads(str(source), tmp_path / "out", str(base))
    save(source, published().state_dict(), "pt")
    (source / "config.json").write_text("{")
    with pytest.raises(HeadsError, match=r"config\.json is not JSON"):
        convert_heads(str(source), tmp_path / "out", str(base))
    (source / "config.json").unlink()
    with pytest.raises(ModelError):
        convert_heads(str(source / "medusa_lm_head.pt"), tmp_path / "out", str(tmp_path / "gone"), True)


def test_convert_heads_command_prints_a_summary_and_does_not_overwrite(base: Path, tmp_path: Path) -> None:
    save(tmp_path / "in", published().state_dict(), "pt")
    arguments = ["convert-heads", str(tmp_path / "in"), str(tmp_path / "out"), "--base", str(base)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0 and "3 heads of 1 block" in done.output
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 1 and "already holds a head file" in again.output


def test_eagle3_pickles_become_safetensors_that_are_served_as_they_are(base: Path, tmp_path: Path) -> None:
    """The official heads come as pytorch_model.bin."""
    config, tensors = checkpoint("specforge", vocab_size=VOCAB, hidden_size=HIDDEN, head_dim=6)
    config["eagle_config"] = {"eagle_aux_hidden_state_layer_ids": [0, 1, 2]}
    (tmp_path / "in").mkdir()
    torch.save(tensors, tmp_path / "in" / "pytorch_model.bin")
    (tmp_path / "in" / "config.json").write_text(json.dumps(config))
    facts = BaseModelFacts(name="tiny", fingerprint=None, hidden_size=HIDDEN, vocab_size=VOCAB)
    with pytest.raises(HeadsError, match=r"outputs of layers \[0, 1, 2\], but the model's are 0 to 1"):
        convert_heads(str(tmp_path / "in"), tmp_path / "out", str(base))
    config["eagle_config"] = {"eagle_aux_hidden_state_layer_ids": [0, 1]}
    (tmp_path / "in" / "config.json").write_text(json.dumps(config))
    tensors["fc.weight"] = tensors["fc.weight"][:, : 2 * HIDDEN].clone()
    torch.save(tensors, tmp_path / "in" / "pytorch_model.bin")
    convert_heads(str(tmp_path / "in"), tmp_path / "out", str(base))
    file = read_any_heads(tmp_path / "out", facts)
    assert isinstance(file, Eagle3File)
    assert torch.equal(file.tensors["layers.0.mlp.up_proj.weight"], tensors["midlayer.mlp.up_proj.weight"])

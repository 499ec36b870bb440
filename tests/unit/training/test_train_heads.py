"""From answers to a head file that serves: on a model that counts, the heads must be right nearly everywhere."""

from pathlib import Path

import pytest
import torch

from medusa_dist.config import parse_config
from medusa_dist.engine.startup.bootstrap import EngineRank
from medusa_dist.errors import ConfigError
from medusa_dist.medusa.heads.heads_file import read_heads
from medusa_dist.model.fingerprint import fingerprint
from medusa_dist.training.distilled_dataset import DistilledAnswer, Origin
from medusa_dist.training.hidden_states import Positions
from medusa_dist.training.train_heads import Job, Shape, draft_vocab, read_data, train_heads
from medusa_dist.training.train_loop import Recipe
from tests.support.counting_model import VOCAB, save_counting_model, shifted
from tests.support.tiny_engine import decode, request, tiny_config

pytestmark = pytest.mark.usefixtures("one_thread")
RECIPE = Recipe(epochs=25, batch_tokens=64, learning_rate=0.02, warm_up_steps=5, checkpoint_steps=50, patience=99)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("counting")
    save_counting_model(folder, 9 * shifted(1))
    return folder


def write_answers(path: Path, of: str | None, count: int = 60) -> Path:
    origin = Origin(
        model="counting",
        fingerprint=of,
        dtype="float32",
        prompts="p",
        prompts_sha256="0",
        temperatures=(0.0,),
        samples=1,
        max_tokens=15,
        seed=0,
    )
    lines = [origin.model_dump_json()]
    for i in range(count):
        ids = tuple((i + j) % VOCAB for j in range(17))
        told = {"id": f"{i}:0", "temperature": 0.0, "finish_reason": "length"}
        lines.append(DistilledAnswer(**told, prompt_ids=ids[:2], output_ids=ids[2:]).model_dump_json())
    path.write_text("\n".join(lines) + "\n")
    return path


def train(model: Path, data: Path, target: Path, **shape: object) -> list[str]:
    said: list[str] = []
    config = parse_config({"model": str(model), "dtype": "float32"})
    made = Shape.model_validate({"num_heads": 3, "width": 64, "held_out": 0.1, **shape})
    job = Job(config, data, target, target.parent / "work", made, RECIPE)
    train_heads(job, said.append, said.append)
    return said


@pytest.mark.parametrize("prefix", [False, True])
def test_trained_heads_serve_and_retraining_resumes_to_the_same_file(model: Path, tmp_path: Path, prefix: bool) -> None:
    data = write_answers(tmp_path / "answers.jsonl", fingerprint(model))
    target = tmp_path / "heads"
    said = train(model, data, target, draft_vocab_size=29, prefix=prefix)
    assert any(text.startswith("memory: about") for text in said)
    about = read_heads(target).description
    assert about.base.fingerprint == fingerprint(model) and about.draft_vocab_size == 29
    assert (about.prefix is not None) == prefix and about.form == "sequential"
    assert about.training["recipe"]["epochs"] == 25
    assert about.training["answers_sha256"] and about.training["origin"]["model"] == "counting"
    # Two of 31 tokens cannot be drafted.
    assert all(head[0] > 0.8 for head in about.top_accuracies)
    rank = EngineRank(tiny_config(model, heads={"source": str(target)}, speculation={"max_nodes": 3}), model)
    outputs = decode(rank.engine, [request("a", [9, 4], max_tokens=28, temperature=0.0, ignore_eos=True)]).outputs
    assert outputs["a"].token_ids == tuple((5 + i) % VOCAB for i in range(28))
    assert sum(head > 0 for head in outputs["a"].heads) > 14
    # Run again, it finds its places and its end, and packs the same.
    first = (target / "heads.safetensors").read_bytes()
    again = train(model, data, target, draft_vocab_size=29, prefix=prefix)
    assert any(text.startswith("resuming after step") for text in again)
    assert (target / "heads.safetensors").read_bytes() == first
    assert read_heads(target).description == about


def test_trained_heads_that_tap_a_layer_serve_and_other_taps_begin_anew(model: Path, tmp_path: Path) -> None:
    """From the answers to heads that serve and read another layer; asked for other layers, it begins anew."""
    data, target = write_answers(tmp_path / "answers.jsonl", None), tmp_path / "heads"
    train(model, data, target, aux_layers=(0,), prefix=False)
    file = read_heads(target)
    assert file.description.tapped_layers == (-1, 0) and float(file.tensors["taps.weight"].abs().max()) > 0
    assert all(head[0] > 0.8 for head in file.description.top_accuracies)
    rank = EngineRank(tiny_config(model, heads={"source": str(target)}, speculation={"max_nodes": 3}), model)
    outputs = decode(rank.engine, [request("a", [9, 4], max_tokens=28, temperature=0.0, ignore_eos=True)]).outputs
    assert outputs["a"].token_ids == tuple((5 + i) % VOCAB for i in range(28))
    assert sum(head > 0 for head in outputs["a"].heads) > 14
    said = train(model, data, target, aux_layers=())
    assert not any(text.startswith("resuming after") for text in said)
    assert read_heads(target).description.tapped_layers == (-1,)
    with pytest.raises(ConfigError, match="aux_layers: there is no layer 1; the model's are 0 to 0"):
        train(model, data, target, aux_layers=(1,))


def test_default_tapped_layers_depend_on_the_number_of_layers() -> None:
    assert [Shape().tapped(layers) for layers in (1, 2, 3, 12, 30, 32, 80)] == [
        (),
        (0,),
        (1,),
        (4, 8),
        (11, 21),
        (12, 22),
        (30, 56),
    ]
    assert Shape(form="hidden").tapped(30) == () and Shape(aux_layers=()).tapped(30) == ()
    assert Shape(aux_layers=(5, 2)).tapped(30) == (2, 5)
    with pytest.raises(ValueError, match="aux_layers belong to the form 'sequential', not to 'hidden'"):
        Shape(form="hidden", aux_layers=(3,))


@pytest.mark.parametrize("form", ["hidden", "hidden+embedding"])
def test_medusas_own_forms_are_trained_to_high_accuracy(form: str, model: Path, tmp_path: Path) -> None:
    data = write_answers(tmp_path / "answers.jsonl", None)
    train(model, data, tmp_path / "heads", form=form, lm_head="own" if form == "hidden" else "shared")
    about = read_heads(tmp_path / "heads").description
    assert about.form == form and about.width is None and about.draft_vocab_size is None
    assert all(head[0] > 0.9 for head in about.top_accuracies)


def test_answers_of_another_model_or_too_few_are_refused(model: Path, tmp_path: Path) -> None:
    other = write_answers(tmp_path / "other.jsonl", "sha256:other")
    with pytest.raises(ConfigError, match="answers of another model"):
        train(model, other, tmp_path / "heads")
    few = write_answers(tmp_path / "few.jsonl", None, count=5)
    with pytest.raises(ConfigError, match="has 5 answers"):
        train(model, few, tmp_path / "heads")


def test_all_answers_of_a_prompt_are_held_out_or_none(tmp_path: Path) -> None:
    path = write_answers(tmp_path / "answers.jsonl", None)
    path.write_text(
        path.read_text() + "".join(line.replace(':0"', ':1"') + "\n" for line in path.read_text().splitlines()[1:])
    )
    data = read_data(path, "counting", "x")
    held = data.held_out(0.2)
    assert 4 < int(held.sum()) < 60 and held[:60].tolist() == held[60:].tolist()
    assert int(data.held_out(1e-9).sum()) == 2  # never none


def test_draft_vocabulary_holds_the_tokens_of_highest_expectation() -> None:
    ids, chances = torch.tensor([[3, 5], [5, 1]]).int(), torch.tensor([[0.6, 0.4], [0.7, 0.3]]).half()
    of_prompt = torch.tensor([[8, 7]]).int(), torch.tensor([[1.0, 0.5]]).half()
    ids, chances = torch.cat([of_prompt[0], ids]), torch.cat([of_prompt[1], chances])
    is_output = torch.tensor([False, True, True])
    places = Positions(torch.zeros(3, 1), torch.tensor([8, 3, 5]), ids, chances, torch.zeros(3).long(), is_output)
    assert draft_vocab(places, 2, 9).tolist() == [3, 5]
    assert draft_vocab(places, 4, 9).tolist() == [0, 1, 3, 5]  # ties to the lower id

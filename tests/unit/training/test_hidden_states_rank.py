"""The pass over the answers on two ranks on Ray, against the same pass in one process."""

from pathlib import Path

import pytest
import torch

from medusa_dist.config import parse_config
from medusa_dist.errors import ConfigError
from medusa_dist.medusa.heads.heads_file import read_heads
from medusa_dist.model.fingerprint import fingerprint
from medusa_dist.serve.local_group import run_ranks
from medusa_dist.training import hidden_states_rank as places_rank
from medusa_dist.training.distilled_dataset import DistilledAnswer, Origin
from medusa_dist.training.hidden_states import Positions, data_key, load_positions
from medusa_dist.training.hidden_states_config import HiddenStatesConfig
from medusa_dist.training.train_heads import Job, Shape, train_heads
from medusa_dist.training.train_loop import Recipe
from tests.support.tiny_engine import VOCAB, save_model

pytestmark = pytest.mark.usefixtures("one_thread")


def write_answers(path: Path) -> list[DistilledAnswer]:
    """Random tokens, of which the model thinks something at each place."""
    generator = torch.Generator().manual_seed(4)
    facts = {"model": "tiny", "fingerprint": None, "dtype": "float32", "prompts": "p", "prompts_sha256": "0"}
    lines, made = [Origin(**facts, temperatures=(0.0,), samples=1, max_tokens=40, seed=0).model_dump_json()], []
    for number in range(70):
        size = int(torch.randint(4, 60, (1,), generator=generator))
        ids = tuple(torch.randint(3, VOCAB, (size,), generator=generator).tolist())
        told = {"id": f"{number}:0", "temperature": 0.0, "finish_reason": "length"}
        made.append(DistilledAnswer(**told, prompt_ids=ids[:2], output_ids=ids[2:]))
        lines.append(made[-1].model_dump_json())
    path.write_text("\n".join(lines) + "\n")
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three key-value heads: the first rank holds two of them, and 16 of the 31 tokens."""
    folder = tmp_path_factory.mktemp("llama")
    save_model("llama", folder)
    return folder


def config(model: Path, ranks: int) -> dict[str, object]:
    resources = {"cpus_per_rank": 0.5, "threads_per_rank": 1}
    keys = {"model": str(model), "dtype": "float32", "device": "cpu", "tensor_parallel_size": ranks}
    return parse_config(keys | {"resources": resources}).model_dump()


def job(model: Path, data: Path, target: Path, ranks: int) -> Job:
    shape = Shape(num_heads=2, width=16, held_out=0.1)
    recipe = Recipe(epochs=1, batch_tokens=256, warm_up_steps=2)
    return Job(parse_config(config(model, ranks)), data, target, target.with_name(target.name + ".work"), shape, recipe)


def places_of(one: Job, answers: list[DistilledAnswer], model: Path) -> Positions:
    found = load_positions(one.work / "places.safetensors", data_key(answers, fingerprint(model), torch.float32, (0,)))
    assert found is not None
    return found


@pytest.mark.usefixtures("ray_cluster")
def test_two_ranks_collect_the_positions_that_one_collects(model: Path, tmp_path: Path) -> None:
    """And heads trained on either are the same kind of heads, with a tap that rank 0 alone reads."""
    answers = write_answers(tmp_path / "answers.jsonl")
    each, said, shown = [], [], []
    for ranks in (1, 2):
        each.append(job(model, tmp_path / "answers.jsonl", tmp_path / f"heads{ranks}", ranks))
        said.append([])
        train_heads(each[-1], said[-1].append, shown.append)
    one, two = (places_of(it, answers, model) for it in each)
    assert len(one) == len(two) == sum(len(answer.output_ids) for answer in answers) > 1500
    assert torch.equal(one.tokens, two.tokens) and torch.equal(one.answers, two.answers)
    assert torch.equal(one.base_ids, two.base_ids) and int(one.base_ids.max()) < VOCAB
    torch.testing.assert_close(one.base_chances, two.base_chances, atol=1e-3, rtol=1e-3)  # they are kept as float16
    assert one.hidden.shape == two.hidden.shape and one.hidden.shape[1] == 2 * 72
    apart = (one.hidden - two.hidden).abs()
    assert float(apart[:, :72].max()) < 1e-5 < float(one.hidden[:, :72].abs().max())
    tapped = one.hidden[:, 72:].abs().amax(dim=1, keepdim=True)  # not normed: some are dozens
    assert float((apart[:, 72:] / tapped).max()) < 1e-5 and float(tapped.min()) > 0.1
    about = [read_heads(it.target).description for it in each]
    assert [it.tapped_layers for it in about] == [(-1, 0), (-1, 0)]
    assert about[0].training["steps"] == about[1].training["steps"]
    assert any(text.startswith("memory: about") and "on each of 2 ranks" in text for text in said[1])
    assert any(text.startswith("reading the answers: ") for text in shown)


@pytest.mark.usefixtures("ray_cluster")
def test_rank_that_sees_other_answers_refuses(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    key = data_key(write_answers(path)[:-1], fingerprint(model), torch.float32)
    told = {"answers": path, "target": tmp_path / "places.safetensors", "key": key, "aux_layers": ()}
    with pytest.raises(ConfigError, match=r"rank \d sees other answers in .*answers\.jsonl"):
        run_ranks(HiddenStatesConfig.model_validate(config(model, 2) | told), places_rank.STACK, lambda _: None)
    assert not (tmp_path / "places.safetensors").exists()
    with pytest.raises(ConfigError, match="rank 0 sees other answers"):
        places_rank.HiddenStatesRank(HiddenStatesConfig.model_validate(config(model, 1) | told), model)


def test_too_many_ranks_are_refused_before_anything_starts(model: Path, tmp_path: Path) -> None:
    write_answers(tmp_path / "answers.jsonl")
    with pytest.raises(ConfigError, match="tensor_parallel_size 4 does not fit llama"):
        train_heads(job(model, tmp_path / "answers.jsonl", tmp_path / "heads", 4), lambda _: None, lambda _: None)

"""The pass over answers, against transformers' own models one answer at a time."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from medusa_dist.model.load import load_model
from medusa_dist.ops.tp_group import TPGroup
from medusa_dist.training.distilled_dataset import DistilledAnswer
from medusa_dist.training.hidden_states import Positions, collect, data_key, load_positions, save_positions
from tests.support.tiny_models import VOCAB, configs

pytestmark = pytest.mark.usefixtures("one_thread")


def answers() -> list[DistilledAnswer]:
    generator = torch.Generator().manual_seed(4)
    made = []
    for number, (prompt, output) in enumerate([(3, 7), (1, 1), (9, 12), (2, 5)]):
        ids = torch.randint(3, VOCAB, (prompt + output,), generator=generator).tolist()
        told = {"id": f"{number}:0", "temperature": 0.0, "finish_reason": "length"}
        made.append(DistilledAnswer(**told, prompt_ids=tuple(ids[:prompt]), output_ids=tuple(ids[prompt:])))
    return made


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gemma2", "mistral", "qwen3", "opt-projected"])
def test_collected_states_and_top_tokens_equal_transformers(name: str, tmp_path: Path) -> None:
    """Gemma 2 caps its scores and has windows, Mistral has windows shorter than the answers.

    Heads may read the first layer as well; OPT's is wider here than what its output matrix reads.
    """
    torch.manual_seed(0)
    config = configs()[name]
    config._attn_implementation = "eager"
    theirs = AutoModelForCausalLM.from_config(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path, dtype=torch.float32, device=torch.device("cpu"), parallel=TPGroup(), aux_layers=(0,))
    told: list[int] = []
    places = collect(ours, answers(), told.append)
    assert sum(told) == len(places) == 25
    row = 0
    for number, answer in enumerate(answers()):
        ids = torch.tensor([[*answer.prompt_ids, *answer.output_ids]])
        with torch.no_grad():
            said = theirs(ids, output_hidden_states=True)
        chose = slice(len(answer.prompt_ids) - 1, -1)  # the state before a token chose it
        logits, first = said.logits[0, chose], said.hidden_states[1][0, chose]
        count = len(answer.output_ids)
        mine = slice(row, row + count)
        assert places.tokens[mine].tolist() == list(answer.output_ids)
        assert places.answers[mine].tolist() == [number] * count
        chances = torch.softmax(logits, -1)
        best = chances.gather(1, places.base_ids[mine].long())
        torch.testing.assert_close(places.base_chances[mine].float(), best, atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(best[:, 0], chances.amax(-1))
        torch.testing.assert_close(places.hidden[mine, ours.hidden_size :], first, atol=1e-4, rtol=1e-4)
        from_hidden = ours.output_head(places.hidden[mine, : ours.hidden_size])[:, :VOCAB]
        torch.testing.assert_close(from_hidden.argmax(-1), logits.argmax(-1))
        row += count


def small() -> Positions:
    owners = torch.tensor([0, 0, 0, 1, 2, 2])
    chances, is_output = torch.full((6, 2), 0.5).half(), torch.ones(6, dtype=torch.bool)
    return Positions(torch.randn(6, 4), torch.arange(6), torch.zeros(6, 2).int(), chances, owners, is_output)


def test_followers_of_a_position_stay_in_its_answer() -> None:
    rows = torch.arange(6)
    assert small().follows(rows, 1).tolist() == [True, True, False, False, True, False]
    assert small().follows(rows, 2).tolist() == [True, False, False, False, False, False]
    assert small().of(torch.tensor([True, False, True])).tokens.tolist() == [0, 1, 2, 4, 5]


def test_saved_positions_load_only_for_the_same_data_key(tmp_path: Path) -> None:
    path, places = tmp_path / "places.safetensors", small()
    key = data_key(answers(), "a", torch.bfloat16)
    assert load_positions(path, key) is None
    save_positions(places, path, key)
    found = load_positions(path, key)
    assert found is not None and torch.equal(found.hidden, places.hidden) and torch.equal(found.answers, places.answers)
    others = {
        data_key(answers()[:3], "a", torch.bfloat16),
        data_key(answers(), "b", torch.bfloat16),
        data_key(answers(), "a", torch.float32),
        data_key(answers(), "a", torch.bfloat16, (3,)),
        data_key(answers(), "a", torch.bfloat16, (4,)),
    }
    assert len(others | {key}) == 6 and all(load_positions(path, other) is None for other in others)

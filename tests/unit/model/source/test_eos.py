"""End tokens: the union of generation_config.json, config.json and the tokenizer."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from medusa_dist.model.source.eos import eos_token_ids
from medusa_dist.ops.sampling import History, adjust
from medusa_dist.sampling_params import SamplingParams
from tests.support.tiny_tokenizers import byte_tokenizer

V = 300


def folder_with(path: Path, generation: Any = None, config: Any = None) -> Path:
    """The two JSON files, where None leaves the key out."""
    for name, value in (("generation_config.json", generation), ("config.json", config)):
        (path / name).write_text(
            json.dumps({"model_type": "llama"} | ({} if value is None else {"eos_token_id": value}))
        )
    return path


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        (None, None, ()),
        (5, None, (5,)),
        (None, 7, (7,)),
        ([9, 5], 7, (5, 7, 9)),
        ([5], [5, 5], (5,)),
        (-1, V, ()),  # no token has these ids
    ],
)
def test_both_configs_count(tmp_path: Path, generation: Any, config: Any, expected: tuple[int, ...]) -> None:
    assert eos_token_ids(folder_with(tmp_path, generation, config), V) == expected


def test_the_tokenizers_token_counts_with_those_of_the_configs(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)  # <eos> = 256
    assert eos_token_ids(folder_with(tmp_path, 258, [257]), V) == (256, 257, 258)
    (tmp_path / "generation_config.json").unlink()
    assert eos_token_ids(tmp_path, V) == (256, 257)
    assert eos_token_ids(tmp_path, 257) == (256,)
    assert eos_token_ids(tmp_path, V, with_tokenizer=False) == (257,)


def test_a_tokenizer_without_an_eos_token_adds_nothing(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    assert eos_token_ids(folder_with(tmp_path, 5), V) == (5,)


def test_a_folder_without_a_tokenizer_has_the_ids_of_its_configs_alone(tmp_path: Path) -> None:
    assert eos_token_ids(folder_with(tmp_path, None, 7), V) == (7,)  # transformers would invent </s> = 2


def test_a_tokenizer_that_cannot_be_read_adds_nothing(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "NoSuchTokenizer"}')
    assert eos_token_ids(folder_with(tmp_path, 5), V) == (5,)


def test_min_tokens_bans_all_of_them_and_ignore_eos_none() -> None:
    history = History(torch.tensor([1]), torch.zeros(0, dtype=torch.long))
    row = adjust(torch.zeros(10), SamplingParams(min_tokens=2), history, (3, 5))
    assert [i for i in range(10) if row[i] == -torch.inf] == [3, 5]
    row = adjust(torch.zeros(10), SamplingParams(min_tokens=2, ignore_eos=True), history, (3, 5))
    assert torch.isfinite(row).all()

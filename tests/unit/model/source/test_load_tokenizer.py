from pathlib import Path

import pytest

from medusa_dist.config import parse_config
from medusa_dist.errors import ModelError
from medusa_dist.model.source.load_tokenizer import load_tokenizer
from medusa_dist.text.no_tokenizer import NoTokenizer
from tests.support.tiny_llm import save_llm


def test_folder_without_tokenizer_is_refused_or_served_as_ids(tmp_path: Path) -> None:
    save_llm(tmp_path)
    config = parse_config({"model": str(tmp_path)})
    assert len(load_tokenizer(tmp_path, config)("ab")["input_ids"]) == 2
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(ModelError, match=r"the tokenizer is missing or cannot be read .*set skip_tokenizer_init"):
        load_tokenizer(tmp_path, config)
    silent = parse_config({"model": str(tmp_path), "skip_tokenizer_init": True})
    assert isinstance(load_tokenizer(tmp_path, silent), NoTokenizer)


def test_unreadable_tokenizer_is_a_model_error(tmp_path: Path) -> None:
    save_llm(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="the tokenizer is missing or cannot be read"):
        load_tokenizer(tmp_path, parse_config({"model": str(tmp_path)}))

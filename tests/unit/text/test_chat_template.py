"""Messages through a chat template: for all callers the same, and with a clear error."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from transformers import AutoTokenizer

from medusa_dist.errors import ConfigError, RequestError
from medusa_dist.text.chat_template import (
    choose_template,
    encode_chat,
    encode_question,
    has_chat_template,
    render_chat,
    select_template,
)
from tests.support.tiny_tokenizers import byte_tokenizer


class Tokenizer:
    """Characters as ids; encoding a text adds 1 in front unless special tokens are off."""

    chat_template: str | None = "there is one"

    def __init__(self, refuses: Exception | None = None) -> None:
        self.refuses = refuses

    def apply_chat_template(self, turns: list[dict], *, tokenize: bool, add_generation_prompt: bool) -> str:
        assert not tokenize
        if self.refuses is not None:
            raise self.refuses
        return "".join(f"[{t['role']}]{t['content']}" for t in turns) + "[assistant]" * add_generation_prompt

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [1] * add_special_tokens + [ord(c) for c in text]}


class Plain(Tokenizer):
    chat_template = None


MESSAGES = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]


def test_chat_ids_are_the_template_text_without_added_special_tokens() -> None:
    assert render_chat(Tokenizer(), MESSAGES) == "[system]s[user]u[assistant]"
    assert render_chat(Tokenizer(), MESSAGES, add_generation_prompt=False) == "[system]s[user]u"
    assert encode_chat(Tokenizer(), MESSAGES) == [ord(c) for c in "[system]s[user]u[assistant]"]


@pytest.mark.parametrize(
    "fault", [TemplateError("roles must alternate"), TypeError("a list"), ValueError("no")], ids=repr
)
def test_template_error_is_a_request_error_on_messages(fault: Exception) -> None:
    with pytest.raises(RequestError, match=rf"chat template rejects these messages: .*{fault}") as caught:
        render_chat(Tokenizer(fault), MESSAGES)
    assert caught.value.param == "messages"


def test_without_a_template_chat_is_refused_and_questions_are_plain_text() -> None:
    assert has_chat_template(Tokenizer()) and not has_chat_template(Plain())
    with pytest.raises(RequestError, match="no chat template; use /v1/completions"):
        render_chat(Plain(), MESSAGES, instead="/v1/completions")
    assert encode_question(Plain(), "hi") == [1, ord("h"), ord("i")]
    assert encode_question(Tokenizer(), "hi") == [ord(c) for c in "[user]hi[assistant]"]


NAMED = {"default": "d", "tool_use": "t", "rag": "r"}


@pytest.mark.parametrize(
    ("templates", "has_tools", "expected"),
    [
        ("only", False, "only"),
        ("only", True, "only"),
        (NAMED, False, "d"),
        (NAMED, True, "t"),
        ({"default": "d", "rag": "r"}, True, "d"),
        ({"rag": "r"}, False, "r"),
    ],
)
def test_the_template_for_tools_or_the_default_is_selected(templates: Any, has_tools: bool, expected: str) -> None:
    assert select_template(templates, has_tools) == expected


def test_templates_without_a_default_are_refused_naming_the_config_key() -> None:
    with pytest.raises(RequestError, match=r"several chat templates \(rag, tool_use\) .* config key chat_template"):
        select_template({"rag": "r", "tool_use": "t"})
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"rag": "r", "tool_use": "t"}
    with pytest.raises(RequestError, match="several chat templates"):
        render_chat(tokenizer, MESSAGES)


def test_named_templates_load_as_a_list_and_as_a_folder(tmp_path: Path) -> None:
    """Both forms that models are published in; render_chat takes the default."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = NAMED
    for folder, is_list in ((tmp_path / "list", True), (tmp_path / "folder", False)):
        tokenizer.save_pretrained(folder)
        if is_list:
            shutil.rmtree(folder / "additional_chat_templates")
            (folder / "chat_template.jinja").unlink()
            config = json.loads((folder / "tokenizer_config.json").read_text())
            config["chat_template"] = [{"name": name, "template": text} for name, text in NAMED.items()]
            (folder / "tokenizer_config.json").write_text(json.dumps(config))
        read = AutoTokenizer.from_pretrained(folder)
        assert read.chat_template == NAMED and has_chat_template(read) and render_chat(read, MESSAGES) == "d"


def test_the_config_key_chooses_a_template_by_name_or_a_file(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    choose_template(tokenizer, None)
    assert render_chat(tokenizer, MESSAGES).startswith("<s>system")
    tokenizer.chat_template = NAMED
    choose_template(tokenizer, "rag")
    assert render_chat(tokenizer, MESSAGES) == "r"
    (tmp_path / "own.jinja").write_text("{{ messages[0].content }}é", encoding="utf-8")
    choose_template(tokenizer, str(tmp_path / "own.jinja"))
    assert render_chat(tokenizer, MESSAGES) == "sé"


def test_a_template_that_is_not_there_is_a_config_error_with_the_names() -> None:
    tokenizer = byte_tokenizer()
    with pytest.raises(ConfigError, match=r"chat_template: 'rag' is neither a file nor .*; names: none"):
        choose_template(tokenizer, "rag")
    tokenizer.chat_template = NAMED
    with pytest.raises(ConfigError, match="names: one of default, rag, tool_use"):
        choose_template(tokenizer, "tools")

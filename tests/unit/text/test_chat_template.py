"""Messages through a chat template: for all callers the same, and with a clear error."""

import pytest
from jinja2 import TemplateError

from medusa_dist.errors import RequestError
from medusa_dist.text.chat_template import encode_chat, encode_question, has_chat_template, render_chat


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
    with pytest.raises(RequestError, match=rf"chat template rejects these messages: {fault}") as caught:
        render_chat(Tokenizer(fault), MESSAGES)
    assert caught.value.param == "messages"


def test_without_a_template_chat_is_refused_and_questions_are_plain_text() -> None:
    assert has_chat_template(Tokenizer()) and not has_chat_template(Plain())
    with pytest.raises(RequestError, match="no chat template; use /v1/completions"):
        render_chat(Plain(), MESSAGES, instead="/v1/completions")
    assert encode_question(Plain(), "hi") == [1, ord("h"), ord("i")]
    assert encode_question(Tokenizer(), "hi") == [ord(c) for c in "[user]hi[assistant]"]

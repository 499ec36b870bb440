"""Which variables a chat template reads, and what a request may set."""

import pytest

from medusa_dist.errors import RequestError
from medusa_dist.text.chat_template import render_chat
from medusa_dist.text.template_variables import template_variables, variables_of
from tests.support.tiny_tokenizers import byte_tokenizer

TEMPLATE = (
    "{% if not style is defined %}{% set style = 'plain' %}{% endif %}({{ style }})"
    "{% for d in documents or [] %}<{{ d.title }}: {{ d.text }}>{% endfor %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}[end]\n{% endfor %}"
    "{% generation %}{% if add_generation_prompt %}[assistant]{% if enable_thinking is false %}<no>{% endif %}"
    "{% endif %}{% endgeneration %}"
)
USER = [{"role": "user", "content": "hi"}]


@pytest.fixture
def tokenizer():
    made = byte_tokenizer()
    made.chat_template = TEMPLATE
    return made


def test_the_variables_of_a_template() -> None:
    names = {"messages", "documents", "add_generation_prompt", "style", "enable_thinking"}
    assert variables_of(TEMPLATE) == names
    assert variables_of("{% for x in messages %}{% break %}{% endfor %}") == {"messages"}
    assert variables_of("{% no such tag %}") == frozenset()


def test_variables_and_documents_reach_the_template(tokenizer) -> None:
    assert render_chat(tokenizer, USER) == "(plain)[user]hi[end]\n[assistant]"
    text = render_chat(tokenizer, USER, chat_template_kwargs={"style": "odd", "enable_thinking": False})
    assert text == "(odd)[user]hi[end]\n[assistant]<no>"
    text = render_chat(tokenizer, USER, False, documents=[{"title": "a", "text": "b"}, {"title": "c", "text": "d"}])
    assert text == "(plain)<a: b><c: d>[user]hi[end]\n"


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"stile": "odd"}, "did you mean style?"),
        ({"enable_thinkin": False}, "did you mean enable_thinking?"),
        ({"zzz": 1}, "does not read zzz; it reads: enable_thinking, style"),
        ({"messages": []}, "messages is no variable"),
        ({"chat_template": "x"}, "chat_template is no variable"),
        ({"tokenize": True}, "tokenize is no variable"),
        ({"documents": []}, "documents is no variable"),
        ({"style": "\ud800"}, "lone surrogate"),
    ],
    ids=str,
)
def test_a_variable_without_effect_is_refused_by_name(tokenizer, kwargs, text) -> None:
    with pytest.raises(RequestError, match="chat_template_kwargs") as caught:
        template_variables(tokenizer, kwargs, None)
    assert text in caught.value.message and caught.value.param == "chat_template_kwargs"


def test_nothing_asked_for_is_nothing_wrong(tokenizer) -> None:
    assert template_variables(tokenizer, {"custom": None, "zzz": False}, []) == {"custom": None, "zzz": False}
    with pytest.raises(RequestError, match="does not read them; put their text into a message"):
        template_variables(byte_tokenizer(), None, [{"text": "x"}])


@pytest.mark.parametrize("content", ["", "Hel", "Hel  ", "Hel\n\n", "a [end]\n b ", "\tx"])
def test_the_last_message_is_continued_with_its_blanks(tokenizer, content) -> None:
    """The template strips them, but not inside a text."""
    messages = [*USER, {"role": "assistant", "content": content}]
    text = render_chat(tokenizer, messages, False, continue_final_message=True)
    assert text == "(plain)[user]hi[end]\n[assistant]" + content.lstrip()
    assert messages[-1]["content"] == content
    text = render_chat(tokenizer, USER, False, continue_final_message=True)
    assert text == "(plain)[user]hi", "of any role"


def test_a_last_message_that_cannot_be_continued_is_refused(tokenizer) -> None:
    with pytest.raises(RequestError, match="leaves the last message open"):
        render_chat(tokenizer, USER, True, continue_final_message=True)
    tokenizer.chat_template = "{{ messages | length }}"
    with pytest.raises(RequestError, match="does not keep the text of the last message") as caught:
        render_chat(tokenizer, USER, False, continue_final_message=True)
    assert caught.value.param == "continue_final_message"

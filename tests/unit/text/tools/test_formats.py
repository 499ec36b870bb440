"""Each format with a template of its family: the prompt, the calls of a history, and the family's own answers."""

import json

import llguidance.hf
import pytest
from llguidance import LLMatcher
from transformers import PreTrainedTokenizerFast

from medusa_dist.api.chat.answering import Answering
from medusa_dist.api.schema.tools import Tool, asked_tools
from medusa_dist.text.chat_template import encode_chat
from medusa_dist.text.tools.chat_format import chat_format
from medusa_dist.text.tools.formats import FORMATS
from tests.support.family_templates import FAMILIES, TOOLS
from tests.support.tool_cases import collected, marks_tokenizer

EACH = pytest.mark.parametrize("name", FORMATS)
ASKED = asked_tools([Tool.model_validate(tool) for tool in TOOLS], None, None)


def accepts(lark: str, tokenizer: PreTrainedTokenizerFast, text: str) -> bool:
    parts = {"grammars": [{"name": "answer", "lark_grammar": lark}]}
    matcher = LLMatcher(llguidance.hf.from_tokenizer(tokenizer), json.dumps(parts), log_level=0)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return matcher.validate_tokens(ids) == len(ids) and matcher.consume_tokens(ids) and matcher.is_accepting()


def answering_of(name: str) -> Answering:
    tokenizer = marks_tokenizer()
    tokenizer.chat_template = FAMILIES[name].template
    found = chat_format(tokenizer, "auto", "auto")
    assert found.renders_tools
    return Answering(ASKED, found.form, found)


@EACH
def test_template_of_a_family_implies_its_format(name: str) -> None:
    assert answering_of(name).form is FORMATS[name]


@EACH
def test_prompt_has_the_tools_and_calls_of_a_history_in_the_familys_form(name: str) -> None:
    family = FAMILIES[name]
    calls = [
        {"id": f"call_{i:024}", "type": "function", "function": {"name": called, "arguments": dict(arguments)}}
        for i, (called, arguments) in enumerate(family.calls)
    ]
    turns = [
        {"role": "user", "content": "How is the weather?"},
        {"role": "assistant", "content": family.content, "tool_calls": calls},
        *({"role": "tool", "tool_call_id": call["id"], "content": "sunny"} for call in calls),
    ]
    plan, tokenizer = answering_of(name), marks_tokenizer()
    tokenizer.chat_template = family.template
    shown = plan.conversation_of(turns)
    text, ids = encode_chat(tokenizer, shown.turns, tools=shown.tools)
    assert tokenizer.decode(ids) == text
    assert '"get_current_weather"' in text and "sunny" in text
    assert (family.answer.strip() if family.history is None else family.history) in text.replace("\n\n\n", "\n\n")


@pytest.mark.parametrize(
    ("call", "takes_text"),
    [
        ("{{ c.arguments | tojson }}", False),
        ("{{ c.arguments }}", True),
        ("{{ 'x' + c.arguments }}", True),
        ("{% for k, v in c.arguments | items %}{{ k }}={{ v }}{% endfor %}", False),
        ("", False),
        ("{{ raise_exception('no calls') }}", False),
    ],
)
def test_template_shows_by_a_rendered_call_whether_it_takes_arguments_as_text(call: str, takes_text: bool) -> None:
    tokenizer = marks_tokenizer()
    tokenizer.chat_template = (
        "{{ tools }}{% for m in messages %}{% for t in m.tool_calls or [] %}{% set c = t.function %}"
        f"{call}{{% endfor %}}{{% endfor %}}"
    )
    assert chat_format(tokenizer, "auto", "auto").text_arguments is takes_text


@EACH
def test_answer_of_a_family_is_read_the_same_whole_and_in_every_split(name: str) -> None:
    family, plan = FAMILIES[name], answering_of(name)
    assert ASKED is not None
    expected = ("", family.content, [(called, dict(arguments)) for called, arguments in family.calls])

    def read(*pieces: str) -> object:
        from_plan = plan.message("")._reader  # the reader of an answer as it is served
        parts = [part for piece in pieces for part in from_plan.feed(piece)] + from_plan.feed("", is_last=True)
        reasoning, content, calls = collected(parts)
        return reasoning, content, [(called, json.loads(arguments)) for called, arguments in calls]

    assert read(family.answer) == expected
    assert read(*family.answer) == expected
    for cut in range(1, len(family.answer)):
        assert read(family.answer[:cut], family.answer[cut:]) == expected


@EACH
def test_answer_of_a_family_is_allowed_by_the_grammar(name: str) -> None:
    plan, tokenizer = answering_of(name), marks_tokenizer()
    grammar = plan.grammar(None, "", tokenizer)
    assert grammar is not None and accepts(grammar.text, tokenizer, FAMILIES[name].answer)

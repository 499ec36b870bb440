"""AnswerReader: reasoning, content and calls of a growing text, whatever the pieces' sizes."""

import json

import pytest

from medusa_dist.text.tools.answer_reader import AnswerReader
from medusa_dist.text.tools.formats import FORMATS, ToolFormat, implied_format
from medusa_dist.text.tools.parts import CallArguments, CallStart, Content, Part
from medusa_dist.text.tools.reasoning import REASONING, implied_reasoning
from tests.support.tool_cases import CALLS, SCHEMAS, collected, write_calls

THINK = REASONING["think"]
ALL_FORMATS = pytest.mark.parametrize("form", FORMATS.values(), ids=list(FORMATS))
EXPECTED_CALLS = [(name, arguments) for name, arguments in CALLS]


def read(reader: AnswerReader, text: str, size: int) -> list[Part]:
    """All parts of a text that comes in pieces of `size` characters."""
    parts = [part for i in range(0, len(text), size) for part in reader.feed(text[i : i + size])]
    return parts + reader.feed("", is_last=True)


@ALL_FORMATS
@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
@pytest.mark.parametrize("reasons", [False, True], ids=["plain", "reasoning"])
def test_reasoning_text_and_calls_are_the_same_for_all_piece_sizes(form: ToolFormat, size: int, reasons: bool) -> None:
    before = "" if form.is_whole_answer else "Let me see.\n"
    text = ("<think>\nhm </thin {x}\n\n</think>\n\n" if reasons else "") + before + write_calls(form, CALLS)
    reader = AnswerReader(THINK if reasons else None, False, form, SCHEMAS)
    reasoning, content, calls = collected(read(reader, text, size))
    assert (reasoning, content) == ("hm </thin {x}" if reasons else "", before)
    assert [(name, json.loads(arguments)) for name, arguments in calls] == EXPECTED_CALLS
    assert reader.num_calls == len(CALLS)


@pytest.mark.parametrize("name", [f.name for f in FORMATS.values() if f.arguments == "json"])
def test_json_arguments_are_passed_on_as_they_come(name: str) -> None:
    form = FORMATS[name]
    reader = AnswerReader(form=form, schemas=SCHEMAS)
    start = write_calls(form, CALLS).partition('"city"')[0]
    assert collected(reader.feed(start + '"ci'))[2] == [("get_weather", '{"ci')]
    assert reader.feed('ty": "P') == [CallArguments(0, 'ty": "P')]


@ALL_FORMATS
def test_call_cut_by_the_length_limit_keeps_its_name_and_known_arguments(form: ToolFormat) -> None:
    text = write_calls(form, CALLS[:1])
    cut = text[: text.index("days")]
    reasoning, content, calls = collected(read(AnswerReader(form=form, schemas=SCHEMAS), cut, 4))
    assert (reasoning, content) == ("", "")
    assert [name for name, _ in calls] == ["get_weather"]
    assert calls[0][1] == ('{"city": "Par\\"is ☔}", "' if form.arguments == "json" else "")


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_text_without_calls_is_content_to_the_character(size: int) -> None:
    text = "  a < b [TOOL <tool_cal [] {}\n"
    for form in FORMATS.values():
        assert collected(read(AnswerReader(form=form, schemas=SCHEMAS), text, size)) == ("", text, [])


def test_text_that_only_starts_like_a_call_becomes_content() -> None:
    reader = AnswerReader(form=FORMATS["hermes"], schemas=SCHEMAS)
    assert collected(read(reader, "see <tool_call>\n{}", 3)) == ("", "see <tool_call>\n{}", [])
    assert reader.num_calls == 0


def test_content_is_not_held_back_without_need() -> None:
    reader = AnswerReader(form=FORMATS["hermes"], schemas=SCHEMAS)
    assert reader.feed("Hello <") == [Content("Hello ")]
    assert reader.feed("b> you") == [Content("<b> you")]


def test_reasoning_opened_by_the_prompt_ends_at_its_mark() -> None:
    reader = AnswerReader(THINK, is_reasoning=True)
    assert collected(read(reader, "hm\n</think>\n\nYes.", 2)) == ("hm", "Yes.", [])


def test_reasoning_that_never_ends_is_all_reasoning() -> None:
    assert collected(read(AnswerReader(THINK), "<think>so much\n", 3)) == ("so much", "", [])


def test_mark_of_reasoning_within_the_answer_is_content() -> None:
    assert collected(read(AnswerReader(THINK), "I say <think> so", 3)) == ("", "I say <think> so", [])


def test_call_within_reasoning_is_reasoning() -> None:
    reader = AnswerReader(THINK, form=FORMATS["hermes"], schemas=SCHEMAS)
    text = f"<think>{write_calls(FORMATS['hermes'], CALLS[:1])}</think>ok"
    reasoning, content, calls = collected(read(reader, text, 5))
    assert reasoning.startswith("<tool_call>")
    assert (content, calls) == ("ok", [])


@pytest.mark.parametrize(
    "text", ['<|python_tag|>{"name": "ping", "parameters": {}}', '\n{"name": "ping", "parameters": {}}']
)
def test_llama_calls_may_follow_the_python_tag_or_blanks(text: str) -> None:
    reader = AnswerReader(form=FORMATS["llama3_json"], schemas=SCHEMAS)
    assert read(reader, text, 3)[0] == CallStart(0, "ping")


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ('{%- if tools %}<tool_call>\n{"name": <function-name>', "hermes"),
        ("<tool_call>\n<function=example_function_name>\n<parameter=a>", "qwen3_coder"),
        ('{%- if tools %}Environment: ipython {"name": .., "parameters": ..}', "llama3_json"),
        ("[func_name1(params_name1=params_value1)]", "pythonic"),
        ('{{ "[TOOL_CALLS][" }}', "mistral"),
        ('{{ "[TOOL_CALLS] [" }}', "mistral_v3"),
        ('{{ "[TOOL_CALLS]" + name + "[ARGS]" }}', "mistral_args"),
        ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>\n```json", "deepseek_v3"),
        ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>", "deepseek_v31"),
        ("{{ messages[0].content }}", None),
    ],
)
def test_chat_template_implies_the_format_of_calls(template: str, name: str | None) -> None:
    assert implied_format(template) is (None if name is None else FORMATS[name])


def test_chat_template_implies_the_marks_of_reasoning() -> None:
    assert implied_reasoning("{{ content.split('</think>')[-1] }}") is THINK
    assert implied_reasoning("[THINK]{{ x }}[/THINK]") is REASONING["mistral"]
    assert implied_reasoning("{{ x }}") is None
    assert THINK.is_open_after("<|assistant|>\n<think>\n")
    assert not THINK.is_open_after("<think>\n\n</think>\n\n")

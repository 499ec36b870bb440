"""The grammar of answers with tools: free before a call, strict within; what it allows can be read."""

import json
import random
from functools import cache
from typing import Any

import llguidance.hf
import llguidance.numpy
import numpy as np
import pytest
from llguidance import LLMatcher
from transformers import PreTrainedTokenizerFast

from medusa_dist.text.tools.answer_reader import AnswerReader
from medusa_dist.text.tools.formats import FORMATS, ToolFormat
from medusa_dist.text.tools.reasoning import REASONING
from medusa_dist.text.tools.tool_grammar import AnswerShape, answer_grammar, token_marks
from tests.support.tiny_tokenizers import byte_tokenizer
from tests.support.tool_cases import CALLS, SCHEMAS, collected, marks_tokenizer, write_calls

THINK = REASONING["think"]
BY_TOKENS = {"marks are tokens": True, "marks are spelled": False}
ALL_FORMATS = pytest.mark.parametrize("form", FORMATS.values(), ids=list(FORMATS))
BOTH_TOKENIZERS = pytest.mark.parametrize("has_marks", BY_TOKENS.values(), ids=list(BY_TOKENS))


@cache
def tokenizer_of(has_marks: bool) -> tuple[PreTrainedTokenizerFast, Any]:
    tokenizer = marks_tokenizer() if has_marks else byte_tokenizer()
    return tokenizer, llguidance.hf.from_tokenizer(tokenizer)


def matcher_of(shape: AnswerShape, has_marks: bool, body: str | None = None) -> LLMatcher:
    tokenizer, vocabulary = tokenizer_of(has_marks)
    parts = [{"name": "answer", "lark_grammar": answer_grammar(shape, token_marks(tokenizer))}]
    parts += [] if body is None else [{"name": "body", "lark_grammar": body}]
    matcher = LLMatcher(vocabulary, json.dumps({"grammars": parts}), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return matcher


def accepts(matcher: LLMatcher, text: str, has_marks: bool, spelled: bool = False) -> bool:
    """Whether a text is an answer. spelled: one character at a time, so that no mark is one token."""
    tokenizer, _ = tokenizer_of(has_marks)
    pieces = list(text) if spelled else [text]
    ids = [i for piece in pieces for i in tokenizer(piece, add_special_tokens=False)["input_ids"]]
    matcher.reset()
    num_read = matcher.validate_tokens(ids)
    return num_read == len(ids) and matcher.consume_tokens(ids) and matcher.is_accepting()


def lead(form: ToolFormat) -> str:
    """Text before calls, where the format allows it."""
    return "" if form.is_whole_answer else "Let me see {x} [y].\n"


@ALL_FORMATS
@BOTH_TOKENIZERS
def test_calls_text_and_calls_after_text_are_answers(form: ToolFormat, has_marks: bool) -> None:
    matcher = matcher_of(AnswerShape(form=form, schemas=SCHEMAS), has_marks)
    assert accepts(matcher, write_calls(form, CALLS), has_marks)
    assert accepts(matcher, lead(form) + write_calls(form, CALLS[:1]), has_marks)
    assert accepts(matcher, "just text {a} [b] <c>", has_marks)


@ALL_FORMATS
@BOTH_TOKENIZERS
def test_call_with_arguments_that_break_the_schema_is_no_answer(form: ToolFormat, has_marks: bool) -> None:
    matcher = matcher_of(AnswerShape(form=form, schemas=SCHEMAS), has_marks)
    for wrong in ({"days": 3}, {"city": "x", "unit": "K"}, {"city": "x", "more": 1}):
        assert not accepts(matcher, lead(form) + write_calls(form, [("get_weather", wrong)]), has_marks), wrong


@ALL_FORMATS
@BOTH_TOKENIZERS
def test_call_of_an_unknown_tool_is_no_answer_when_a_call_is_required(form: ToolFormat, has_marks: bool) -> None:
    matcher = matcher_of(AnswerShape(form=form, schemas=SCHEMAS, must_call=True), has_marks)
    assert accepts(matcher, write_calls(form, CALLS), has_marks)
    assert not accepts(matcher, write_calls(form, [("unknown", {})]), has_marks)
    assert not accepts(matcher, "just text", has_marks)
    assert not accepts(matcher, "", has_marks)


@pytest.mark.parametrize("form", [f for f in FORMATS.values() if not f.is_whole_answer], ids=lambda f: f.name)
def test_mark_spelled_with_ordinary_tokens_opens_a_strict_call_too(form: ToolFormat) -> None:
    matcher = matcher_of(AnswerShape(form=form, schemas=SCHEMAS), has_marks=True)
    assert not accepts(matcher, write_calls(form, [("unknown", {})]), True, spelled=True)


@ALL_FORMATS
def test_one_call_allows_no_second(form: ToolFormat) -> None:
    matcher = matcher_of(AnswerShape(form=form, schemas=SCHEMAS, one_call=True, must_call=True), True)
    assert accepts(matcher, write_calls(form, CALLS[:1]), True)
    assert not accepts(matcher, write_calls(form, CALLS[:2]), True)


@ALL_FORMATS
@BOTH_TOKENIZERS
def test_reasoning_precedes_calls_and_does_not_loosen_them(form: ToolFormat, has_marks: bool) -> None:
    shape = AnswerShape(form=form, schemas=SCHEMAS, marks=THINK)
    matcher = matcher_of(shape, has_marks)
    reasoning = "<think>\nhm </thin\n</think>\n\n"
    assert accepts(matcher, reasoning + lead(form) + write_calls(form, CALLS), has_marks)
    assert accepts(matcher, reasoning + "text", has_marks)
    assert accepts(matcher, "text", has_marks)
    assert not accepts(matcher, reasoning + write_calls(form, [("get_weather", {"days": 3})]), has_marks)


@BOTH_TOKENIZERS
def test_reasoning_that_the_prompt_opened_must_be_closed(has_marks: bool) -> None:
    matcher = matcher_of(AnswerShape(marks=THINK, is_reasoning=True, has_body=True), has_marks, 'start: "yes" | "no"')
    assert accepts(matcher, "hm\n</think>\n\nyes", has_marks)
    assert not accepts(matcher, "yes", has_marks)
    assert not accepts(matcher, "hm</think>maybe", has_marks)


@ALL_FORMATS
def test_with_a_body_the_answer_is_the_body_or_calls(form: ToolFormat) -> None:
    matcher = matcher_of(
        AnswerShape(form=form, schemas=SCHEMAS, has_body=True), True, 'start: %json {"type": "integer"}'
    )
    assert accepts(matcher, "12", True)
    assert accepts(matcher, write_calls(form, CALLS), True)
    assert not accepts(matcher, "twelve", True)


BY_REFERENCE: dict[str, Any] = {  # as pydantic writes an enumeration and a model
    "type": "object",
    "properties": {
        "colour": {"$ref": "#/$defs/Colour"},
        "point": {"$ref": "#/$defs/Point"},
        "other": {"anyOf": [{"$ref": "#/$defs/Count"}, {"type": "null"}]},
    },
    "required": ["colour"],
    "$defs": {
        "Colour": {"type": "string", "enum": ["red", "blue"]},
        "Count": {"type": "integer"},
        "Point": {"type": "object", "properties": {"x": {"$ref": "#/$defs/Count"}}, "required": ["x"]},
    },
}


@ALL_FORMATS
def test_references_in_a_schema_are_followed(form: ToolFormat) -> None:
    matcher = matcher_of(AnswerShape(form=form, schemas={"f": BY_REFERENCE}, must_call=True), True)
    good = {"colour": "red", "point": {"x": 1}, "other": 5}
    text = write_calls(form, [("f", good)])
    assert accepts(matcher, text, True)
    _, _, calls = collected(AnswerReader(form=form, schemas={"f": BY_REFERENCE}).feed(text, is_last=True))
    assert [(name, json.loads(arguments)) for name, arguments in calls] == [("f", good)]
    for wrong in ({"colour": "green"}, {"colour": "red", "other": 1.5}, {}):
        assert not accepts(matcher, write_calls(form, [("f", wrong)]), True), wrong


@ALL_FORMATS
@pytest.mark.parametrize("seed", range(2))
def test_random_answers_of_the_grammar_are_read_as_calls_with_json_arguments(form: ToolFormat, seed: int) -> None:
    tokenizer, vocabulary = tokenizer_of(True)
    # An XML text ends with a whole line that random tokens do not hit, so there the city is one of a list.
    city = {"enum": ["Paris", "Rome"]} if form.arguments == "xml" else {"type": "string"}
    weather = SCHEMAS["get_weather"]
    schemas = SCHEMAS | {"get_weather": weather | {"properties": weather["properties"] | {"city": city}}}
    matcher = matcher_of(AnswerShape(form=form, schemas=schemas, must_call=True, one_call=True), True)
    text = random_answer(matcher, tokenizer, vocabulary.vocab_size, random.Random(seed))
    reader = AnswerReader(form=form, schemas=SCHEMAS)
    _, content, calls = collected(reader.feed(text, is_last=True))
    assert (content, len(calls)) == ("", 1)
    name, arguments = calls[0]
    assert set(SCHEMAS[name].get("required", ())) <= set(json.loads(arguments)) <= set(SCHEMAS[name]["properties"])


def random_answer(matcher: LLMatcher, tokenizer: PreTrainedTokenizerFast, vocab_size: int, rng: random.Random) -> str:
    """Random allowed tokens, with a liking for what ends strings and brackets."""
    closing = {i for i in range(len(tokenizer)) if tokenizer.decode([i]) in '"}])\n/<'}
    ids: list[int] = []
    while not matcher.is_stopped() and len(ids) < 2000:
        words = np.zeros((1, (vocab_size + 31) // 32), dtype=np.int32)
        llguidance.numpy.fill_next_token_bitmask(matcher, words)
        bits = np.unpackbits(words.view(np.uint8)[0], count=vocab_size, bitorder="little")
        allowed = [i for i in np.flatnonzero(bits).tolist() if i != tokenizer.eos_token_id]
        if not allowed:
            break
        liked = [i for i in allowed if i in closing]
        ids.append(rng.choice(liked if liked and rng.random() < 0.8 else allowed))
        assert matcher.consume_tokens(ids[-1:])
    assert matcher.is_accepting()
    return tokenizer.decode(ids)

"""The grammar of answers in harmony: free texts, strict calls, one order of messages."""

import json

import llguidance.hf
import pytest
from llguidance import LLMatcher
from tokenizers import AddedToken

from medusa_dist.text.harmony.channel_grammar import channel_grammar
from medusa_dist.text.harmony.channel_reader import MARKS
from medusa_dist.text.tools.tool_grammar import AnswerShape, token_marks
from tests.support.tiny_tokenizers import byte_tokenizer
from tests.support.tool_cases import SCHEMAS

TOKENIZER = byte_tokenizer()
TOKENIZER.add_tokens([AddedToken(mark, special=True) for mark in MARKS])
VOCABULARY = llguidance.hf.from_tokenizer(TOKENIZER)
THOUGHT = "<|channel|>analysis<|message|>Hm {x}.\n<|end|><|start|>assistant"
PREAMBLE = "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>"


def call(name, arguments):
    return f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{arguments}"


def accepts(text, body=None, **shape):
    parts = [{"name": "answer", "lark_grammar": channel_grammar(AnswerShape(**shape), token_marks(TOKENIZER))}]
    parts += [] if body is None else [{"name": "body", "lark_grammar": body}]
    matcher = LLMatcher(VOCABULARY, json.dumps({"grammars": parts}), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return matcher.validate_tokens(ids) == len(ids) and matcher.consume_tokens(ids) and matcher.is_accepting()


@pytest.mark.parametrize("before", ["", THOUGHT, THOUGHT + PREAMBLE, THOUGHT * 2])
def test_answer_is_final_text_or_one_valid_call_after_other_messages(before):
    for good in (FINAL + "Yes {a}.", call("get_weather", '{"city": "Rome", "days": 2}'), call("ping", "{}")):
        assert accepts(before + good, schemas=SCHEMAS), good
    for bad in (
        "text",
        FINAL + "x<|end|>",
        call("other", "{}"),
        call("get_weather", '{"days": 2}'),
        call("ping", "[]"),
    ):
        assert not accepts(before + bad, schemas=SCHEMAS), bad
    assert not accepts(before + call("ping", "{}") * 2, schemas=SCHEMAS)


def test_required_call_leaves_reasoning_free_and_allows_no_final_text():
    assert accepts(THOUGHT + call("ping", "{}"), schemas=SCHEMAS, must_call=True)
    assert not accepts(THOUGHT + FINAL + "Yes.", schemas=SCHEMAS, must_call=True)


def test_structured_output_is_the_final_text():
    body = 'start: %json {"type": "integer"}'
    assert accepts(THOUGHT + FINAL + "12", body, has_body=True)
    assert not accepts(THOUGHT + FINAL + "twelve", body, has_body=True)
    assert not accepts("12", body, has_body=True)

"""Which forms a prompt may have, and how a wrong one is named."""

import numpy as np
import pytest
import torch

from medusa_dist.errors import RequestError
from medusa_dist.offline.prompts import PromptTokens, read_prompt, split_conversations, split_prompts


def encode(text: str) -> list[int]:
    return [ord(c) for c in text]


def read(prompts: object) -> list[PromptTokens]:
    return [read_prompt(prompt, i, encode) for i, prompt in enumerate(split_prompts(prompts))]


AB = PromptTokens((97, 98), "ab")
IDS = PromptTokens((5, 6))


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ("ab", [AB]),
        (["ab"], [AB]),
        (("ab", "ab"), [AB, AB]),
        ({"prompt": "ab"}, [AB]),
        ([{"prompt": "ab", "multi_modal_data": None}], [AB]),
        ([5, 6], [IDS]),
        ((5, 6), [IDS]),
        ([[5, 6]], [IDS]),
        ([(5, 6), range(5, 7)], [IDS, IDS]),
        ({"prompt_token_ids": [5, 6]}, [IDS]),
        ({"prompt": "of the ids", "prompt_token_ids": (5, 6)}, [PromptTokens((5, 6), "of the ids")]),
        ([{"prompt": "ab", "cache_salt": "x"}], [PromptTokens((97, 98), "ab", "x")]),
        (["ab", [5, 6], {"prompt_token_ids": [5, 6]}, {"prompt": "ab"}], [AB, IDS, IDS, AB]),
        (np.array([5, 6]), [IDS]),
        ([np.int64(5), np.int32(6)], [IDS]),
        (np.array([[5, 6], [5, 6]]), [IDS, IDS]),
        ({"prompt_token_ids": torch.tensor([5, 6])}, [IDS]),
        ((text for text in ("ab", "ab")), [AB, AB]),
        ([], []),
    ],
)
def test_each_form_of_a_prompt_becomes_its_token_ids(prompts: object, expected: list[PromptTokens]) -> None:
    found = read(prompts)
    assert found == expected
    assert all(type(i) is int for prompt in found for i in prompt.ids)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (None, r"^prompts must be a text, .* got None \(NoneType\)"),
        (3, "prompts must be .* got 3"),
        (True, "prompts must be .* got True"),
        (b"ab", "prompts must be .* got b'ab'"),
        ({"ab"}, "prompts must be .* got {'ab'}"),
        (["ab", None], r"prompts\[1\]: must be .* got None"),
        ([1.5, 2.5], r"prompts\[0\]: must be .* got 1.5"),
        (["ab", [5, 1.5]], r"prompts\[1\]: token ids must be integers; got 1.5 \(float\) at \[1\]"),
        ([[True, False]], r"prompts\[0\]: token ids must be integers; got True"),
        ([True], r"prompts\[0\]: must be .* got True"),
        ([5, "ab"], r"prompts\[0\]: must be .* got 5"),
        (["ab", []], r"prompts\[1\]: the prompt is empty"),
        (["ab", ""], r"prompts\[1\]: the prompt is empty"),
        ([[[5, 6]]], r"prompts\[0\]: token ids must be integers; got \[5, 6\] \(list\) at \[0\]"),
        ([["ab", "ab"]], r"prompts\[0\]: token ids must be integers; got 'ab'"),
        ({}, r'prompts\[0\]: a dict needs "prompt" or "prompt_token_ids"; got \{\}'),
        (["ab", {"prompt": None}], r'prompts\[1\]: a dict needs "prompt"'),
        ({"text": "ab"}, r"prompts\[0\]: 'text' is not supported; known keys: prompt, prompt_token_ids, cache_salt"),
        ({"prompt": "a", "multi_modal_data": {"image": 1}}, r"prompts\[0\]: 'multi_modal_data' is not supported"),
        ({"prompt": [5, 6]}, r"prompts\[0\]: prompt must be a text, got \[5, 6\]"),
        ({"prompt_token_ids": "ab"}, r"prompts\[0\]: prompt_token_ids must be a list of token ids, got 'ab'"),
        ({"prompt_token_ids": [5, None]}, r"prompts\[0\]: prompt_token_ids: token ids must be integers; got None"),
        ({"prompt_token_ids": []}, r"prompts\[0\]: prompt_token_ids: the prompt is empty"),
        ({"prompt": "ab", "cache_salt": 3}, r"prompts\[0\]: cache_salt must be a text, got 3"),
        (["ab", "\ud83d"], r"prompts\[1\]: the text is not valid Unicode"),
        ([object()], r"prompts\[0\]: must be .* got <object"),
    ],
)
def test_wrong_prompt_is_named_by_its_index(prompts: object, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        read(prompts)
    assert caught.value.param in ("prompt", "prompts")


def test_refusal_of_the_tokenizer_names_the_prompt() -> None:
    def refuses(_: str) -> list[int]:
        raise RequestError("no", "prompt", "code")

    with pytest.raises(RequestError, match=r"^prompts\[3\]: no$") as caught:
        read_prompt("ab", 3, refuses)
    assert (caught.value.param, caught.value.code) == ("prompt", "code")


HI = {"role": "user", "content": "hi"}


def test_conversations_are_split_and_text_parts_joined() -> None:
    assert split_conversations([HI]) == [[HI]]
    assert split_conversations([[HI], (HI, HI)]) == [[HI], [HI, HI]]
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}, "c"], "name": "x"}
    assert split_conversations([parts]) == [[{"role": "user", "content": "a\nb\nc", "name": "x"}]]
    assert split_conversations([{"role": "assistant"}]) == [[{"role": "assistant", "content": ""}]]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, "messages: must be a list of messages; got None"),
        ([], "messages: must be a list of messages"),
        ("hi", "messages: must be a list of messages; got 'hi'"),
        (HI, "messages: must be a list of messages"),
        ([HI, "hi"], r"messages\[1\]: must be .*role"),
        ([{"content": "hi"}], r"messages\[0\]: must be .*role"),
        ([[HI], []], r"messages\[1\]: must be a list of messages"),
        ([[HI], [HI, 3]], r"messages\[1\]\[1\]: must be .*role"),
        ([{"role": "user"}], r"messages\[0\]: a message with role 'user' needs content"),
        ([{"role": "user", "content": 3}], r"messages\[0\]: content must be a text or a list of text parts, got 3"),
        (
            [{"role": "user", "content": ["a", {"type": "image_url", "image_url": {}}]}],
            r'messages\[0\].content\[1\]: must be \{"type": "text"',
        ),
    ],
)
def test_wrong_message_is_named_by_its_place(messages: object, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        split_conversations(messages)
    assert caught.value.param == "messages"


def test_calls_of_a_history_reach_the_template_as_objects() -> None:
    for arguments in ('{"a": 1}', {"a": 1}):
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
        ((message,),) = split_conversations([{"role": "assistant", "content": None, "tool_calls": [call]}])
        assert message["tool_calls"] == [{**call, "function": {"name": "f", "arguments": {"a": 1}}}]
        assert message["content"] == ""


@pytest.mark.parametrize(
    ("calls", "words"),
    [
        ("x", r"messages\[0\].tool_calls: must be a list of calls"),
        ([{}], r"messages\[0\].tool_calls\[0\]: must be"),
        ([{"function": {"name": "f", "arguments": "{"}}], r"tool_calls\[0\]: function.arguments is not JSON"),
        (
            [{"function": {"name": "f", "arguments": "[1]"}}],
            r"\[0\]: function.arguments must be a JSON object",
        ),
        (
            [{"function": {"name": 5, "arguments": ""}}],
            r"\[0\].function.name: Input should be a valid string",
        ),
    ],
)
def test_wrong_calls_of_a_history_are_named_by_their_place(calls: object, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        split_conversations([{"role": "assistant", "tool_calls": calls}])

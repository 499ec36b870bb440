"""Which added tokens are control tokens, and text in which they are plain text."""

import pytest
from tokenizers import AddedToken, processors

from medusa_dist.text.control_tokens import LiteralEncoder, control_tokens
from tests.support.tiny_tokenizers import byte_tokenizer, sentencepiece_tokenizer, unigram_tokenizer

IS_CONTROL = {  # of added tokens that are not flagged as special
    "<|im_start|>": True,
    "<turn|>": True,
    "<｜User｜>": True,
    "<think>": True,
    "</tool_call>": True,
    "[TOOL]": True,
    "### Reply": True,  # the template writes it
    "### Other": False,
    "reply": False,  # a word
    "    ": False,
    "\n\n": False,
    "<h1>": False,
    "</td>": False,
    "a<b": False,
}


def test_markup_is_control_and_words_white_space_and_html_are_not() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken(text, special=False) for text in IS_CONTROL])
    tokenizer.add_tokens([AddedToken("<h2>", special=True), AddedToken(" ", special=True)])
    tokenizer.chat_template = "### Reply\nreply\n\n{{ messages[0].content }}"
    names = set(control_tokens(tokenizer).values())
    assert {text: text in names for text in IS_CONTROL} == IS_CONTROL
    assert {"<eos>", "<s>", "<reserved>", "<h2>"} <= names and " " not in names


@pytest.mark.parametrize("make", [byte_tokenizer, sentencepiece_tokenizer, unigram_tokenizer], ids=lambda f: f.__name__)
def test_plain_text_never_has_a_control_token_and_other_text_is_as_always(make) -> None:
    tokenizer = make()
    encoder = LiteralEncoder(tokenizer)
    for text in ("a b", "", " the é", "ab " * 50):
        assert encoder.encode_plain(text) == encoder.encode(text)
    hostile = "a</s>b<s><unk> <eos>"
    assert encoder.control_in(encoder.encode(hostile))
    ids = encoder.encode_plain(hostile)
    assert not encoder.control_in(ids) and tokenizer.decode(ids).replace(" ", "") == hostile.replace(" ", "")


def test_added_ids_go_around_and_a_beginning_is_not_repeated() -> None:
    tokenizer = byte_tokenizer()
    assert LiteralEncoder(tokenizer).add_affixes([5]) == [5]
    pair = [("<s>", 257), ("<eos>", 256)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A <eos>", None, pair)
    encoder = LiteralEncoder(tokenizer)
    assert encoder.affixes == ((257,), (256,))
    assert encoder.add_affixes([5]) == [257, 5, 256] and encoder.add_affixes([257, 5]) == [257, 5, 256]


def test_no_text_can_name_a_control_token() -> None:
    encoder = LiteralEncoder(byte_tokenizer())
    encoder.prepare()
    other = LiteralEncoder(byte_tokenizer())
    assert other._name(257) != encoder._name(257) and 257 not in encoder.encode_plain(other._name(257) + "<s>")

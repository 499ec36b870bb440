"""Bad words become the token sequences that are banned."""

import pytest

from medusa_dist.errors import RequestError
from medusa_dist.sampling_params import SamplingParams
from medusa_dist.text.bad_words import with_bad_word_ids
from tests.support.tiny_tokenizers import byte_tokenizer, sentencepiece_tokenizer

BYTES, PIECES = byte_tokenizer(), sentencepiece_tokenizer()


def ids_of(text, tokenizer=BYTES):
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def banned(*words, tokenizer=BYTES):
    return with_bad_word_ids(SamplingParams(bad_words=words), tokenizer).bad_words


def test_a_word_is_banned_alone_and_after_a_blank() -> None:
    assert banned("the") == (ids_of("the"), ids_of(" the"))
    assert (len(ids_of("the")), len(ids_of(" the"))) == (2, 3), "of any length"
    assert banned(" the") == banned("the") == banned("the", " the"), "a blank in front says nothing"
    assert banned("ab", tokenizer=PIECES) == (ids_of("ab", PIECES), ids_of(" ab", PIECES))


def test_token_ids_stay_and_order_is_kept() -> None:
    assert banned((5, 6), "x", [7]) == ((5, 6), ids_of("x"), ids_of(" x"), (7,))
    params = SamplingParams(bad_words=[(5, 6)], top_k=3)
    assert with_bad_word_ids(params, None) is params, "no tokenizer is needed"


@pytest.mark.parametrize("words", [("  ",), tuple(map(str, range(1001)))], ids=["blanks", "many"])
def test_what_cannot_be_banned_is_named(words) -> None:
    with pytest.raises(RequestError, match="bad_words") as caught:
        banned(*words)
    assert caught.value.param == "bad_words"

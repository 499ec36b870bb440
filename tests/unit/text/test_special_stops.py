"""Stop strings with special tokens: against their definition, unit by unit."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medusa_dist.outputs import FinishReason, Output
from medusa_dist.sampling_params import SamplingParams
from medusa_dist.text.special_stops import SpecialStop, SpecialStops
from medusa_dist.text.text_stream import TextStream
from tests.support.tiny_tokenizers import byte_tokenizer, sentencepiece_tokenizer

TOKENIZER = byte_tokenizer(merges=("th", "he"))
SPECIAL = {"<eos>": 256, "<s>": 257, "<reserved>": 258}
TEXT_OF = {i: text for text, i in SPECIAL.items()}


def ids_of(*pieces: str) -> tuple[int, ...]:
    """Special tokens where a piece is one, else the piece as ordinary text."""
    found: list[int] = []
    for piece in pieces:
        found += [SPECIAL[piece]] if piece in SPECIAL else TOKENIZER(piece, split_special_tokens=True)["input_ids"]
    return tuple(found)


def out(ids, reason):
    return Output(request_id="r", token_ids=tuple(ids), heads=(0,) * len(ids), finish_reason=reason)


def stream(ids, stop, splits=(), finish=FinishReason.LENGTH, min_tokens=0, tokenizer=TOKENIZER):
    made = TextStream(tokenizer, SamplingParams(stop=tuple(stop), min_tokens=min_tokens, max_tokens=99))
    deltas, start = [], 0
    for end in [*sorted({s for s in splits if 0 < s < len(ids)}), len(ids)]:
        reason = finish if end == len(ids) else None
        deltas.append(made.push(out(ids[start:end], reason)))
        start = end
        if made.finish_reason is not None:
            break
    return made, deltas


def expected(pieces, stops):
    """(text, stop or None, counted pieces) by the definition. A piece is a character or a whole special token."""
    for end in range(1, len(pieces) + 1):
        hits = []
        for start in range(end):
            part = pieces[start:end]
            visible = "".join(p for p in part if p not in SPECIAL)
            if "".join(part) in stops:  # special tokens as they are spelled
                hits.append((len([p for p in pieces[:start] if p not in SPECIAL]), "".join(part)))
            if visible in stops and part[0] not in SPECIAL and part[-1] not in SPECIAL:  # hidden ones do not divide
                hits.append((len([p for p in pieces[:start] if p not in SPECIAL]), visible))
        if hits:
            start, stop = min(hits)
            return "".join(p for p in pieces if p not in SPECIAL)[:start], stop, end
    return "".join(p for p in pieces if p not in SPECIAL), None, len(pieces)


PIECES = st.lists(st.sampled_from([*"ab<>s", "e", *SPECIAL]), min_size=1, max_size=14)
STOPS = st.lists(
    st.lists(st.sampled_from(["a", "b", "<", "s>", *SPECIAL]), min_size=1, max_size=3).map("".join), max_size=3
)


@settings(max_examples=300, deadline=None)
@given(pieces=PIECES, stops=STOPS, splits=st.lists(st.integers(1, 13), max_size=4))
def test_stop_strings_end_text_and_tokens_as_defined_for_any_grouping(pieces, stops, splits):
    ids = ids_of(*pieces)
    made, deltas = stream(ids, stops, splits)
    text, stop, num = expected(pieces, stops)
    assert (made.text, made.stop_reason, len(made.token_ids)) == (text, stop, num)
    assert made.stopped == (stop is not None)
    assert made.finish_reason is (FinishReason.LENGTH if stop is None else FinishReason.STOP)
    assert "".join(delta.text for delta in deltas) == text, "what was shown is never taken back"
    assert deltas[-1].stop_reason == stop and not any(delta.stop_reason for delta in deltas[:-1])


CASES = {  # pieces, stop strings, and: the text, the stop, the number of tokens that count
    "exactly a special token": (["a", "<s>", "b"], ["<s>"], ("a", "<s>", 2)),
    "spelled out": (["a<s>b"], ["<s>"], ("a", "<s>", 4)),
    "text before it": (["ab", "<s>", "c"], ["b<s>"], ("a", "b<s>", 3)),
    "text after it": (["a", "<s>", "bc"], ["<s>b"], ("a", "<s>b", 3)),
    "text around it": (["xa", "<s>", "bc"], ["a<s>b"], ("x", "a<s>b", 4)),
    "two of them": (["a", "<eos>", "<s>", "b"], ["<eos><s>"], ("a", "<eos><s>", 3)),
    "the other one": (["a", "<eos>", "b"], ["<s>"], ("ab", None, 3)),
    "not a part of it": (["a", "<s>", "b"], [">", "<", "s>", "a<"], ("ab", None, 3)),
    "text that it divides": (["a", "<reserved>", "b"], ["ab"], ("", "ab", 3)),
    "begun in vain": (["a", "<eos>", "b"], ["a<s>", "a<eos>c"], ("ab", None, 3)),
    "the longer of two": (["a", "<s>"], ["<s>", "a<s>"], ("", "a<s>", 2)),
    "the first of two": (["ab", "<s>"], ["<s>", "ab"], ("", "ab", 2)),
    "after half a character": ([], ["<s>"], ("a\ufffd", "<s>", 3)),
}


@pytest.mark.parametrize(("pieces", "stop", "result"), CASES.values(), ids=CASES)
def test_stop_string_with_a_special_token_ends_the_text_before_it(pieces, stop, result):
    ids = ids_of(*pieces) or (*ids_of("a"), ids_of("é")[0], SPECIAL["<s>"], *ids_of("x"))
    for splits in ((), range(1, 9)):
        made, _ = stream(ids, stop, splits)
        assert (made.text, made.stop_reason, len(made.token_ids)) == result


def test_what_could_begin_a_stop_string_is_held_and_shown_when_it_cannot():
    made, deltas = stream(ids_of("xa", "<s>", "a", "<eos>", "b"), ["a<s>b"], range(1, 9))
    assert [delta.text for delta in deltas] == ["x", "", "", "a", "", "ab"] and made.text == "xaab"


def test_the_engines_own_end_token_completes_a_stop_string():
    made, _ = stream(ids_of("ab", "<eos>"), ["b<eos>"], finish=FinishReason.STOP)
    assert (made.text, made.stop_reason, made.finish_reason) == ("a", "b<eos>", FinishReason.STOP)
    made, _ = stream(ids_of("ab", "<eos>"), ["c<eos>"], finish=FinishReason.STOP)
    assert (made.text, made.stop_reason, made.finish_reason) == ("ab", None, FinishReason.STOP)


def test_a_stop_token_id_is_the_reason_and_an_end_token_is_none():
    first, second = ids_of("ab")
    for end, reason in ((second, second), (SPECIAL["<eos>"], None)):
        made = TextStream(TOKENIZER, SamplingParams(stop_token_ids=(second,)))
        assert made.push(out((first, end), FinishReason.STOP)).stop_reason == made.stop_reason == reason


def test_special_token_within_min_tokens_does_not_stop():
    for min_tokens, result in ((0, ("", 1)), (1, ("a", 3)), (3, ("aa", 4))):
        made, _ = stream(ids_of("<s>", "a", "<s>", "a"), ["<s>"], min_tokens=min_tokens)
        assert (made.text, len(made.token_ids)) == result


def test_stop_string_matches_the_space_of_a_sentencepiece_word():
    tokenizer = sentencepiece_tokenizer()
    word = tokenizer("a b", add_special_tokens=False)["input_ids"]
    made, _ = stream((*word, tokenizer.eos_token_id, *word), ["</s> a"], range(1, 9), tokenizer=tokenizer)
    assert (made.text, made.stop_reason) == ("a b", "</s> a")


def test_without_special_tokens_in_stop_strings_nothing_is_searched():
    stops = SpecialStops(TOKENIZER, ("a", ">"))
    assert stops.push("a", None, "") is None and stops.push("", 257, "") is None and stops.num_open() == 0
    one = SpecialStops(TOKENIZER, ("a<s>",))
    assert one.push("ba", None, "") is None and one.num_open() == 1
    assert one.push("", 257, "") == SpecialStop("a<s>", 1, 0)

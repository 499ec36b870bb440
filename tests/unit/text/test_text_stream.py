import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from medusa_dist.outputs import FinishReason, Output, SpeculationStats, StepRecord, TokenLogprobs, TreeReason
from medusa_dist.sampling_params import SamplingParams
from medusa_dist.text.detokenizer import Detokenizer
from medusa_dist.text.text_stream import TextStream
from medusa_dist.text.token_text import token_text
from tests.support.tiny_tokenizers import byte_tokenizer, sentencepiece_tokenizer

BYTES, PIECES = byte_tokenizer(), sentencepiece_tokenizer()
EOS = BYTES.eos_token_id
TEXT = st.text(alphabet="abc the.\né你😀\ufffd", max_size=24)


def ids_of(text, tokenizer=BYTES):
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def whole(tokenizer, ids):
    return tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def detokenize(tokenizer, ids, context=(), **options):
    detokenizer = Detokenizer(tokenizer, context, **options)
    parts = [detokenizer.push(i) for i in ids]
    return [*parts, detokenizer.flush()]


@pytest.mark.parametrize("tokenizer", [BYTES, PIECES], ids=["byte-level", "sentencepiece"])
@given(text=TEXT)
def test_detokenized_parts_join_to_the_encoded_text(tokenizer, text):
    if tokenizer is PIECES:
        text = text.replace("\ufffd", "")  # a literal one cannot be told from an invalid byte there
    parts = detokenize(tokenizer, ids_of(text, tokenizer))
    assert "".join(parts) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in part for part in parts)


@given(ids=st.lists(st.integers(0, len(BYTES) - 1), max_size=60))
def test_detokenizer_equals_decode_for_any_ids(ids):
    assert "".join(detokenize(BYTES, ids)) == whole(BYTES, ids)


@given(ids=st.lists(st.sampled_from([*range(97, 102), 195, 169, 256, 257, 258, 259, 262]), max_size=40))
def test_special_tokens_that_are_shown_give_what_decode_gives(ids):
    for joined in (True, False):  # this decoder writes no blanks
        parts = detokenize(BYTES, ids, skip_special_tokens=False, spaces_between_special_tokens=joined)
        assert "".join(parts) == BYTES.decode(ids, clean_up_tokenization_spaces=False)


def test_blanks_between_special_tokens_can_be_left_out():
    core = Tokenizer(models.WordLevel(vocab={"<a>": 0, "<b>": 1, "x": 2, "?": 3}, unk_token="?"))
    core.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    core.add_special_tokens(["<a>", "<b>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    ids = [2, 0, 1, 1, 2, 2, 0, 1]
    shown = detokenize(tokenizer, ids, skip_special_tokens=False)
    assert "".join(shown) == tokenizer.decode(ids) == "x <a> <b> <b> x x <a> <b>"
    joined = detokenize(tokenizer, ids, skip_special_tokens=False, spaces_between_special_tokens=False)
    assert "".join(joined) == "x <a><b><b> x x <a><b>"
    skipped = detokenize(tokenizer, ids, spaces_between_special_tokens=False)
    assert "".join(skipped).split() == ["x", "x", "x"]


@pytest.mark.parametrize("size", [1, 2, 99])
def test_the_text_that_ended_the_output_can_be_shown(size):
    shown = {"include_stop_str_in_output": True}
    splits = range(size, 99, size)
    stream, _ = stream_all(
        ids_of("ab the cat"), splits, SamplingParams(stop=("the", "e c"), **shown), FinishReason.LENGTH
    )
    assert (stream.text, stream.finish_reason) == ("ab the", FinishReason.STOP)
    stream, _ = stream_all((*ids_of("ab"), 99), splits, SamplingParams(**shown), FinishReason.STOP)
    assert stream.text == "ab" + BYTES.decode([99]), "a stop token with a text"
    params = SamplingParams(stop_token_ids=(99,), **shown)
    assert stream_all((*ids_of("ab"), 99), splits, params, FinishReason.STOP)[0].stop_reason == 99
    for skip, text in ((True, "ab"), (False, "ab<eos>")):
        params = SamplingParams(skip_special_tokens=skip, **shown)
        assert stream_all((*ids_of("ab"), EOS), splits, params, FinishReason.STOP)[0].text == text
    params = SamplingParams(skip_special_tokens=False)
    assert stream_all((*ids_of("ab"), 258, EOS), splits, params, FinishReason.STOP)[0].text == "ab<reserved>"


def test_an_unfinished_character_waits_and_is_flushed_at_the_end():
    ids = ids_of("a😀")
    assert detokenize(BYTES, ids) == ["a", "", "", "", "😀", ""]
    assert detokenize(BYTES, ids[:3]) == ["a", "", "", "\ufffd"]


def test_invalid_bytes_are_shown_at_once_and_the_window_stays_short():
    garbage = ids_of("你")[1]  # a continuation byte without its lead
    detokenizer = Detokenizer(BYTES)
    shown = "".join(detokenizer.push(garbage) for _ in range(300))
    assert len(shown) > 280 and len(detokenizer._window) <= 12
    assert shown + "".join(detokenizer.push(i) for i in ids_of("你x")) == "\ufffd" * 300 + "你x"


def test_special_tokens_inside_a_text_leave_its_spaces_unchanged():
    ids = [*ids_of("a b", PIECES), *[PIECES.eos_token_id] * 30, *ids_of("a b", PIECES)]
    assert "".join(detokenize(PIECES, ids)) == whole(PIECES, ids) == "a b a b"
    assert "".join(detokenize(BYTES, [*ids_of("x"), 258, *ids_of(" y")])) == "x y"


def test_context_decides_whether_the_first_word_has_a_space():
    prompt, answer = ids_of("a b", PIECES), ids_of("a b", PIECES)
    assert "".join(detokenize(PIECES, answer)) == "a b"
    assert "".join(detokenize(PIECES, answer, prompt)) == " a b"
    smile = ids_of("😀")
    assert "".join(detokenize(BYTES, smile[2:], smile[:2])) == "😀"  # the prompt ended inside a character


def stream_all(ids, splits, params, finish, tokenizer=BYTES):
    """Push ids in groups that end at `splits`; returns the stream and its deltas."""
    stream, deltas, start = TextStream(tokenizer, params), [], 0
    ends = [*sorted({s for s in splits if 0 < s < len(ids)}), len(ids)]
    for end in ends:
        part = ids[start:end]
        output = Output(
            request_id="r",
            token_ids=tuple(part),
            heads=tuple(i % 3 for i in range(start, end)),
            logprobs=tuple(TokenLogprobs(t, -float(start + i), (), ()) for i, t in enumerate(part)),
            finish_reason=finish if end == len(ids) else None,
        )
        deltas.append(stream.push(output))
        if stream.finish_reason is not None:
            break
        start = end
    return stream, deltas


def facts(stream):
    return (
        stream.text,
        stream.token_ids,
        stream.heads,
        stream.logprobs,
        stream.text_offsets,
        stream.finish_reason,
        stream.stopped,
    )


@settings(max_examples=300)
@given(
    text=TEXT,
    splits=st.lists(st.integers(1, 40), max_size=8),
    stop=st.lists(st.text(alphabet="abc the.é你", min_size=1, max_size=4), max_size=3),
    min_tokens=st.integers(0, 6),
    finish=st.sampled_from([FinishReason.STOP, FinishReason.LENGTH]),
)
def test_stream_result_does_not_depend_on_how_tokens_are_grouped(text, splits, stop, min_tokens, finish):
    ids = (*ids_of(text), EOS) if finish is FinishReason.STOP else ids_of(text) or ids_of("a")
    params = SamplingParams(stop=tuple(stop), min_tokens=min_tokens, max_tokens=99)
    one_by_one, _ = stream_all(ids, range(1, 99), params, finish)
    grouped, deltas = stream_all(ids, splits, params, finish)
    assert facts(grouped) == facts(one_by_one)
    assert "".join(d.text for d in deltas) == grouped.text
    assert [t for d in deltas for t in d.token_ids] == grouped.token_ids
    assert [o for d in deltas for o in d.text_offsets] == grouped.text_offsets
    assert [e for d in deltas for e in d.logprobs] == grouped.logprobs
    assert deltas[-1].finish_reason is grouped.finish_reason and grouped.finish_reason is not None


@settings(max_examples=200)
@given(text=TEXT, stop=st.lists(st.text(alphabet="abc the.é你", min_size=1, max_size=4), min_size=1, max_size=3))
def test_stop_strings_cut_as_if_text_came_by_character(text, stop):
    expected, hit = text, False
    for end in range(1, len(text) + 1):
        done = [s for s in stop if text[:end].endswith(s)]
        if done:
            expected, hit = text[: end - max(map(len, done))], True
            break
    stream, deltas = stream_all((*ids_of(text), EOS), [3, 7], SamplingParams(stop=tuple(stop)), FinishReason.STOP)
    assert (stream.text, stream.stopped) == (expected, hit)
    assert expected.startswith("".join(d.text for d in deltas[:-1]))  # nothing shown had to be taken back


def test_tokens_after_a_stop_string_are_not_counted():
    stats = SpeculationStats(num_steps=1, num_drafted=4, accepted_per_head=(1, 1, 1))
    output = Output(request_id="r", token_ids=ids_of("xy#z"), heads=(1, 2, 3, 0), stats=stats)
    delta = TextStream(BYTES, SamplingParams(stop=("y",))).push(output)
    assert (delta.text, delta.token_ids, delta.heads) == ("x", ids_of("xy"), (1, 2))
    assert delta.stopped and delta.finish_reason is FinishReason.STOP
    assert delta.stats == SpeculationStats(num_steps=1, num_drafted=4, accepted_per_head=(1, 1, 0))


def test_text_held_for_a_stop_string_is_shown_when_it_does_not_match():
    stream = TextStream(BYTES, SamplingParams(stop=("###",)))
    assert stream.push(Output(request_id="r", token_ids=ids_of("a##"))).text == "a"
    assert stream.push(Output(request_id="r", token_ids=ids_of("b##"))).text == "##b"
    last = stream.push(Output(request_id="r", token_ids=ids_of("c#"), finish_reason=FinishReason.LENGTH))
    assert (last.text, last.finish_reason, last.stopped) == ("##c#", FinishReason.LENGTH, False)
    assert stream.text_offsets == list(range(8))
    assert stream.push(Output(request_id="r", token_ids=ids_of("z"))).token_ids == ()


def test_a_stop_string_wins_over_length_in_the_same_step():
    output = Output(request_id="r", token_ids=ids_of("a.b"), finish_reason=FinishReason.LENGTH)
    delta = TextStream(BYTES, SamplingParams(stop=(".",))).push(output)
    assert (delta.text, delta.finish_reason, len(delta.token_ids)) == ("a", FinishReason.STOP, 2)


def test_the_token_that_ended_the_request_is_counted_and_not_shown():
    stop_id = ids_of("!")[0]
    output = Output(request_id="r", token_ids=(*ids_of("ok"), stop_id), finish_reason=FinishReason.STOP)
    delta = TextStream(BYTES, SamplingParams(stop_token_ids=(stop_id,))).push(output)
    assert (delta.text, len(delta.token_ids), delta.stopped) == ("ok", 3, False)


def test_a_stop_string_within_min_tokens_is_text():
    params = SamplingParams(stop=("ab",), min_tokens=3)
    stream, _ = stream_all(ids_of("abcabc"), [1], params, FinishReason.LENGTH)
    assert stream.text == "abc" and len(stream.token_ids) == 5


@pytest.mark.parametrize(
    ("tokenizer", "piece", "text", "raw"),
    [
        (BYTES, "Ã", "\ufffd", b"\xc3"),
        (BYTES, "Ġt", " t", b" t"),
        (BYTES, "<eos>", "<eos>", b"<eos>"),
        (PIECES, "▁a", " a", b" a"),
        (PIECES, "ab", "ab", b"ab"),
        (PIECES, "<0xE4>", "\ufffd", b"\xe4"),
        (PIECES, "▁", " ", b" "),
    ],
)
def test_token_text_keeps_spaces_and_bytes(tokenizer, piece, text, raw):
    assert token_text(tokenizer, tokenizer.convert_tokens_to_ids(piece)) == (text, raw)


def test_an_id_the_tokenizer_does_not_know_has_no_text():
    assert token_text(BYTES, 10_000) == ("", b"")
    assert "".join(detokenize(BYTES, [*ids_of("a"), 10_000, *ids_of("b")])) == "ab"


def test_earliest_complete_stop_string_wins_even_inside_one_token():
    ids = ids_of("x th")
    assert len(ids) == 3  # "th" is one token
    stream, _ = stream_all(ids, [1, 2], SamplingParams(stop=("t", " th")), FinishReason.LENGTH)
    assert (stream.text, len(stream.token_ids)) == ("x ", 3)


def test_stream_passes_on_num_cached_tokens() -> None:
    stream = TextStream(byte_tokenizer(), SamplingParams())
    stream.push(Output(request_id="r", token_ids=(65,), heads=(0,), num_cached_tokens=32))
    assert stream.num_cached_tokens == 32


def test_last_token_is_text_if_it_completes_the_grammar() -> None:
    for ends_with_text, text in ((False, "a"), (True, "ab")):
        stream = TextStream(BYTES, SamplingParams())
        output = Output(
            request_id="x",
            token_ids=ids_of("ab"),
            heads=(0, 0),
            finish_reason=FinishReason.STOP,
            is_complete=ends_with_text,
        )
        assert stream.push(output).text == text == stream.text and stream.finish_reason is FinishReason.STOP


def a_step(num_tokens):
    reason = TreeReason.ALL
    return StepRecord((), (), (), (), (), num_tokens, 0, 0, 1, None, reason)


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, len(BYTES) - 1), max_size=40), size=st.integers(1, 5))
def test_texts_of_tokens_join_to_the_whole_text(ids, size):
    stream = TextStream(BYTES, SamplingParams(max_tokens=100))
    deltas = []
    for start in range(0, max(1, len(ids)), size):
        last = FinishReason.LENGTH if start + size >= len(ids) else None
        deltas.append(
            stream.push(Output(request_id="x", token_ids=tuple(ids[start : start + size]), finish_reason=last))
        )
    assert "".join(stream.token_texts) == stream.text == whole(BYTES, ids)
    assert len(stream.token_texts) == len(ids)
    assert [len(delta.token_texts) for delta in deltas] == [len(delta.token_ids) for delta in deltas]


def test_steps_after_a_stop_string_are_dropped():
    stream = TextStream(BYTES, SamplingParams(stop=("x",)))
    steps = (a_step(2), a_step(2), a_step(1))
    delta = stream.push(Output(request_id="x", token_ids=ids_of("abxde"), steps=steps))
    assert delta.token_ids == ids_of("abx") and delta.steps == steps[:2] and stream.steps == [*steps[:2]]
    assert stream.push(Output(request_id="x", token_ids=ids_of("f"), steps=(a_step(1),))).steps == ()

"""Matchers: what may follow each text, over several kinds of tokenizers, against slow readings of the same grammar."""

import json
import random
import re
import threading
from collections.abc import Callable

import jsonschema
import numpy as np
import pytest

from medusa_dist.engine.state.matcher import GrammarCompiler, Matcher
from medusa_dist.errors import RequestError
from medusa_dist.grammar import Grammar, GrammarKind
from tests.support.tiny_tokenizers import byte_tokenizer, json_tokenizer, sentencepiece_tokenizer

# Tokenizer, its end, and the size of the model's vocabulary: as large as the tokenizer's, or larger. (Smaller: below.)
TOKENIZERS: dict[str, tuple[Callable, int, int]] = {
    "bytes": (byte_tokenizer, 256, 263),
    "bytes, larger model": (byte_tokenizer, 256, 277),
    "sentencepiece": (sentencepiece_tokenizer, 1, 267),
    "sentencepiece, larger model": (sentencepiece_tokenizer, 1, 271),
}
SCHEMA = {
    "type": "object",
    "properties": {
        "é": {"type": "array", "items": {"enum": ["ü", 1, None, True]}, "minItems": 1, "maxItems": 2},
        "n": {"type": "number", "minimum": -2, "maximum": 31},
        "in": {"type": "object", "properties": {"s": {"type": "string", "maxLength": 3}}, "required": ["s"]},
    },
    "required": ["é", "n", "in"],
    "additionalProperties": False,
}
SCHEMA["properties"]["in"]["additionalProperties"] = False
MAX = 120  # tokens of a walk
CHOICES = ["a", "ab", "abc b", "é", '"x"\n', "😀"]


def fits_schema(text: str) -> bool:
    jsonschema.validate(json.loads(text), SCHEMA)
    return True


GRAMMARS: dict[str, tuple[Grammar, Callable[[str], object]]] = {
    "schema": (Grammar.json_schema(SCHEMA), fits_schema),
    "object": (Grammar.json(), lambda text: isinstance(json.loads(text), dict)),
    "regex": (Grammar.regex(r"^(ab|é){1,3} \d+(c|\$)$"), re.compile(r"(ab|é){1,3} [0-9]+(c|\$)").fullmatch),
    "choice": (Grammar.choice(CHOICES), CHOICES.__contains__),
    "gbnf": (Grammar.ebnf('root ::= "(" root ")" | [a-b]+'), re.compile(r"\(*[ab]+\)*").fullmatch),
    "lark": (Grammar.ebnf('start: "a" start "b" | "é"'), re.compile("a*éb*").fullmatch),
}


def grammars_of(name: str) -> GrammarCompiler:
    load, end, vocab_size = TOKENIZERS[name]
    return GrammarCompiler(load, vocab_size, (end,))


def allowed(matcher: Matcher, path: tuple[int, ...] = ()) -> list[int]:
    return [int(i) for i in np.flatnonzero(matcher.state(path).allowed)]


def text_of(name: str, tokens: list[int]) -> str:
    """The bytes of the tokens, put together by hand: a decoder would strip a first space."""
    load, end, _ = TOKENIZERS[name]
    pieces = load().convert_ids_to_tokens([t for t in tokens if t != end])
    if "bytes" in name:
        return load().decode(tokens, skip_special_tokens=True)
    raw = b"".join(bytes([int(p[3:5], 16)]) if p.startswith("<0x") else p.replace("▁", " ").encode() for p in pieces)
    return raw.decode()


@pytest.mark.parametrize("kind", GRAMMARS)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_text_that_the_matcher_allows_fits_the_grammar(name: str, kind: str) -> None:
    """Random walks, with glances at drafts in between; a fresh matcher after the same text says the same."""
    grammar, is_right = GRAMMARS[kind]
    grammars, end = grammars_of(name), TOKENIZERS[name][1]
    rng = random.Random(kind + name)
    closers = [end, *(token for closer in '"]},' for token in byte_and_letter(name, closer))]
    num_complete = 0
    for _ in range(3 if kind == "object" else 12):
        matcher, tokens = grammars.start(grammar), []
        while not matcher.state().is_complete and len(tokens) < MAX and tokens[-1:] != [end]:
            glance(matcher, rng, end)
            if len(tokens) % 5 == 1:
                assert allowed(grammars.start(grammar, tuple(tokens))) == allowed(matcher)
            assert not matcher.state().error
            closing = [t for t in closers if matcher.state().allowed[t]]  # or numbers and strings go on forever
            tokens.append(rng.choice(closing if closing and rng.random() < 0.5 else allowed(matcher)))
            if tokens[-1] != end:
                assert matcher.fits((tokens[-1],))
                matcher.keep((tokens[-1],))
        if len(tokens) < MAX:
            assert is_right(text_of(name, tokens)), text_of(name, tokens)
            num_complete += 1
    assert num_complete > 1


def glance(matcher: Matcher, rng: random.Random, end: int) -> None:
    """Look along a few drafted paths, right and wrong ones, and come back."""
    for _ in range(3):
        path: tuple[int, ...] = ()
        for _ in range(rng.randrange(4)):
            choices = [t for t in allowed(matcher, path) if t != end]
            if not choices:
                break
            path = (*path, rng.choice(choices))
        assert matcher.fits(path)
        wrong = next((t for t in range(200) if t not in allowed(matcher, path)), None)
        assert wrong is None or not matcher.fits((*path, wrong))
        assert all(0 <= t < matcher.state().allowed.size for t in matcher.forced())


@pytest.mark.parametrize("name", TOKENIZERS)
def test_end_token_is_allowed_only_where_the_grammar_accepts(name: str) -> None:
    grammar, end = Grammar.choice(["ab", "a", "abc"]), TOKENIZERS[name][1]
    a, b, c = (text_id(name, letter) for letter in "abc")
    matcher = grammars_of(name).start(grammar)
    assert end not in allowed(matcher) and a in allowed(matcher) and b not in allowed(matcher)
    assert {end, b} <= set(allowed(matcher, (a,))) and not matcher.state((a,)).is_complete
    assert allowed(matcher, (a, b)) == sorted({end, *byte_and_letter(name, "c")})
    assert matcher.state((a, b, c)).is_complete and not matcher.state((a, b, c)).error
    assert not matcher.fits((a, end)) and not matcher.fits((a, b, c, end))


def text_id(name: str, letter: str) -> int:
    return byte_and_letter(name, letter)[-1]


def byte_and_letter(name: str, letter: str) -> list[int]:
    """All tokens that spell the letter: a byte, and in the sentencepiece vocabulary a piece, too."""
    vocab = TOKENIZERS[name][0]().get_vocab()
    return [vocab[piece] for piece in (f"<0x{ord(letter):02X}>", letter) if piece in vocab]


def test_ids_beyond_tokenizer_or_model_are_never_allowed() -> None:
    for name, (load, _, vocab_size) in TOKENIZERS.items():
        matcher = grammars_of(name).start(Grammar.regex("(?s).{3,9}"))
        assert matcher.state().allowed.shape == (vocab_size,)
        assert not matcher.state().allowed[len(load()) :].any()
        special = load().all_special_ids
        assert not matcher.state().allowed[[i for i in special if i < vocab_size]].any()
        assert not matcher.fits((vocab_size - 1,)) or vocab_size == len(load())
        assert not matcher.state((text_id(name, "a"),)).error  # having been asked changes nothing


def test_with_ignore_eos_a_text_goes_on_as_long_as_it_can() -> None:
    grammars = grammars_of("bytes")
    a = text_id("bytes", "a")
    open_end = grammars.start(Grammar.regex("a*"), ignore_eos=True)
    assert allowed(open_end) == [a] and allowed(open_end, (a, a)) == [a]
    assert grammars.start(Grammar.regex("a{2}"), ignore_eos=True).state((a, a)).is_complete


def test_without_an_end_token_the_only_longer_text_is_completed() -> None:
    grammars = GrammarCompiler(byte_tokenizer, 263, ())
    a, b = text_id("bytes", "a"), text_id("bytes", "b")
    matcher = grammars.start(Grammar.choice(["a", "ab"]))
    assert allowed(matcher) == [a] and allowed(matcher, (a,)) == [b] and matcher.state((a, b)).is_complete


def test_a_text_of_allowed_tokens_ends_where_it_can_and_is_an_error_where_it_cannot() -> None:
    grammars = grammars_of("bytes")
    a, b = text_id("bytes", "a"), text_id("bytes", "b")
    matcher = grammars.start(Grammar.regex("[ab]+"), token_ids=(a, 256, 10**6))
    assert allowed(matcher) == [a]
    assert allowed(matcher, (a,)) == sorted([a, 256]), "the end is the grammar's"
    matcher = grammars.start(Grammar.regex("ab?"), token_ids=(a,))
    assert matcher.state((a,)).allowed.nonzero()[0].tolist() == [] and matcher.state((a,)).is_complete
    matcher = grammars.start(Grammar.regex("ab"), token_ids=(a,))
    assert matcher.state((a,)).error == "none of allowed_token_ids can come next"
    with pytest.raises(RequestError, match="none of allowed_token_ids"):
        grammars.start(Grammar.regex("ab"), token_ids=(b,))


def test_every_end_token_is_allowed_where_the_grammar_accepts() -> None:
    matcher = GrammarCompiler(byte_tokenizer, 263, (256, 258)).start(Grammar.regex("a*"))
    assert set(allowed(matcher)) == {text_id("bytes", "a"), 256, 258}


def test_forced_tokens_are_the_tokenizers_own_spelling() -> None:
    matcher = grammars_of("bytes").start(Grammar.regex("the[xy]"))
    t, h, x = (text_id("bytes", letter) for letter in "thx")
    th, he = (byte_tokenizer().get_vocab()[piece] for piece in ("th", "he"))
    assert allowed(matcher) == [th] and matcher.forced() == [th, text_id("bytes", "e")]
    assert matcher.fits((t, he)) and set(allowed(matcher, (t,))) <= {h, he}  # nobody writes it so, but it would do
    matcher.keep((t, he))
    assert matcher.forced() == []
    matcher.keep((x,))
    assert matcher.forced() == [] and matcher.state().is_complete


def test_unspellable_text_is_an_error_state_or_a_request_error() -> None:
    """The model has no row for "e" (68 in this vocabulary), and knows "1" and "2"."""
    grammars = GrammarCompiler(byte_tokenizer, 31, (2,))
    one = text_id("bytes", "1")
    matcher = grammars.start(Grammar.choice(["1e", "2"]))
    assert allowed(matcher) == [one, text_id("bytes", "2")]
    state = matcher.state((one,))
    assert (
        "no token of the model" in state.error and state.is_over and not state.is_complete and not state.allowed.any()
    )
    assert allowed(matcher) == [one, text_id("bytes", "2")]
    with pytest.raises(RequestError, match="no token of the model"):
        grammars.start(Grammar.choice(["e"]))


WRONG: dict[str, tuple[Callable[[], Grammar], str]] = {
    "unknown type": (lambda: Grammar.json_schema({"type": "objekt"}), "objekt"),
    "no such ref": (lambda: Grammar.json_schema({"$ref": "#/x"}), "there is nothing at '#/x'"),
    "nothing fits": (lambda: Grammar.json_schema({"type": "string", "minLength": 3, "maxLength": 2}), "minLength"),
    "keyword we cannot obey": (lambda: Grammar.json_schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
    "look-ahead in a schema": (lambda: Grammar.json_schema({"type": "string", "pattern": "(?=a)"}), "look-ahead"),
    "deep schema": (lambda: Grammar.json_schema('{"a":' * 400 + "1" + "}" * 400), "recursion limit"),
    "schema is a list": (lambda: Grammar.json_schema("[1]"), "an object"),
    "schema is false": (lambda: Grammar.json_schema(False), "an object"),
    "schema is no JSON": (lambda: Grammar.json_schema("{"), "not valid JSON"),
    "not a number": (lambda: Grammar.json_schema({"const": float("nan")}), "cannot be written as JSON"),
    "half a character": (lambda: Grammar.json_schema({"const": "\ud800"}), "hex escape"),
    "open group": (lambda: Grammar.regex("(a"), "unclosed group"),
    "look-ahead": (lambda: Grammar.regex("(?=a)b"), "look-ahead"),
    "lone backslash": (lambda: Grammar.regex("ab\\"), "lone backslash"),
    "huge regex": (lambda: Grammar.regex("((a{1,999}b{1,999}){1,999}c{1,999}){1,999}"), ""),
    "empty text only": (lambda: Grammar.regex("$"), "only the empty text"),
    "no rule": (lambda: Grammar.ebnf("start: x"), "unknown name"),
    "broken gbnf": (lambda: Grammar.ebnf("root ::= ("), "GBNF"),
    "endless rule": (lambda: Grammar.ebnf("start: start"), "no token of the model"),
    "half a character in a choice": (lambda: Grammar.choice(["\ud800"]), "surrogates"),
    "a choice of letters": (lambda: Grammar.choice("ab"), "list of non-empty texts"),
}


@pytest.mark.parametrize("case", WRONG)
def test_invalid_grammar_is_refused_with_the_reason(case: str) -> None:
    make, text = WRONG[case]
    grammars = grammars_of("bytes")
    if case == "huge regex":  # allowed to begin, since it is compiled as the text goes on; its cost is bounded
        assert allowed(grammars.start(make())) == [text_id("bytes", "a")]
        return
    with pytest.raises(RequestError, match=re.escape(text)) as caught:
        grammars.start(make())
    assert caught.value.param == "grammar" and caught.value.message.startswith("grammar: ")
    assert len(caught.value.message) < 400


def test_grammar_too_costly_to_follow_ends_with_an_error() -> None:
    matcher = grammars_of("bytes").start(Grammar.regex("(a{1,1000}){1,1000}"))
    a = text_id("bytes", "a")
    for _ in range(3000):
        if matcher.state().is_over:
            break
        matcher.keep((a,))
    assert "the text cannot continue" in matcher.state().error
    assert matcher.forced() == [] and not matcher.fits((a,))
    matcher.keep((a,))  # and stays so
    assert matcher.state((a,)).error


def test_grammars_are_compiled_once_and_the_tokenizer_is_read_lazily() -> None:
    loads = []

    def load() -> object:
        loads.append(threading.current_thread().name)
        return byte_tokenizer()

    grammars = GrammarCompiler(load, 263, (256,))
    assert not loads
    other = threading.Thread(target=grammars.prepare, args=(Grammar.regex("ab*"),), name="other")
    other.start()
    other.join()
    first, second = (grammars.start(Grammar.regex("ab*", param)) for param in ("x", "y"))
    assert loads == ["other"] and len(grammars._compiled) == 1
    first.keep((text_id("bytes", "a"),))
    assert allowed(first) != allowed(second)  # each has its own place
    grammars.prepare(Grammar.regex("(a"))  # no error here
    with pytest.raises(RequestError, match=r"y: this regex cannot be used: .*unclosed") as caught:
        grammars.start(Grammar.regex("(a", "y"))
    assert caught.value.param == "y"
    for i in range(100):
        grammars.start(Grammar.regex(f"a{i}"))
    assert len(grammars._compiled) == 32


def test_unreadable_tokenizer_is_a_request_error_of_the_grammar() -> None:
    def load() -> object:
        raise OSError("there is no tokenizer.json\nand more")

    with pytest.raises(RequestError, match=r"grammar: this json_object cannot be used: .*no tokenizer.json$"):
        GrammarCompiler(load, 31, ()).start(Grammar.json())
    with pytest.raises(RequestError, match="Only fast tokenizers"):
        GrammarCompiler(list, 31, ()).start(Grammar.json())


def test_whitespace_between_json_tokens_is_bounded() -> None:
    matcher = grammars_of("bytes").start(Grammar.json_schema({"type": "array", "items": {"type": "integer"}}))
    for text in ("[1,2]", "[1, 2]", "[\n    1,\n    2\n]", "[1 ,2 ]"):
        ids = tuple(byte_tokenizer()(text)["input_ids"])
        assert matcher.fits(ids) and matcher.state(ids).is_complete, text
    for text in ("[1,  2]", "[\n\n1]", " [1]", "[1] "):
        assert not matcher.fits(tuple(byte_tokenizer()(text)["input_ids"])), text


def test_json_schema_true_allows_every_json_value() -> None:
    matcher = grammars_of("bytes").start(Grammar.json_schema(True))
    for text in ("1", '"é"', "[null, {}]"):
        assert matcher.fits(tuple(byte_tokenizer()(text)["input_ids"]))


def test_grammars_compare_by_value_and_have_a_maximum_length() -> None:
    one, same = Grammar.json_schema({"a": 1}, "x"), Grammar.json_schema('{"a": 1}', "y")
    assert one == same and hash(one) == hash(same) and one.kind is GrammarKind.JSON_SCHEMA
    assert one != Grammar.json_schema({"b": 1})
    with pytest.raises(RequestError, match="the maximum is 65536"):
        Grammar.ebnf("a" * 70_000)


def test_json_tokenizer_of_the_tests_spells_json() -> None:
    tokenizer = json_tokenizer()
    matcher = GrammarCompiler(json_tokenizer, 31, (2,)).start(
        Grammar.json_schema({"properties": {"ab": {"type": "boolean"}}})
    )
    assert len(tokenizer) == 29
    assert matcher.fits(tuple(tokenizer('{"ab":true, "a":[1.0, "ab"]}')["input_ids"]))

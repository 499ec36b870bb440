"""Fields as vLLM names, orders and writes them; which of them go with a beam search."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest

from medusa_dist.errors import RequestError
from medusa_dist.grammar import Grammar, StructuredOutputsParams
from medusa_dist.sampling_params import SamplingParams

BAD = {
    "width 0": ({"beam_width": 0}, "beam_width"),
    "width 65": ({"beam_width": 65}, "beam_width"),
    "width true": ({"beam_width": True}, "beam_width"),
    "no tokens": ({"beam_width": 2, "max_tokens": 0}, "max_tokens"),
    "penalty too low": ({"beam_width": 2, "length_penalty": -10.5}, "length_penalty"),
    "penalty without beams": ({"length_penalty": 0.0}, "length_penalty"),
    "stopping": ({"beam_width": 2, "early_stopping": "always"}, "early_stopping"),
    "stopping without beams": ({"early_stopping": "never"}, "early_stopping"),
    "temperature": ({"beam_width": 2, "temperature": 0.5}, "temperature"),
    "top_p": ({"beam_width": 2, "top_p": 0.5}, "top_p"),
    "top_k": ({"beam_width": 2, "top_k": 1}, "top_k"),
    "min_p": ({"beam_width": 2, "min_p": 0.5}, "min_p"),
    "presence": ({"beam_width": 2, "presence_penalty": 0.5}, "presence_penalty"),
    "frequency": ({"beam_width": 2, "frequency_penalty": 0.5}, "frequency_penalty"),
    "stop": ({"beam_width": 2, "stop": "x"}, "stop"),
    "logprobs": ({"beam_width": 2, "logprobs": 0}, "logprobs"),
    "prompt_logprobs": ({"beam_width": 2, "prompt_logprobs": 0}, "prompt_logprobs"),
    "acceptance": ({"beam_width": 2, "acceptance": "typical"}, "acceptance"),
    "allowed_token_ids": ({"beam_width": 2, "allowed_token_ids": (1, 2)}, "allowed_token_ids"),
    "bad_words": ({"beam_width": 2, "bad_words": ("x",)}, "bad_words"),
    "no token allowed": ({"allowed_token_ids": ()}, "allowed_token_ids"),
    "an empty bad word": ({"bad_words": ("x", "")}, "bad_words"),
    "a number for a list": ({"allowed_token_ids": 5}, "allowed_token_ids"),
    "a bad word that is a number": ({"bad_words": (5,)}, "bad_words"),
    "bad words that are a number": ({"bad_words": 5}, "bad_words"),
    "too many bad words": ({"bad_words": tuple(map(str, range(2001)))}, "bad_words"),
    "grammar": ({"beam_width": 2, "grammar": Grammar.json()}, "grammar"),
}


@pytest.mark.parametrize("case", BAD)
def test_field_that_conflicts_with_beam_search_is_refused_by_name(case: str) -> None:
    fields, param = BAD[case]
    with pytest.raises(RequestError, match=param) as caught:
        SamplingParams(**fields)
    assert caught.value.param == param


def test_fields_allowed_with_beam_search_are_accepted() -> None:
    params = SamplingParams(
        beam_width=64,
        length_penalty=-10.0,
        early_stopping="never",
        seed=3,
        min_tokens=2,
        repetition_penalty=1.1,
        logit_bias=((3, 1.0),),
        stop_token_ids=(4,),
        ignore_eos=True,
        speculation=False,
        max_tokens=None,
    )
    assert params.needs_full_logits and params.temperature == 0.0
    assert SamplingParams(beam_width=2, temperature=1.0) == SamplingParams(beam_width=2, temperature=0.0)


def test_beam_fields_default_to_no_beam_search() -> None:
    params = SamplingParams()
    assert (params.beam_width, params.length_penalty, params.early_stopping) == (None, 1.0, False)
    assert params.temperature == 1.0 and not params.needs_full_logits


def test_first_fields_are_positional_in_vllms_order() -> None:
    given = (2, 0.1, 0.2, 1.3, 0.4, 0.5, 6, 0.7, 8, ["9"], [10], True, 11, 1, 13, 14)
    names = (
        *("n", "presence_penalty", "frequency_penalty", "repetition_penalty", "temperature", "top_p", "top_k", "min_p"),
        *("seed", "stop", "stop_token_ids", "ignore_eos", "max_tokens", "min_tokens", "logprobs", "prompt_logprobs"),
    )
    assert SamplingParams(*given) == SamplingParams(**dict(zip(names, given, strict=True)))
    with pytest.raises(TypeError):
        SamplingParams(*given, False)


def test_minus_one_means_all_tokens_and_a_random_seed() -> None:
    assert SamplingParams(top_k=-1, seed=-1) == SamplingParams(top_k=0, seed=None)
    assert not SamplingParams(top_k=-1).needs_full_logits
    with pytest.raises(RequestError, match="top_k must be between"):
        SamplingParams(top_k=-2)


def test_lists_are_read_in_vllms_forms() -> None:
    params = SamplingParams(stop="a", stop_token_ids=[1, np.int64(2)], logit_bias={7: 1, "3": -1.5})
    assert (params.stop, params.stop_token_ids) == (("a",), (1, 2))
    assert params.logit_bias == ((3, -1.5), (7, 1.0))
    assert SamplingParams(stop=None, stop_token_ids=None, logit_bias=None) == SamplingParams()


def test_whole_numbers_become_int() -> None:
    params = SamplingParams(max_tokens=16.0, n=np.int32(2), seed=np.int64(3))
    assert [(type(v), v) for v in (params.max_tokens, params.n, params.seed)] == [(int, 16), (int, 2), (int, 3)]


WRONG = {
    "n 0": ({"n": 0}, "n must be between 1 and"),
    "n none": ({"n": None}, "n must be a whole number, got None"),
    "text": ({"temperature": "hot"}, "temperature must be a number, got 'hot'"),
    "none": ({"top_p": None}, "top_p must be a number, got None"),
    "true": ({"max_tokens": True}, "max_tokens must be a whole number, got True"),
    "fraction": ({"top_k": 1.5}, "top_k must be a whole number, got 1.5"),
    "nan": ({"temperature": float("nan")}, "temperature must be between 0 and 100, got nan"),
    "all logprobs": ({"logprobs": -1}, "logprobs must be between 0 and 20, got -1"),
    "stop": ({"stop": [1]}, "stop must be a text or a list of texts"),
    "stop empty": ({"stop": ["a", ""]}, "stop must not contain an empty string"),
    "stop number": ({"stop": 3}, "stop must be a text or a list of texts, got 3"),
    "stop ids": ({"stop_token_ids": 3}, "stop_token_ids must be a list of token ids, got 3"),
    "stop id": ({"stop_token_ids": ["a"]}, "stop_token_ids must be a whole number, got 'a'"),
    "bias": ({"logit_bias": {"a": 1}}, "logit_bias must map token ids to numbers"),
    "stop without text": ({"stop": "a", "detokenize": False}, "stop requires detokenize"),
    "two grammars": (
        {"grammar": Grammar.json(), "structured_outputs": StructuredOutputsParams(regex="a")},
        "grammar and structured_outputs are both given",
    ),
    "structured": ({"structured_outputs": {"regex": "a"}}, "structured_outputs must be a StructuredOutputsParams"),
    "more outputs than beams": ({"n": 3, "beam_width": 2}, r"n \(3\) exceeds beam_width \(2\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_value_is_a_request_error_that_names_it(case: str) -> None:
    fields, message = WRONG[case]
    with pytest.raises(RequestError, match=message):
        SamplingParams(**fields)


def test_assigned_field_is_checked_like_a_new_one() -> None:
    params = SamplingParams()
    params.max_tokens, params.temperature, params.top_k, params.stop = 5, 0.5, -1, "a"
    assert params == SamplingParams(max_tokens=5, temperature=0.5, top_k=-1, stop=["a"])
    with pytest.raises(RequestError, match="min_tokens"):
        params.min_tokens = 6
    assert params.min_tokens == 0, "an assignment that fails changes nothing"
    params.structured_outputs = StructuredOutputsParams(choice=["a"])
    assert params.grammar == Grammar.choice(["a"])
    params.structured_outputs = None
    assert params.grammar is None
    with pytest.raises(AttributeError, match="no field 'best_of'"):
        params.best_of = 2


def test_params_equal_their_copies_and_pickles() -> None:
    params = SamplingParams(n=2, stop="a", grammar=None, logit_bias={3: 1.0})
    assert pickle.loads(pickle.dumps(params)) == copy.deepcopy(params) == replace(params) == params

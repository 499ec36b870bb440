"""Which fields go with a beam search."""

import pytest

from medusa_dist.errors import RequestError
from medusa_dist.grammar import Grammar
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

"""A request that could never run is refused, by the field."""

import pytest

from medusa_dist.engine.state.limits import Limits, check_request
from medusa_dist.errors import RequestError
from medusa_dist.request import Request
from medusa_dist.sampling_params import SamplingParams

LIMITS = Limits(max_running=2, max_batched_tokens=64, max_model_len=100, vocab_size=11, eos_ids=(10,))

BAD = {
    "token": ((3, 11), {}, "prompt", "outside the vocabulary"),
    "context": ((3,) * 90, {"max_tokens": 11}, "max_tokens", "context length is 100"),
    "bias": ((3,), {"logit_bias": ((11, 1.0),)}, "logit_bias", "names token 11"),
    "stop": ((3,), {"stop_token_ids": (12,)}, "stop_token_ids", "names token 12"),
    "allowed": ((3,), {"allowed_token_ids": (3, 11)}, "allowed_token_ids", "names token 11"),
    "bad word": ((3,), {"bad_words": ((3, -1),)}, "bad_words", "names token -1"),
    "bad word as text": ((3,), {"bad_words": ("x",)}, "bad_words", "give token ids"),
    "blocks": ((3,) * 40, {"max_tokens": 41}, "max_tokens", "need 6 KV blocks, the cache has 5"),
    "blocks without a limit": ((3,), {"max_tokens": None}, "max_tokens", "need 7 KV blocks"),
}


def check(prompt: tuple[int, ...], **params: object) -> None:
    check_request(Request(request_id="x", prompt_ids=prompt, params=SamplingParams(**params), seed=0), LIMITS, 5)


@pytest.mark.parametrize("case", BAD)
def test_request_beyond_the_limits_is_refused_by_field(case: str) -> None:
    prompt, params, param, text = BAD[case]
    with pytest.raises(RequestError, match=text) as caught:
        check(prompt, **params)
    assert caught.value.param == param


def test_request_exactly_at_the_limits_is_accepted() -> None:
    check((3,) * 40, max_tokens=40, logit_bias=((10, 1.0),), stop_token_ids=(0,))

import pytest

from medusa_dist.api.translation.own_words import chat_request, own_words
from medusa_dist.errors import NotFoundError, RequestError

NAMES = {"messages": "input", "max_tokens": "max_output_tokens", "response_format": "text.format", "stop": "ends"}


@pytest.mark.parametrize(
    ("error", "param", "message"),
    [
        (
            RequestError("max_tokens must be lower", "max_tokens"),
            "max_output_tokens",
            "max_output_tokens must be lower",
        ),
        (RequestError("lower max_tokens or stop", "messages"), "input", "lower max_output_tokens or stop"),
        (RequestError("messages[0].x is wrong", "messages[].x"), "input[].x", "input[0].x is wrong"),
        (RequestError("response_format: no", "response_format"), "text.format", "text.format: no"),
        (RequestError("stop: no", "stop"), "ends", "ends: no"),
        (RequestError("seed: stop_token_ids", "seed"), "seed", "seed: stop_token_ids"),
        (RequestError("the body is odd"), None, "the body is odd"),
    ],
)
def test_errors_name_the_fields_of_the_api_that_is_spoken(error, param, message):
    with pytest.raises(RequestError) as caught, own_words(NAMES):
        raise error
    assert (caught.value.param, caught.value.message) == (param, message)


def test_class_and_code_of_an_error_stay():
    with pytest.raises(NotFoundError) as caught, own_words(NAMES):
        raise NotFoundError("no such model", "model", "model_not_found")
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")


def test_a_body_that_chat_refuses_is_one_request_error():
    with pytest.raises(RequestError) as caught:
        chat_request({"model": "m", "messages": [{"role": "user", "content": "x"}], "seed": "5"})
    assert caught.value.param == "seed"
    with pytest.raises(RequestError, match="seeds"):
        chat_request({"model": "m", "messages": [{"role": "user", "content": "x"}], "seeds": 5})

"""Without a tokenizer, ids pass through and everything that needs text is refused."""

import pytest

from medusa_dist.errors import RequestError
from medusa_dist.outputs import FinishReason, Output
from medusa_dist.sampling_params import SamplingParams
from medusa_dist.text.chat_template import encode_chat, encode_question
from medusa_dist.text.detokenizer import Detokenizer
from medusa_dist.text.no_tokenizer import NoTokenizer
from medusa_dist.text.text_stream import TextStream
from medusa_dist.text.token_text import special_ids, token_text

NONE = NoTokenizer()
HI = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    "use",
    [
        lambda: NONE("text", add_special_tokens=False),
        lambda: NONE.encode("text"),
        lambda: NONE.decode([1]),
        lambda: NONE.get_vocab,
        lambda: special_ids(NONE),
        lambda: encode_chat(NONE, HI),
        lambda: encode_chat(NONE, HI, chat_template="{{ messages }}"),
        lambda: encode_question(NONE, "hi"),
    ],
)
def test_any_use_of_a_missing_tokenizer_is_refused(use) -> None:
    with pytest.raises(RequestError, match=r"served without a tokenizer .skip_tokenizer_init.; send token ids"):
        use()


def test_text_is_empty_and_ids_are_kept() -> None:
    detokenizer = Detokenizer(NONE, (1, 2, 3))
    assert [detokenizer.push(i) for i in range(20)] == [""] * 20 and detokenizer.flush() == ""
    stream = TextStream(NONE, SamplingParams(stop_token_ids=[9]))
    for ids, reason in (((4, 5), None), ((6, 9), FinishReason.STOP)):
        delta = stream.push(Output(request_id="r", token_ids=ids, heads=(0, 0), finish_reason=reason))
        assert (delta.text, delta.token_ids) == ("", ids)
    assert (stream.text, stream.token_ids, stream.finish_reason, stream.stop_reason) == ("", [4, 5, 6, 9], "stop", 9)
    assert token_text(NONE, 7) == ("token_id:7", b"token_id:7")


def test_stop_strings_without_a_tokenizer_are_refused() -> None:
    with pytest.raises(RequestError, match=r"stop: .*use stop_token_ids") as caught:
        TextStream(NONE, SamplingParams(stop="x"))
    assert caught.value.param == "stop"

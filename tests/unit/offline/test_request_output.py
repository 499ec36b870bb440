"""Results in vLLM's form."""

import copy
import pickle

import pytest

from medusa_dist.offline.request_output import Logprob, PositionLogprobs, RequestOutput, RequestOutputs, request_output
from medusa_dist.outputs import FinishReason, Hypothesis, Output, TokenLogprobs
from medusa_dist.request import Request
from medusa_dist.sampling_params import SamplingParams
from medusa_dist.text.text_stream import TextStream
from tests.support.tiny_tokenizers import byte_tokenizer

TOKENIZER = byte_tokenizer()
A, B, C, D = TOKENIZER("abcd")["input_ids"]
STOP = FinishReason.STOP


def result(*parts: Output, prompt: str | None = "a", **fields: object) -> RequestOutput:
    params = SamplingParams(**fields)
    requests, streams = [], []
    for i, part in enumerate(parts):
        requests.append(Request(request_id=f"r-{i}", prompt_ids=(A,), params=params, seed=i))
        streams.append(TextStream(TOKENIZER, params))
        streams[-1].push(part)
    return request_output(prompt, requests, streams, TOKENIZER)


def part(*ids: int, **fields: object) -> Output:
    return Output(request_id="r", token_ids=ids, heads=(0,) * len(ids), **({"finish_reason": STOP} | fields))


def test_each_output_has_its_index_text_ids_and_seed() -> None:
    made = result(part(A, B, finish_reason=FinishReason.LENGTH), part(C, TOKENIZER.eos_token_id))
    assert (made.request_id, made.prompt, made.prompt_token_ids, made.finished) == ("r-0", "a", [A], True)
    assert [(o.index, o.text, o.token_ids, o.seed) for o in made.outputs] == [
        (0, "ab", [A, B], 0),
        (1, "c", [C, TOKENIZER.eos_token_id], 1),
    ]
    assert [o.finish_reason for o in made.outputs] == ["length", "stop"]
    assert all(o.finished() and o.stop_reason is None and o.logprobs is None for o in made.outputs)
    assert made.outputs[0].cumulative_logprob is None and made.prompt_logprobs is None


def test_former_attributes_are_those_of_the_first_output() -> None:
    made = result(part(A, B), part(C))
    assert (made.text, made.token_ids, made.finish_reason, made.seed, made.heads) == ("a", (A, B), STOP, 0, (0, 0))
    assert made.logprobs == () and made.stats == made.outputs[0].stats


def test_stop_reason_is_the_string_or_id_that_ended_the_output() -> None:
    assert result(part(A, B, C, D), stop=["bc"]).outputs[0].stop_reason == "bc"
    assert result(part(A, B), stop_token_ids=[B]).outputs[0].stop_reason == B
    assert result(part(A, B, finish_reason=FinishReason.LENGTH), stop_token_ids=[B]).outputs[0].stop_reason is None


def test_logprobs_are_tables_by_token_id_and_add_up() -> None:
    entries = (TokenLogprobs(A, -2.0, (B, C), (-0.5, -1.0)), TokenLogprobs(B, -0.25, (B, C), (-0.25, -3.0)))
    made = result(part(A, B, logprobs=entries, prompt_logprobs=(None, entries[1])), logprobs=2, prompt_logprobs=2)
    first, second = made.outputs[0].logprobs
    assert first == {A: Logprob(-2.0, None, "a"), B: Logprob(-0.5, 1, "b"), C: Logprob(-1.0, 2, "c")}
    assert list(first) == [A, B, C], "the actual token first"
    assert second == {B: Logprob(-0.25, 1, "b"), C: Logprob(-3.0, 2, "c")}
    assert made.outputs[0].cumulative_logprob == -2.25
    assert made.prompt_logprobs == [None, second]
    assert (first.token_id, first.logprob, first.top_ids, first.top_logprobs) == (A, -2.0, (B, C), (-0.5, -1.0))
    assert made.logprobs == (first, second)


def test_outputs_of_a_beam_search_are_its_best_n_beams() -> None:
    beams = tuple(Hypothesis(ids, score, STOP) for ids, score in (((A, B), -1.0), ((C, D), -2.0), ((D,), -3.0)))
    made = result(part(A, B, hypotheses=beams), n=2, beam_width=3)
    assert [(o.index, o.text, o.token_ids) for o in made.outputs] == [(0, "a", [A, B]), (1, "c", [C, D])]
    assert made.hypotheses == beams


def test_results_equal_their_copies_and_pickles() -> None:
    entries = (TokenLogprobs(A, -2.0, (B,), (-0.5,)),)
    made = RequestOutputs([result(part(A, logprobs=entries), logprobs=1)])
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert other == made and isinstance(other, RequestOutputs)
        assert isinstance(other[0].outputs[0].logprobs[0], PositionLogprobs) and other[0].logprobs[0].token_id == A


def test_chat_results_lend_the_attributes_of_a_single_result() -> None:
    one, two = result(part(A, B)), result(part(C, D))
    assert RequestOutputs([one]).text == "a" and RequestOutputs([one]).prompt_token_ids == [A]
    with pytest.raises(AttributeError, match="2 results; take one by its index"):
        _ = RequestOutputs([one, two]).text
    with pytest.raises(AttributeError, match="wings"):
        _ = RequestOutputs([one]).wings

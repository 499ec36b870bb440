"""Beam search over HTTP: n hypotheses of one request, and what is refused beside it."""

import pytest

from medusa_dist.api.beams import split_choices
from medusa_dist.api.schema.responses import ChatReply, CompletionReply
from medusa_dist.outputs import FinishReason, Hypothesis, Output, SpeculationStats
from tests.support.fake_service import EOS, FakeService, chat, client_of, completion, ids_of

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


class BeamService(FakeService):
    """Finds "text", "text.", "text..", ...: the first by an end token, the others cut."""

    async def generate(self, request):
        self.requests.append(request)
        found = [Hypothesis((*ids_of(self.text), EOS), -0.5, FinishReason.STOP)]
        for i in range(1, request.params.beam_width):
            found.append(Hypothesis(ids_of(self.text + "." * i), -0.5 - i, FinishReason.LENGTH))
        yield Output(
            request_id=request.request_id,
            token_ids=found[0].token_ids,
            heads=(0,) * len(found[0].token_ids),
            finish_reason=FinishReason.STOP,
            stats=SpeculationStats(4, 9, (2,)),
            num_cached_tokens=1,
            hypotheses=tuple(found),
        )


async def ask(route, body, service=None):
    service = service or BeamService("Hello")
    async with client_of(service) as client:
        return await client.post(route, json=body), service


@pytest.mark.parametrize("n", [1, 2, 4])
async def test_completion_returns_the_n_best_beams_in_order(n):
    reply, service = await ask(COMPLETIONS, completion(beam_width=4, n=n, length_penalty=0.5, early_stopping=True))
    body = CompletionReply.model_validate(reply.json())
    assert [c.text for c in body.choices] == ["Hello" + "." * i for i in range(n)]
    assert [c.finish_reason for c in body.choices] == ["stop", "length", "length", "length"][:n]
    assert [c.index for c in body.choices] == list(range(n))
    lengths = [6, *(len(ids_of("Hello" + "." * i)) for i in range(1, n))]
    assert body.usage.completion_tokens == sum(lengths)
    assert (body.usage.prompt_tokens, body.usage.prompt_tokens_details.cached_tokens) == (len(ids_of("Hi")), 1)
    (request,) = service.requests
    params = request.params
    assert (params.beam_width, params.length_penalty, params.early_stopping) == (4, 0.5, True)
    assert params.temperature == 0.0 and not service.aborted


async def test_use_beam_search_in_a_chat_takes_n_as_beam_width():
    reply, service = await ask(CHAT, chat(use_beam_search=True, n=3, max_tokens=20))
    body = ChatReply.model_validate(reply.json())
    assert [c.message.content for c in body.choices] == ["Hello", "Hello.", "Hello.."]
    assert len(service.requests) == 1 and service.requests[0].params.beam_width == 3


async def test_each_prompt_with_echo_gets_its_own_n_best_beams():
    reply, service = await ask(COMPLETIONS, completion(prompt=["a", "bc"], beam_width=3, n=2, echo=True))
    assert [c["text"] for c in reply.json()["choices"]] == ["aHello", "aHello.", "bcHello", "bcHello."]
    assert reply.json()["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
    assert len(service.requests) == 2


async def test_use_beam_search_false_means_no_beam_width():
    reply, service = await ask(CHAT, chat(use_beam_search=False, n=2), FakeService("ok"))
    assert reply.status_code == 200
    assert [r.params.beam_width for r in service.requests] == [None, None]


BAD = {
    "stream": ({"stream": True}, "stream", "known only at the end"),
    "more choices than beams": ({"n": 3}, "n", "n (3) exceeds beam_width (2)"),
    "use_beam_search false": ({"use_beam_search": False}, "use_beam_search", "remove one of them"),
    "temperature": ({"temperature": 0.7}, "temperature", "cannot be used with beam_width"),
    "top_p": ({"top_p": 0.9}, "top_p", "does not sample"),
    "top_k": ({"top_k": 4}, "top_k", "does not sample"),
    "min_p": ({"min_p": 0.1}, "min_p", "does not sample"),
    "stop": ({"stop": "x"}, "stop", "stop_token_ids"),
    "presence": ({"presence_penalty": 1.0}, "presence_penalty", "repetition_penalty"),
    "frequency": ({"frequency_penalty": 1.0}, "frequency_penalty", "repetition_penalty"),
    "logprobs": ({"logprobs": 1}, "logprobs", "has one score"),
    "prompt logprobs": ({"prompt_logprobs": 1}, "prompt_logprobs", "has one score"),
    "typical": ({"acceptance": "typical", "temperature": 1.0}, "acceptance", "depend on the draft tokens"),
    "a grammar": ({"structured_outputs": {"regex": "a+"}}, "structured_outputs", "beams fork"),
    "beam_width too high": ({"beam_width": 65}, "beam_width", "less than or equal to 64"),
    "beam_width zero": ({"beam_width": 0}, "beam_width", "greater than or equal to 1"),
    "unknown early_stopping": ({"early_stopping": "always"}, "early_stopping", "never"),
    "length_penalty too high": ({"length_penalty": 11.0}, "length_penalty", "less than or equal to 10"),
    "length_penalty without beams": ({"beam_width": None, "length_penalty": 2.0}, "length_penalty", "set beam_width"),
    "early_stopping without beams": ({"beam_width": None, "early_stopping": True}, "early_stopping", "set beam_width"),
}


@pytest.mark.parametrize("case", BAD)
async def test_field_that_beam_search_cannot_honour_is_400_by_name(case):
    fields, param, text = BAD[case]
    reply, service = await ask(COMPLETIONS, completion(**{"beam_width": 2} | fields))
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, param) and text in error["message"], error
    assert not service.requests


async def test_neutral_sampling_fields_are_accepted_with_beams():
    fields = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "seed": 7, "acceptance": "exact"}
    reply, _ = await ask(COMPLETIONS, completion(beam_width=2, **fields))
    assert reply.status_code == 200 and reply.json()["seed"] == 7


def test_output_without_hypotheses_is_one_choice():
    output = Output(request_id="x", token_ids=(1, 2))
    assert split_choices(output, 1) == [output]

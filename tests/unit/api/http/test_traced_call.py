import asyncio

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from medusa_dist.api import call as call_module
from medusa_dist.api.call import Call
from medusa_dist.api.http.traced_call import ROUTES, make_call
from medusa_dist.errors import EngineError
from medusa_dist.outputs import FinishReason, Hypothesis, Output, SpeculationStats
from medusa_dist.tracing.spans import Tracing
from tests.support.fake_service import FakeService, chat, client_of, completion, ids_of

SECRET = "xyzzy"
BODIES = {
    "/v1/chat/completions": chat(messages=[{"role": "user", "content": SECRET}]),
    "/v1/completions": completion(prompt=SECRET),
    "/v1/responses": {"model": FakeService.name, "input": SECRET},
    "/v1/messages": {
        "model": FakeService.name,
        "max_tokens": 50,
        "messages": [{"role": "user", "content": SECRET}],
    },
}


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exporter) -> Tracing:
    return Tracing(SimpleSpanProcessor(exporter))


def by_name(exporter: InMemorySpanExporter) -> dict[str, list]:
    found: dict[str, list] = {}
    for span in exporter.get_finished_spans():
        found.setdefault(span.name, []).append(span)
    return found


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ROUTES)
async def test_every_route_that_generates_is_traced_without_any_text(route, stream, tracer, exporter) -> None:
    service = FakeService(text="plugh " * 5, portion=20)
    async with client_of(service, tracer=tracer, api_key="k") as client:
        reply = await client.post(
            f"{route}/", json=BODIES[route] | {"stream": stream}, headers={"x-api-key": "k", "x-request-id": "mine"}
        )
    assert reply.status_code == 200 and "plugh" in reply.text
    spans = by_name(exporter)
    operation = "text_completion" if route == "/v1/completions" else "chat"
    assert set(spans) == {f"POST {route}", f"{operation} org/tiny", "decode", "stream"}
    (call,), (request,) = spans[f"POST {route}"], spans[f"{operation} org/tiny"]
    assert call.attributes["medusa_dist.call.id"] == "mine" and call.attributes["url.path"] == f"{route}/"
    assert request.attributes["gen_ai.usage.input_tokens"] == len(service.requests[0].prompt_ids)
    assert request.attributes["gen_ai.usage.output_tokens"] == len(service.tokens(service.requests[0]))
    assert request.attributes["gen_ai.response.finish_reasons"] == ("stop",)
    everything = "".join(span.to_json() for spans in spans.values() for span in spans)
    assert SECRET not in everything and "plugh" not in everything


async def test_each_choice_has_its_spans_and_those_that_wait_for_a_place_have_one_each(
    tracer, exporter, monkeypatch
) -> None:
    monkeypatch.setattr(call_module, "PLACE_S", 0.001)
    service = FakeService()
    service.num_places, service.pause_s = 1, 0.005
    async with client_of(service, tracer=tracer) as client:
        assert (await client.post("/v1/completions", json=completion(n=3))).status_code == 200
    requests = by_name(exporter)["text_completion org/tiny"]
    assert len(service.requests) > 3, "some were refused at first"
    assert sorted(span.attributes["medusa_dist.request.id"][-2:] for span in requests) == ["-0", "-1", "-2"]
    assert all(span.status.status_code.name == "UNSET" for span in requests)
    assert len({span.start_time for span in requests}) <= 3
    assert max(span.attributes["gen_ai.response.time_to_first_chunk"] for span in requests) > 0.005


async def test_stop_string_is_the_finish_reason_though_the_engine_knows_none(tracer, exporter) -> None:
    async with client_of(FakeService(), tracer=tracer) as client:
        await client.post("/v1/completions", json=completion(stop="the"))
    (request,) = by_name(exporter)["text_completion org/tiny"]
    assert request.attributes["gen_ai.response.finish_reasons"] == ("stop",)


class SearchService(FakeService):
    """Finds the text and the text twice, in a beam search."""

    async def answer(self, request):
        found = [Hypothesis(ids_of(self.text * k), -float(k), FinishReason.LENGTH) for k in (1, 2)]
        stats = SpeculationStats(4, 9, (2,))
        yield Output(
            request_id=request.request_id,
            token_ids=found[0].token_ids,
            heads=(0,) * len(found[0].token_ids),
            finish_reason=FinishReason.LENGTH,
            stats=stats,
            hypotheses=tuple(found),
        )


async def test_search_with_several_choices_is_one_request(tracer, exporter) -> None:
    async with client_of(SearchService("abc"), tracer=tracer) as client:
        reply = await client.post("/v1/completions", json=completion(prompt=["a", "b"], beam_width=2, n=2))
    assert [choice["text"] for choice in reply.json()["choices"]] == ["abc", "abcabc"] * 2
    requests = by_name(exporter)["text_completion org/tiny"]
    assert [span.attributes["gen_ai.response.finish_reasons"] for span in requests] == [("length",)] * 2


async def test_failing_engine_is_the_error_of_both_spans(tracer, exporter) -> None:
    service = FakeService()
    service.before = EngineError("lost")
    async with client_of(service, tracer=tracer) as client:
        assert (await client.post("/v1/completions", json=completion())).status_code == 503
    spans = by_name(exporter)
    assert spans["POST /v1/completions"][0].attributes["error.type"] == "503"
    assert spans["text_completion org/tiny"][0].attributes["error.type"] == "EngineError"
    assert "queue" in spans and "decode" not in spans


async def test_refused_calls_are_traced_and_are_no_error_of_the_service(tracer, exporter) -> None:
    async with client_of(FakeService(), tracer=tracer, api_key="k") as client:
        assert (await client.post("/v1/completions", json=completion())).status_code == 401
        given = {"json": completion(temperature=-1), "headers": {"x-api-key": "k"}}
        assert (await client.post("/v1/completions", **given)).status_code == 400
    first, second = by_name(exporter)["POST /v1/completions"]
    assert [span.attributes["http.response.status_code"] for span in (first, second)] == [401, 400]
    assert {span.status.status_code.name for span in (first, second)} == {"UNSET"}


async def test_client_that_leaves_is_a_cancelled_request(tracer, exporter) -> None:
    service = FakeService()
    service.hang_after = 1
    async with client_of(service, tracer=tracer) as client:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.post("/v1/completions", json=completion()), 0.5)
    (request,) = by_name(exporter)["text_completion org/tiny"]
    assert request.attributes["gen_ai.response.finish_reasons"] == ("cancelled",)
    assert request.attributes["gen_ai.usage.output_tokens"] == 3
    (call,) = by_name(exporter)["POST /v1/completions"]
    assert call.attributes["error.type"] == "CancelledError"


async def test_probes_lists_and_uploads_are_not_traced(tracer, exporter) -> None:
    async with client_of(FakeService(), tracer=tracer) as client:
        for path in ("/health", "/metrics", "/v1/models", "/v1/completions"):
            await client.get(path)
        await client.post("/tokenize", json={"prompt": "a"})
        await client.post("/v1/files")
    assert not exporter.get_finished_spans()


def test_without_a_trace_the_call_is_the_plain_one(tracer) -> None:
    unsampled = tracer.call("/v1/completions", "/v1/completions", {"traceparent": f"00-{'1' * 32}-{'2' * 16}-00"})
    for scope in ({}, {"state": {}}, {"state": {"trace": unsampled}}):
        assert type(make_call(FakeService(), [], [], scope, is_chat=True)) is Call

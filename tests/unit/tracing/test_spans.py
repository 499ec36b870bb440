import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv.attributes import error_attributes, http_attributes, url_attributes

from medusa_dist.outputs import FinishReason, Output, SpeculationStats
from medusa_dist.request import Request
from medusa_dist.sampling_params import SamplingParams
from medusa_dist.tracing.notes import RequestNotes
from medusa_dist.tracing.spans import Tracing

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter) -> Tracing:
    return Tracing(SimpleSpanProcessor(exporter))


def served(tracing: Tracing, headers: dict[str, str], error: str | None = None) -> None:
    """One call with one request, of two outputs."""
    params = SamplingParams(max_tokens=9, temperature=0.5, top_p=0.9, top_k=7, frequency_penalty=0.25)
    request = Request(request_id="chatcmpl-abc-0", prompt_ids=(1, 2, 3), params=params, seed=11)
    trace = tracing.call("/v1/chat/completions", "/app/v1/chat/completions", headers)
    notes = RequestNotes(request, "tiny", "chat")
    for reason in (None, FinishReason.LENGTH):
        notes.arrived(
            Output(
                request_id=request.request_id,
                token_ids=(5, 6),
                finish_reason=reason,
                stats=SpeculationStats(1, 4, (1, 0)),
                prefill_s=0.0 if reason is None else None,
                num_cached_tokens=2,
            )
        )
        notes.delivered()
    notes.outcome, notes.error = FinishReason.LENGTH, error
    trace.request(notes)
    trace.end(200 if error is None else 503, "req-1")


def test_spans_of_a_call_hang_below_the_callers(tracing, exporter) -> None:
    served(tracing, {"traceparent": PARENT})
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"POST /v1/chat/completions", "chat tiny", "queue", "prefill", "decode", "stream"}
    assert {f"{span.context.trace_id:032x}" for span in spans.values()} == {PARENT.split("-")[1]}
    call, request = spans["POST /v1/chat/completions"], spans["chat tiny"]
    assert f"{call.parent.span_id:016x}" == PARENT.split("-")[2] and call.kind.name == "SERVER"
    assert request.parent.span_id == call.context.span_id
    for name in ("queue", "prefill", "decode", "stream"):
        assert spans[name].parent.span_id == request.context.span_id
        assert request.start_time <= spans[name].start_time <= spans[name].end_time <= request.end_time <= call.end_time


def test_call_without_a_traceparent_or_with_a_broken_one_begins_a_trace(tracing, exporter) -> None:
    for headers in ({}, {"traceparent": "00-zz-1-01"}):
        exporter.clear()
        served(tracing, headers)
        assert [span.name for span in exporter.get_finished_spans() if span.parent is None] == [
            "POST /v1/chat/completions"
        ]


def test_a_caller_that_does_not_sample_gets_no_spans(tracing, exporter) -> None:
    trace = tracing.call("/v1/completions", "/v1/completions", {"traceparent": PARENT[:-1] + "0"})
    assert not trace.is_recorded
    trace.end(200, "req-1")
    assert not exporter.get_finished_spans()


def test_attributes_follow_the_conventions(tracing, exporter) -> None:
    served(tracing, {})
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert dict(spans["chat tiny"].attributes) | {"gen_ai.response.time_to_first_chunk": 0} == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "medusa_dist",
        "gen_ai.request.model": "tiny",
        "gen_ai.response.model": "tiny",
        "gen_ai.response.id": "chatcmpl-abc",
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.top_k": 7,
        "gen_ai.request.frequency_penalty": 0.25,
        "gen_ai.request.seed": 11,
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 2,
        "gen_ai.usage.output_tokens": 4,
        "gen_ai.response.time_to_first_chunk": 0,
        "gen_ai.response.finish_reasons": ("length",),
        "medusa_dist.request.id": "chatcmpl-abc-0",
    }
    assert dict(spans["POST /v1/chat/completions"].attributes) == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "url.path": "/app/v1/chat/completions",
        "http.response.status_code": 200,
        "medusa_dist.call.id": "req-1",
    }
    known = {
        value
        for module in (gen_ai_attributes, http_attributes, url_attributes, error_attributes)
        for value in vars(module).values()
        if isinstance(value, str)
    }
    for span in spans.values():
        assert {name for name in span.attributes if not name.startswith("medusa_dist.")} <= known


def test_decode_has_its_counts_and_an_event_for_each_output(tracing, exporter) -> None:
    served(tracing, {})
    (decode,) = [span for span in exporter.get_finished_spans() if span.name == "decode"]
    assert dict(decode.attributes) == {
        "medusa_dist.decode.steps": 2,
        "medusa_dist.decode.drafted_tokens": 8,
        "medusa_dist.decode.accepted_tokens": 2,
    }
    events = [(event.name, dict(event.attributes)) for event in decode.events]
    step = {"tokens": 2, "steps": 1, "drafted_tokens": 4, "accepted_tokens": 1}
    assert events == [("output", {"number": number, **step}) for number in (1, 2)]
    assert all(decode.start_time <= event.timestamp <= decode.end_time for event in decode.events)


def test_error_marks_the_call_and_the_request(tracing, exporter) -> None:
    served(tracing, {}, error="EngineError")
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert spans["chat tiny"].attributes["error.type"] == "EngineError"
    assert spans["chat tiny"].attributes["gen_ai.response.finish_reasons"] == ("error",)
    assert spans["POST /v1/chat/completions"].attributes["error.type"] == "503"
    failed = {name for name, span in spans.items() if span.status.status_code.name == "ERROR"}
    assert failed == {"chat tiny", "POST /v1/chat/completions"}


@pytest.mark.parametrize(("variables", "name"), [({}, "medusa-dist"), ({"OTEL_SERVICE_NAME": "mine"}, "mine")])
def test_service_name_comes_from_the_environment_else_is_ours(variables, name, monkeypatch, exporter) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    served(Tracing(SimpleSpanProcessor(exporter)), {})
    assert {span.resource.attributes["service.name"] for span in exporter.get_finished_spans()} == {name}

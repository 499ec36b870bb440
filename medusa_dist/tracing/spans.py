"""Tracing: spans of OpenTelemetry for HTTP calls and their requests.

Owns names and attributes, and the exporter. Not here: what is measured (notes.py). Imported only with `tracing: true`
(open_tracing.py), since its packages are optional. Attributes are those of OpenTelemetry's conventions for HTTP and
generative AI where there is one, else they begin with medusa_dist. None has text of a prompt or an answer.
"""

import os
import time
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # so that a missing one is noticed
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from medusa_dist.errors import ConfigError
from medusa_dist.tracing.notes import OutputNote, Phase, RequestNotes

SERVICE = "medusa-dist"  # if OTEL_SERVICE_NAME says no other
FLUSH_S = 5.0  # for spans that wait when the replica ends
_EXPORTER, _PROTOCOL = "OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_PROTOCOL"


class CallTrace:
    """The span of one HTTP call, begun. Those of its requests are made below it when they are over."""

    def __init__(self, tracing: "Tracing", span: Span) -> None:
        self._tracing = tracing
        self._span = span
        self._inside = set_span_in_context(span, Context())

    @property
    def is_recorded(self) -> bool:
        """Whether anybody will see it; the caller of the service or the sampler may have decided otherwise."""
        return self._span.is_recording()

    def request(self, notes: RequestNotes) -> None:
        """A request is over."""
        self._tracing.add_request(notes, self._inside)

    def end(self, status: int | None, request_id: str | None, error: str | None = None) -> None:
        """The call is over. status: of its response, None without one. error: name of what broke it off."""
        if status is not None:
            self._span.set_attribute("http.response.status_code", status)
        if request_id is not None:
            self._span.set_attribute("medusa_dist.call.id", request_id)
        if error is None and status is not None and status >= 500:
            error = str(status)
        if error is not None:
            _fail(self._span, error)
        self._span.end()


class Tracing:
    """The tracer of one process. processor: None sends nothing; the environment has the sampler."""

    def __init__(self, processor: SpanProcessor | None) -> None:
        resource = Resource.create()
        if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": SERVICE}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        if processor is not None:
            self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("medusa_dist")
        self._propagator = TraceContextTextMapPropagator()

    def call(self, route: str, path: str, headers: Mapping[str, str]) -> CallTrace:
        """Begin the span of a POST, below the caller's if its headers name one (W3C Trace Context)."""
        attributes = {"http.request.method": "POST", "http.route": route, "url.path": path}
        parent = self._propagator.extract(headers, Context())
        return CallTrace(self, self._tracer.start_span(f"POST {route}", parent, SpanKind.SERVER, attributes))

    def add_request(self, notes: RequestNotes, parent: Context) -> None:
        """Make the spans of a request that is over."""
        now = time.time_ns()
        name = f"{notes.operation} {notes.model}"
        span = self._tracer.start_span(name, parent, attributes=_attributes(notes), start_time=notes.begin_ns)
        if notes.error is not None:
            _fail(span, notes.error)
        inside = set_span_in_context(span, Context())
        for phase in notes.phases(now):
            self._add_phase(phase, notes, inside)
        span.end(max(now, notes.delivered_ns))

    def _add_phase(self, phase: Phase, notes: RequestNotes, parent: Context) -> None:
        attributes: dict[str, Any] = {}
        if phase.name == "decode":
            attributes = {
                "medusa_dist.decode.steps": notes.stats.num_steps,
                "medusa_dist.decode.drafted_tokens": notes.stats.num_drafted,
                "medusa_dist.decode.accepted_tokens": notes.stats.num_accepted,
            }
        elif phase.name == "stream":
            attributes = {
                "medusa_dist.stream.detokenize_seconds": notes.detokenize_s,
                "medusa_dist.stream.wait_seconds": max(0.0, notes.wait_s - notes.detokenize_s),
            }
        span = self._tracer.start_span(phase.name, parent, attributes=attributes, start_time=phase.begin_ns)
        for output in phase.outputs:
            span.add_event("output", _event(output), output.at_ns)
        for at_ns in phase.resumed_ns:
            span.add_event("resumed after a failure", timestamp=at_ns)
        span.end(phase.end_ns)

    def close(self) -> None:
        """Send what waits, and stop. Blocks, for some seconds at most."""
        self._provider.force_flush(int(FLUSH_S * 1000))
        self._provider.shutdown()


def open_spans() -> Tracing:
    """As the environment says. Raises ConfigError for an exporter that is not there."""
    exporter = _exporter()
    return Tracing(None if exporter is None else BatchSpanProcessor(exporter))


def check_spans() -> None:
    """Raise ConfigError where open_spans would."""
    _exporter_named()


def _exporter() -> SpanExporter | None:
    found = _exporter_named()
    if found is None or found is OTLPSpanExporter:
        return None if found is None else OTLPSpanExporter()
    made: SpanExporter = found()
    return made


def _exporter_named() -> Any:
    """The class of the exporter, or None for none."""
    name = os.environ.get(_EXPORTER, "").strip() or "otlp"
    if name == "none":
        return None
    if name == "otlp":
        variable = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
        protocol = os.environ.get(variable) or os.environ.get(_PROTOCOL) or "http/protobuf"
        if protocol == "http/protobuf":
            return OTLPSpanExporter
        name = f"otlp_proto_{protocol}"
    listed: dict[str, EntryPoint] = {one.name: one for one in entry_points(group="opentelemetry_traces_exporter")}
    if name not in listed:
        raise ConfigError(
            f"tracing: no installed package has the exporter {name!r} that {_EXPORTER} or {_PROTOCOL} names; "
            f"there are: none, otlp (http/protobuf), {', '.join(sorted(listed))}"
        )
    return listed[name].load()


def _attributes(notes: RequestNotes) -> dict[str, Any]:
    """Of the span of a request. Those that are None are left out."""
    request, params = notes.request, notes.request.params
    outcome = "error" if notes.error is not None else notes.outcome or "cancelled"
    first_s = None if notes.first_ns is None else (notes.first_ns - notes.begin_ns) / 1e9
    found = {
        "gen_ai.operation.name": notes.operation,
        "gen_ai.provider.name": "medusa_dist",
        "gen_ai.request.model": notes.model,
        "gen_ai.response.model": notes.model,
        "gen_ai.response.id": request.request_id.rpartition("-")[0],
        "gen_ai.request.max_tokens": params.max_tokens,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.top_k": params.top_k or None,
        "gen_ai.request.frequency_penalty": params.frequency_penalty or None,
        "gen_ai.request.presence_penalty": params.presence_penalty or None,
        "gen_ai.request.seed": request.seed,
        "gen_ai.usage.input_tokens": len(request.prompt_ids),
        "gen_ai.usage.cache_read.input_tokens": notes.num_cached_tokens or None,
        "gen_ai.usage.output_tokens": notes.num_tokens,
        "gen_ai.response.time_to_first_chunk": first_s,
        "gen_ai.response.finish_reasons": (str(outcome),),
        "medusa_dist.request.id": request.request_id,
    }
    return {name: value for name, value in found.items() if value is not None}


def _event(output: OutputNote) -> dict[str, Any]:
    return {
        "number": output.number,
        "tokens": output.num_tokens,
        "steps": output.stats.num_steps,
        "drafted_tokens": output.stats.num_drafted,
        "accepted_tokens": output.stats.num_accepted,
    }


def _fail(span: Span, error: str) -> None:
    span.set_attribute("error.type", error)
    span.set_status(StatusCode.ERROR)

"""Traces of a real service, as a receiver of OTLP over HTTP gets them."""

import gzip
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.prometheus import ROOT
from tests.support.served import Served, free_port, without_ray
from tests.support.tiny_llm import save_llm

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PROMPT = "a secret prompt, computed in two chunks"
LIMIT_S = 900  # no claim about speed: only that a test which hangs comes to an end

CONFIG = """
proxy_location: HeadOnly
http_options: {{host: 127.0.0.1, port: {port}}}
applications:
  - name: tiny
    route_prefix: /
    import_path: medusa_dist.app:build_app
    args:
      model: {model}
      served_model_name: tiny
      heads: {{source: {model}/heads}}
      tracing: true
      dtype: float32
      device: cpu
      max_running: 2
      max_batched_tokens: 16
      kv_cache_tokens: 256
      files: {{store: "off"}}
      resources: {{cpus_per_rank: 0.1, front_cpus: 0.1, threads_per_rank: 1}}
    deployments:
      - {{name: Medusa, ray_actor_options: {{num_cpus: 0.1}}}}
"""


class Receiver:
    """Takes traces at `url`."""

    def __init__(self) -> None:
        self.exports: list[ExportTraceServiceRequest] = []
        self.headers: list[dict[str, str]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf"
                receiver.exports.append(ExportTraceServiceRequest.FromString(body))
                receiver.headers.append(dict(self.headers))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever)

    def __enter__(self) -> "Receiver":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def spans(self) -> list[Any]:
        return [
            span
            for export in self.exports
            for resource in export.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def resources(self) -> list[dict[str, str]]:
        return [
            {item.key: item.value.string_value for item in found.resource.attributes}
            for export in self.exports
            for found in export.resource_spans
        ]


@contextmanager
def service(folder: Path, receiver: Receiver) -> Iterator[str]:
    """A service that would export after ten minutes, and exports at its end."""
    port = free_port()
    (folder / "serve.yaml").write_text(CONFIG.format(port=port, model=save_llm(folder / "model")))
    environment = without_ray(
        HOME=str(folder),
        RAY_TMPDIR=str(folder),
        PYTHONPATH=str(ROOT),
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
        OTEL_EXPORTER_OTLP_HEADERS="x-tenant=blue",
        OTEL_EXPORTER_OTLP_COMPRESSION="gzip",
        OTEL_SERVICE_NAME="my service",
        OTEL_BSP_SCHEDULE_DELAY="600000",
    )
    served = Served([sys.executable, "-m", "medusa_dist.cli.main"], folder / "serve.yaml", folder, environment)
    try:
        served.read_until("ready after", LIMIT_S)
        yield f"http://127.0.0.1:{port}"
        assert not receiver.exports, "they come from the end of the service"
    finally:
        served.end()


def attributes(span: Any) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in span.attributes}


@pytest.mark.slow
def test_trace_of_a_call_reaches_a_receiver_of_otlp_below_the_callers_span() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="md") as name, Receiver() as receiver:
        with service(Path(name), receiver) as url:
            body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 30, "stream": True, "ignore_eos": True, "seed": 3}
            body |= {"temperature": 0.0, "stream_options": {"include_usage": True}}
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine"}
            reply = httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=LIMIT_S)
            usage = json.loads(reply.text.split("data: ")[-2])["usage"]
            assert reply.status_code == 200 and usage["completion_tokens"] == 30 and usage["prompt_tokens"] > 16
            assert httpx.get(f"{url}/v1/models", timeout=LIMIT_S).status_code == 200
        spans = {span.name: span for span in receiver.spans()}
        assert set(spans) == {"POST /v1/completions", "text_completion tiny", "queue", "prefill", "decode", "stream"}
        assert len(receiver.spans()) == len(spans)
        assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
        call, request = spans["POST /v1/completions"], spans["text_completion tiny"]
        assert call.parent_span_id.hex() == PARENT and request.parent_span_id == call.span_id
        assert attributes(call)["medusa_dist.call.id"] == "mine"
        found = attributes(request)
        counts = (found["gen_ai.usage.input_tokens"], found["gen_ai.usage.output_tokens"])
        assert counts == (usage["prompt_tokens"], 30)
        queue, prefill, decode = (spans[phase] for phase in ("queue", "prefill", "decode"))
        assert request.start_time_unix_nano == queue.start_time_unix_nano
        assert queue.end_time_unix_nano == prefill.start_time_unix_nano
        assert prefill.end_time_unix_nano == decode.start_time_unix_nano < decode.end_time_unix_nano
        assert prefill.start_time_unix_nano < prefill.end_time_unix_nano
        events = [attributes(event) for event in decode.events]
        assert attributes(decode)["medusa_dist.decode.steps"] >= len(events) > 1
        assert all(resource["service.name"] == "my service" for resource in receiver.resources())
        assert receiver.headers[0]["x-tenant"] == "blue"
        assert not any(PROMPT.encode() in export.SerializeToString() for export in receiver.exports)

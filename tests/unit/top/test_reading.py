"""Where `top` reads, and what it says where there is nothing to read."""

import httpx
import pytest

from medusa_dist.errors import ConfigError, EngineError
from medusa_dist.top.reading import Source, parse, url_of
from tests.support.exposition import exposition


@pytest.mark.parametrize(
    ("address", "url"),
    [
        (None, "http://127.0.0.1:8080/metrics"),
        ("10.0.0.1:9000", "http://10.0.0.1:9000/metrics"),
        ("https://llm.example.com/", "https://llm.example.com/metrics"),
        ("http://h:8000/v1", "http://h:8000/metrics"),
        ("http://h:8000/a/metrics", "http://h:8000/a/metrics"),
    ],
)
def test_address_of_a_service_or_a_port_leads_to_its_metrics(address: str | None, url: str) -> None:
    assert url_of(address) == url


@pytest.mark.parametrize("address", ["ftp://h", "http://", "h:0", "http://h:port", "http://[::1"])
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"--address takes HOST:PORT or http"):
        url_of(address)


def test_reading_has_our_samples_summed_and_maximised_by_label() -> None:
    reading = parse(
        exposition(
            {
                "requests": [({"replica": "a"}, 2), ({"replica": "b"}, 3), ({"model": "other"}, 50)],
                "accepted_tokens_total": [({"head": "1"}, 7), ({"head": "2"}, 1), ({"head": "1", "replica": "b"}, 4)],
            }
        ),
        12.0,
    )
    assert reading.at == 12.0 and not list(reading.all("node_cpu"))
    assert reading.sum("requests", model="m")[""] == 5
    assert reading.sum("accepted_tokens_total", by="head", model="m") == {"1": 11, "2": 1}
    assert reading.max("requests", by="replica", model="m") == {"a": 2, "b": 3}


def answering(*answers: httpx.Response | Exception) -> tuple[Source, list[httpx.Request]]:
    asked: list[httpx.Request] = []
    left = list(answers)

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return Source("http://h/metrics", "secret", lambda: 5.0, httpx.MockTransport(handle)), asked


def test_key_is_sent_to_those_who_ask_for_it_and_to_no_one_else() -> None:
    text = exposition({"requests": 1})
    source, asked = answering(httpx.Response(200, text=text))
    assert source.read().at == 5.0 and "authorization" not in asked[0].headers
    source, asked = answering(httpx.Response(401), httpx.Response(200, text=text), httpx.Response(200, text=text))
    source.read()
    source.read()
    assert [request.headers.get("authorization") for request in asked] == [None, "Bearer secret", "Bearer secret"]


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ([httpx.ConnectError("Connection refused")], "http://h/metrics: Connection refused; is the service up"),
        ([httpx.Response(401), httpx.Response(401)], "asks for an API key; set MEDUSA_DIST_API_KEY"),
        ([httpx.Response(404)], "answers 404; --address takes a service or a metrics port"),
    ],
)
def test_no_metrics_are_explained(answers: list[httpx.Response | Exception], error: str) -> None:
    source, _ = answering(*answers)
    with pytest.raises(EngineError, match=error):
        source.read()
    source.close()

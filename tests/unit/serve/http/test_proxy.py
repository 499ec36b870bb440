import asyncio
import contextlib
import json
import os
import threading
import time

import httpx
import pytest
import uvicorn
from uvicorn.config import HTTP_PROTOCOLS

from medusa_dist.api.routes import build_api
from medusa_dist.serve.http.proxy import (
    ENDING_VARIABLE,
    IMPORT_PATH,
    VARIABLE,
    Ending,
    Live,
    configure,
    request_hook,
)
from tests.support.fake_service import FakeService, completion
from tests.support.raw_http import H2C, request, talk

BODY = json.dumps(completion(max_tokens=5)).encode()


@contextlib.contextmanager
def server():
    """uvicorn with the options that Serve gives it, around the routes; its port."""
    config = uvicorn.Config(build_api(FakeService), port=0, log_level=None, log_config=None, lifespan="off")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        while not running.started:
            time.sleep(0.01)
        yield running.servers[0].sockets[0].getsockname()[1]
    finally:
        running.should_exit = True
        thread.join()


@pytest.fixture
def port(monkeypatch):
    monkeypatch.setitem(HTTP_PROTOCOLS, "auto", HTTP_PROTOCOLS["auto"])  # and back afterwards
    configure()
    with server() as number:
        yield number


@pytest.mark.parametrize("together", [False, True])
def test_h2c_upgrade_keeps_its_body_and_the_next_request(port, together):
    call = request("POST", "/v1/completions", H2C, BODY)
    found = talk(port, request("GET", "/v1/models", H2C), call, request("GET", "/health"), call, together=together)
    assert [status for status, *_ in found] == [200] * 4
    assert b"org/tiny" in found[0][2] and found[2][2] == b"ok: decoding"
    for _, headers, body in (found[1], found[3]):
        assert json.loads(body)["usage"]["completion_tokens"] == 5 and "upgrade" not in headers


def test_h2c_upgrade_keeps_a_chunked_body(port):
    half = len(BODY) // 2
    parts = [b"%x\r\n%s\r\n" % (len(part), part) for part in (BODY[:half], BODY[half:])]
    headers = f"{H2C}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
    ((status, _, body),) = talk(port, [*request("POST", "/v1/completions", headers), *parts, b"0\r\n\r\n"])
    assert status == 200 and json.loads(body)["usage"]["completion_tokens"] == 5


def test_lost_body_of_an_upgrade_without_the_hook_is_400(monkeypatch):
    monkeypatch.setitem(HTTP_PROTOCOLS, "auto", HTTP_PROTOCOLS["httptools"])
    with server() as number:
        ((status, _, body),) = talk(number, request("POST", "/v1/completions", H2C, BODY), together=True)
    assert status == 400 and "use HTTP/1.1" in json.loads(body)["error"]["message"]


@pytest.mark.parametrize("path", ["/live", "/live/"])
async def test_proxy_answers_live_without_an_application(path):
    async def nobody(scope, receive, send):
        raise AssertionError("no replica is there")

    transport = httpx.ASGITransport(Live(nobody))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        reply = await client.get(path, headers={"x-request-id": "mine"})
        assert (reply.status_code, reply.text) == (200, "live")
        assert reply.headers.get_list("x-request-id") == ["mine"]
        assert (await client.head(path)).headers["x-request-id"].startswith("req-")


@pytest.mark.parametrize(("method", "path"), [("POST", "/live"), ("GET", "/lively"), ("GET", "/health")])
async def test_proxy_passes_other_requests_to_the_application(method, path):
    transport = httpx.ASGITransport(Live(build_api(FakeService)))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.request(method, path)).status_code == {"/live": 405, "/lively": 404, "/health": 200}[path]


def test_hook_variable_names_configure_and_keeps_a_users_value(monkeypatch):
    module, _, function = IMPORT_PATH.partition(":")
    assert (module, function) == (configure.__module__, configure.__name__)
    monkeypatch.delenv(VARIABLE, raising=False)
    request_hook()
    assert os.environ[VARIABLE] == IMPORT_PATH
    monkeypatch.setenv(VARIABLE, "mine:mine")
    request_hook()
    assert os.environ[VARIABLE] == "mine:mine"


async def test_new_calls_get_503_once_the_service_ends_and_an_open_stream_goes_on(tmp_path):
    file = tmp_path / "ending"
    service = FakeService()
    service.pause_s = 0.05
    transport = httpx.ASGITransport(Ending(build_api(lambda: service), file))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        open_call = asyncio.create_task(client.post("/v1/completions", json=completion(stream=True)))
        while not service.requests:
            await asyncio.sleep(0)
        file.touch()
        for method, path in (("POST", "/v1/completions"), ("GET", "/v1/models")):
            reply = await client.request(method, path, headers={"x-request-id": "mine"})
            assert reply.status_code == 503 and reply.json()["error"]["message"] == "the service is shutting down"
            assert (reply.headers["retry-after"], reply.headers["x-request-id"]) == ("1", "mine")
            assert reply.headers["connection"] == "close"
        health = await client.get("/health")
        assert (health.status_code, health.text) == (503, "the service is shutting down")
        assert (await open_call).text.endswith("data: [DONE]\n\n")


def test_proxies_know_the_ending_only_of_a_service_that_names_a_file(monkeypatch, tmp_path):
    monkeypatch.setitem(HTTP_PROTOCOLS, "auto", HTTP_PROTOCOLS["auto"])
    monkeypatch.setenv(VARIABLE, "kept")
    monkeypatch.delenv(ENDING_VARIABLE, raising=False)
    assert [layer.cls for layer in configure()] == [Live]
    request_hook(tmp_path / "ending")
    assert [layer.cls for layer in configure()] == [Live, Ending]
    assert configure()[1].kwargs == {"file": tmp_path / "ending"}
    monkeypatch.delenv(ENDING_VARIABLE)

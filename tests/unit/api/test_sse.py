import asyncio
import json

import openai
import pytest

from medusa_dist.api import sse
from medusa_dist.api.routes import build_api
from medusa_dist.errors import EngineError, GroupError
from medusa_dist.outputs import FinishReason, Output
from tests.support.fake_service import FakeService, chat, client_of, completion, ids_of

CHAT = "/v1/chat/completions"


def test_an_event_is_one_ascii_line():
    text = sse.event({"a": "line\u2028break\n\u0085é"})
    assert text.isascii() and text.endswith("\n\n") and text.count("\n") == 2
    assert json.loads(text.removeprefix("data: ")) == {"a": "line\u2028break\n\u0085é"}


class Browser:
    """A bare ASGI client: sees each body message when it is sent, and can go at any time."""

    def __init__(self, service, body, broken=False):
        self._broken = broken
        self.gone, self.sent, self.arrived = asyncio.Event(), [], asyncio.Queue()
        self._body = json.dumps(body).encode()
        self._asked = False
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": "POST",
            "path": CHAT,
            "root_path": "",
            "raw_path": CHAT.encode(),
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            "client": ("test", 1),
            "server": ("test", 80),
            "scheme": "http",
        }
        self.task = asyncio.create_task(build_api(lambda: service)(scope, self._receive, self._send))

    async def _receive(self):
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message):
        if self._broken:
            raise OSError("connection reset")
        self.sent.append(message)
        if message.get("body"):
            await self.arrived.put(message["body"].decode())


async def test_the_first_token_is_sent_before_the_second_exists():
    service = FakeService()
    service.hang_after = 1
    browser = Browser(service, chat(stream=True))
    text = await asyncio.wait_for(browser.arrived.get(), 2)
    assert '"content":"Hel"' in text and '"role":"assistant"' in text
    browser.gone.set()
    await asyncio.wait_for(browser.task, 2)


async def test_keep_alive_comments_are_sent_while_no_token_comes(monkeypatch):
    monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.02)
    service = FakeService("x", portion=9)
    service.pause_s = 0.1
    async with client_of(service) as client:
        reply = await client.post(CHAT, json=chat(stream=True))
    assert reply.text.startswith(": keep-alive\n: keep-alive\n") and reply.text.endswith(sse.DONE)
    assert '"content":"x"' in reply.text
    assert "\n\n\n" not in reply.text and ": keep-alive\n\n" not in reply.text, "an empty event"


@pytest.mark.parametrize("ending", ["well", "badly"])
async def test_openais_decoder_sees_no_empty_event_and_the_error(monkeypatch, ending):
    """The decoder of openai-python, which asks for JSON in each event (its issue 2722)."""
    monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.02)
    service = FakeService("xyz", portion=1)
    service.pause_s = 0.1
    service.between = EngineError("draining") if ending == "badly" else None
    async with client_of(service) as client:
        reply = await client.post(CHAT, json=chat(stream=True))
    found = list(openai._streaming.SSEDecoder().iter_bytes(iter([reply.content])))
    assert [event.data for event in found][-1] == "[DONE]"
    assert all("choices" in event.json() or "error" in event.json() for event in found[:-1])
    assert ("error" in found[-2].json()) == (ending == "badly")


@pytest.mark.parametrize("route", [CHAT, "/v1/completions"])
@pytest.mark.parametrize("limit", [100, 4], ids=["stop", "length"])
async def test_text_and_finish_reason_never_share_a_chunk(route, limit):
    """All tokens come in one output, with their logprobs."""
    make = chat if route == CHAT else completion
    logprobs = {"logprobs": True} if route == CHAT else {"logprobs": 0}
    async with client_of(FakeService("Hello", portion=99)) as client:
        reply = await client.post(route, json=make(stream=True, max_tokens=limit, **logprobs))
    lines = [line.removeprefix("data: ") for line in reply.text.split("\n\n")[:-2]]
    choices = [json.loads(line)["choices"][0] for line in lines]
    texts = [c["delta"].get("content", "") if route == CHAT else c["text"] for c in choices]
    assert "".join(texts) == "Hello"[:limit]
    assert [c["finish_reason"] for c in choices] == [None] * (len(choices) - 1) + ["stop" if limit == 100 else "length"]
    assert texts[-1] == "" and not (choices[-1]["logprobs"] or {}).get("tokens")
    scored = choices[-2]["logprobs"]["content" if route == CHAT else "tokens"]
    assert len(scored) == min(limit, 6)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("hang_after", [0, 1], ids=["queued", "running"])
async def test_client_disconnect_aborts_all_its_requests(stream, hang_after):
    service = FakeService()
    service.hang_after = hang_after
    browser = Browser(service, chat(stream=stream, n=3))
    while len(service.requests) < 3:
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    assert not service.aborted
    browser.gone.set()
    await asyncio.wait_for(browser.task, 2)
    assert sorted(service.aborted) == sorted(r.request_id for r in service.requests)
    if not stream:
        assert browser.sent[0]["status"] == 499


@pytest.mark.parametrize("stream", [True, False])
async def test_cancelled_handler_aborts_its_requests_and_leaves_no_task(stream):
    service = FakeService()
    service.hang_after = 1
    browser = Browser(service, chat(stream=stream, n=2))
    while len(service.requests) < 2:
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    browser.task.cancel()
    await asyncio.wait([browser.task])
    await asyncio.sleep(0.01)
    assert sorted(service.aborted) == sorted(r.request_id for r in service.requests)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_connection_broken_at_the_first_byte_aborts_the_request():
    service = FakeService()
    service.hang_after = 1
    browser = Browser(service, chat(stream=True), broken=True)
    await asyncio.wait([browser.task], timeout=2)
    assert browser.task.exception() is not None
    assert service.aborted == [service.requests[0].request_id]


async def test_engine_error_in_mid_stream_is_an_error_event_before_done():
    for error, text in ((EngineError("draining", 2), "draining"), (GroupError("rank 1"), "the model is restarting")):
        service = FakeService()
        service.between = error
        async with client_of(service) as client:
            reply = await client.post(CHAT, json=chat(stream=True, stream_options={"include_usage": True}))
        assert reply.status_code == 200
        *_, last, done = reply.text.strip().split("\n\n")
        last = json.loads(last.removeprefix("data: "))
        assert text in last["error"]["message"] and set(last["error"]) == {"message", "type", "param", "code"}
        assert done == "data: [DONE]" and '"usage":{' not in reply.text


async def test_exception_in_mid_stream_shows_the_request_id_and_no_internals(caplog):
    service = FakeService()
    service.between = RuntimeError("secret path")
    async with client_of(service) as client:
        reply = await client.post(CHAT, json=chat(stream=True), headers={"x-request-id": "abc-2"})
    assert "secret" not in reply.text and "abc-2" in reply.text
    assert "secret path" in caplog.text


@pytest.mark.parametrize("ending", ["abort", "no finish reason"])
async def test_output_that_ends_aborted_or_unfinished_is_503(ending):
    class Broken(FakeService):
        async def generate(self, request):
            reason = FinishReason.ABORT if ending == "abort" else None
            yield Output(request_id=request.request_id, token_ids=ids_of("x"), heads=(0,), finish_reason=reason)

    async with client_of(Broken()) as client:
        reply = await client.post(CHAT, json=chat())
    assert reply.status_code == 503 and "send it again" in reply.json()["error"]["message"]

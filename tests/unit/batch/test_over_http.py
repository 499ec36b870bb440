"""Over HTTP each line gets an answer or an error of its own, whatever stands between; a lost service ends the job."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from medusa_dist.batch import over_http as module
from medusa_dist.batch.over_http import HttpSender
from medusa_dist.errors import EngineError
from medusa_dist.storage.batch_lines import NO_RESPONSE, RawLine, parse_line
from tests.support.batch_lines import BODY, line

OK = (200, b'{"choices": []}')


@pytest.fixture
def service():
    """reply(custom id as in the body's user, n): (status, body) of the nth call, or None: the connection breaks."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["content-length"]))
            name = json.loads(data)["user"]
            server.calls.append(name)
            server.bodies[name] = data
            answer = server.reply(name, server.calls.count(name))
            if answer is None:
                self.close_connection = True
                self.connection.close()
                return
            self.send_response(answer[0])
            self.send_header("content-length", str(len(answer[1])))
            self.send_header("x-request-id", f"req-{name}")
            self.end_headers()
            self.wfile.write(answer[1])

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.calls, server.bodies = [], {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "MAX_PAUSE_S", 0.02)
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.02)


def send(service, names, reply) -> dict:
    service.reply = reply
    lines = [line(name, body={**BODY, "user": name}) for name in names]
    parsed = [parse_line(RawLine(k, json.dumps(one).encode()), 0) for k, one in enumerate(lines)]
    answers = {}
    sender = HttpSender(f"http://127.0.0.1:{service.server_port}", 2)
    sender.send(iter(parsed), lambda answer: answers.__setitem__(answer.custom_id, answer))
    return answers


def test_a_full_service_is_waited_for(service):
    answers = send(service, "ab", lambda name, n: OK if n > 5 else (429, b'{"error": {"message": "full"}}'))
    assert [a.status for a in answers.values()] == [200, 200] and service.calls.count("a") == 6
    assert answers["a"].request_id == "req-a" and answers["a"].body == {"choices": []}


def test_a_line_that_is_always_refused_as_too_many_ends_in_the_refusal(service, monkeypatch):
    monkeypatch.setattr(module, "BUSY_S", 0.2)
    full = (429, b'{"error": {"message": "retry later", "type": "rate_limit_error", "param": null, "code": null}}')
    answers = send(service, "abcd", lambda name, n: full if name == "b" else OK)
    assert {name: answer.status for name, answer in answers.items()} == {"a": 200, "b": 429, "c": 200, "d": 200}
    assert answers["b"].record()["error"] == {"code": "rate_limit_error", "message": "retry later"}
    assert service.calls.count("b") > 2


@pytest.mark.parametrize("reply", [(413, b"<html>too large"), (500, b"oops"), (404, b""), (400, b"[1]")])
def test_an_answer_without_json_is_the_lines_error_at_once(service, reply):
    answers = send(service, "abc", lambda name, n: reply if name == "b" else OK)
    assert [answers[name].status for name in "abc"] == [200, reply[0], 200] and service.calls.count("b") == 1
    assert f"status {reply[0]} without a JSON object" in answers["b"].record()["error"]["message"]


def test_a_success_without_json_is_none(service):
    answers = send(service, "ab", lambda name, n: (200, b"<html>log in") if name == "b" else OK)
    assert answers["b"].status == NO_RESPONSE and not answers["b"].is_ok
    assert "log in" in answers["b"].record()["error"]["message"] and answers["b"].record()["response"] is None


@pytest.mark.parametrize("reply", [None, (502, b"bad gateway"), (503, b""), (504, b"")])
def test_a_break_is_bridged(service, reply):
    answers = send(service, "ab", lambda name, n: OK if n > 2 else reply)
    assert [a.status for a in answers.values()] == [200, 200]


@pytest.mark.parametrize("reply", [None, (502, b"bad gateway")])
def test_a_line_that_always_breaks_fails_alone_while_others_are_answered(service, monkeypatch, reply):
    monkeypatch.setattr(module, "PATIENCE_S", 0.3)
    names = ["poison", *(f"x{i}" for i in range(40))]

    def answer(name: str, n: int):
        if name == "poison":
            return reply
        threading.Event().wait(0.02)
        return OK

    answers = send(service, names, answer)
    assert (
        answers["poison"].status == NO_RESPONSE and "no response in 0.3 s" in answers["poison"].body["error"]["message"]
    )
    assert len(answers) == 41 and sum(a.status == 200 for a in answers.values()) == 40


def test_a_service_that_is_gone_ends_the_job(service, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE_S", 0.3)
    with pytest.raises(EngineError, match=r"could not be reached for 0.3 s: .*; use --resume to continue"):
        send(service, "abc", lambda name, n: OK if name == "a" else None)


def test_text_that_is_no_unicode_is_sent_as_it_was_written(service):
    service.reply = lambda name, n: OK
    body = b'{"custom_id": "\\ud800", "url": "/v1/completions", "body": {"user": "u", "prompt": "\\ud83d x"}}'
    answers = []
    sender = HttpSender(f"http://127.0.0.1:{service.server_port}", 1)
    sender.send(iter([parse_line(RawLine(1, body), 0)]), answers.append)
    assert answers[0].status == 200 and rb'"prompt": "\ud83d x"' in service.bodies["u"]
    assert json.loads(json.dumps(answers[0].record()))["custom_id"] == "\ud800"

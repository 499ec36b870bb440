"""Lines of batch files, a sender of them, and reading what a job wrote."""

import json

from medusa_dist.storage.batch_lines import LineAnswer

BODY = {"model": "m", "prompt": "x"}


def line(custom_id: str = "a", **changes) -> dict:
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": BODY, **changes}


def write(path, lines) -> None:
    path.write_bytes(b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines))


def records(path) -> list[dict]:
    return [json.loads(raw) for raw in path.read_text().splitlines()]


class FakeSender:
    """behave(line, n): what the nth sending of a line gives: a status, None = nothing comes, or an exception."""

    def __init__(self, behave=lambda line, n: 200, fingerprint="f"):
        self.behave, self.fingerprint = behave, fingerprint
        self.sent: list[str] = []

    def describe(self):
        return {"system_fingerprint": self.fingerprint}

    def send(self, lines, deliver):
        for one in lines:
            self.sent.append(one.custom_id)
            status = self.behave(one, self.sent.count(one.custom_id))
            if isinstance(status, BaseException):
                raise status
            if status is not None:
                ok = {"system_fingerprint": self.fingerprint, "seed": one.body["seed"]}
                body = ok if status == 200 else {"error": {"message": "no", "type": "t", "code": None}}
                deliver(LineAnswer(one.id, one.custom_id, status, "r", body))

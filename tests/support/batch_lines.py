"""Lines of batch files, and reading what a job wrote."""

import json

BODY = {"model": "m", "prompt": "x"}


def line(custom_id: str = "a", **changes) -> dict:
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": BODY, **changes}


def write(path, lines) -> None:
    path.write_bytes(b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines))


def records(path) -> list[dict]:
    return [json.loads(raw) for raw in path.read_text().splitlines()]

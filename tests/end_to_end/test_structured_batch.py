"""Structured output in batch jobs: each line's text fits what the line asked for, and a wrong form fails its line only.

From the JSONL file through the job, HTTP or Ray Data, the API and the engine, to the output file. A tiny model.
"""

import io
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jsonschema
import pytest
import uvicorn
from ray import serve
from rich.console import Console

from medusa_dist import LLM
from medusa_dist.api.routes import build_api
from medusa_dist.app import DEPLOYMENT, build_app
from medusa_dist.batch.job import Sender, run_batch
from medusa_dist.batch.over_http import HttpSender
from medusa_dist.batch.over_serve import ServeSender
from medusa_dist.config import parse_config
from tests.support.batch_lines import records, write
from tests.support.engine_service import EngineService
from tests.support.tiny_llm import TREE, save_llm

pytestmark = pytest.mark.usefixtures("one_thread")
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["cat", "dog", 7]},
        "seen": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2},
        "n": {"type": "integer", "minimum": 0, "maximum": 31},
    },
    "required": ["kind", "seen", "n"],
    "additionalProperties": False,
}
DATE = "[0-9]{4}-[0-9]{2}"
CHOICES = ["positive", "négatif", "日本"]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def form(schema: object) -> dict:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def outputs(**kind: object) -> dict:
    return {"structured_outputs": kind}


def fits_schema(text: str) -> bool:
    jsonschema.validate(json.loads(text), SCHEMA)
    return True


GOOD = {
    "chat, response_format": (CHAT, form(SCHEMA), fits_schema),
    "chat, json": (CHAT, outputs(json=SCHEMA), fits_schema),
    "json as text": (COMPLETIONS, outputs(json=json.dumps(SCHEMA)), fits_schema),
    "regex": (COMPLETIONS, outputs(regex=DATE), re.compile(DATE).fullmatch),
    "choice": (COMPLETIONS, outputs(choice=CHOICES), CHOICES.__contains__),
    "grammar": (CHAT, outputs(grammar='root ::= "<" [ab]{1,3} ">"'), re.compile("<[ab]{1,3}>").fullmatch),
}
BAD = {
    "invalid type": (CHAT, form({"type": "nonsense"}), "response_format"),
    "no schema": (CHAT, {"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    "unsupported keyword": (CHAT, form({"type": "array", "uniqueItems": True}), "uniqueItems"),
    "no JSON": (COMPLETIONS, outputs(json="{"), "structured_outputs: the schema is not valid JSON"),
    "unclosed group": (COMPLETIONS, outputs(regex="(a"), "structured_outputs: this regex cannot be used"),
    "two kinds": (CHAT, outputs(regex="a", choice=["b"]), "exactly one of"),
    "unserved option": (CHAT, {"guided_json": SCHEMA, "guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
}


def job() -> list[dict]:
    """Good lines in three ways of sampling, with one that nothing binds, and the wrong ones in between."""
    lines = []
    for number, (name, (url, fields, _)) in enumerate({**GOOD, "free": (CHAT, {}, None), **BAD}.items()):
        for way in ({"temperature": 0}, {"temperature": 0.8}, {"temperature": 1.0, "top_p": 0.9}):
            body = {"model": "tiny", "max_tokens": 90 if name != "free" else 9, **fields, **way}
            body |= {"messages": [{"role": "user", "content": "hi"}]} if url == CHAT else {"prompt": "the cat"}
            custom_id = f"{name}/{len(lines)}"
            lines.append({"custom_id": custom_id, "method": "POST", "url": url, "body": body})
            if name in BAD:
                break
        if number % 2:
            lines.insert(0, lines.pop())
    return lines


def run(sender: Sender, folder: Path) -> dict[str, dict]:
    """The output lines, by custom_id; all that must hold of them is checked."""
    lines = job()
    write(folder / "in.jsonl", lines)
    counts = run_batch(
        folder / "in.jsonl", folder / "out.jsonl", lambda: sender, Console(file=io.StringIO()), 4, "refuse"
    )
    found = {record["custom_id"]: record for record in records(folder / "out.jsonl")}
    assert (counts.num_lines, counts.num_failed) == (len(lines), len(BAD)) and len(found) == len(lines)
    assert set(found) == {line["custom_id"] for line in lines}
    for name, record in found.items():
        kind = name.split("/")[0]
        if kind in BAD:
            assert record["response"]["status_code"] == 400 and BAD[kind][2] in record["error"]["message"], record
            assert (
                record["error"]["code"] and record["error"]["message"] == record["response"]["body"]["error"]["message"]
            )
            continue
        assert record["error"] is None and record["response"]["status_code"] == 200, record
        (choice,) = record["response"]["body"]["choices"]
        if kind != "free":
            text = choice["text"] if "text" in choice else choice["message"]["content"]
            assert choice["finish_reason"] == "stop" and GOOD[kind][2](text), text
    return found


def said(found: dict[str, dict]) -> dict[str, object]:
    """What was answered, without what differs from call to call."""
    return {
        name: (record["error"], record["response"]["body"].get("choices")) for name, record in sorted(found.items())
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llm(tmp_path_factory.mktemp("bytes"), 256)


@pytest.fixture(scope="module")
def plain(folder: Path, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> dict[str, dict]:
    """The job's output lines by a service without speculation."""
    with served(folder, "off") as (url, _):
        return run(HttpSender(url, None), tmp_path_factory.mktemp("off"))


@contextmanager
def served(folder: Path, speculation: object) -> Iterator[tuple[str, LLM]]:
    """A URL where the tiny model answers, and its LLM."""
    keys = {"kv_cache_tokens": 2048, "max_running": 6, "heads": str(folder / "heads")}
    with LLM(str(folder), speculation=speculation, **keys) as llm:
        listener = socket.create_server(("127.0.0.1", 0))
        service = EngineService(llm)
        server = uvicorn.Server(uvicorn.Config(build_api(lambda: service), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", llm
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize("speculation", ["auto", TREE], ids=["auto", "static"])
def test_each_batch_line_fits_its_grammar_and_an_invalid_one_fails_alone(
    folder: Path, plain: dict[str, dict], speculation: object, tmp_path: Path
) -> None:
    with served(folder, speculation) as (url, llm):
        found = run(HttpSender(url, None), tmp_path)
        assert llm.engine.stats().num_drafted > 0
    assert said(found) == said(plain)


@pytest.fixture
def app_of_two_ranks(ray_cluster: object, folder: Path) -> Iterator[str]:
    """The real service on Ray, over two ranks."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    keys = {"kv_cache_tokens": 2048, "max_running": 6, "heads": {"source": str(folder / "heads")}, "dtype": "float32"}
    ranks = {"tensor_parallel_size": 2, "resources": {"cpus_per_rank": 0.5, "threads_per_rank": 1, "front_cpus": 0.5}}
    config = parse_config({"model": str(folder), "served_model_name": "tiny", "device": "cpu", **keys, **ranks})
    serve.run(build_app(config), name="batch", route_prefix="/")
    yield "batch"
    serve.delete("batch")
    serve.shutdown()


@pytest.mark.slow  # two processes that load torch
def test_two_ranks_on_ray_answer_as_one_rank_without_speculation(
    app_of_two_ranks: str, plain: dict[str, dict], tmp_path: Path
) -> None:
    found = run(ServeSender(app_of_two_ranks, DEPLOYMENT, None, print), tmp_path)
    assert said(found) == said(plain)

"""The batch flow of the real `openai` client, unchanged, on a tiny model with heads: also over a restart."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest

from medusa_dist import LLM
from tests.support.batch_server import Application, store_in, wait_until
from tests.support.engine_service import EngineService
from tests.support.http_server import serving
from tests.support.tiny_llm import TREE, save_llm

pytestmark = pytest.mark.usefixtures("one_thread")
KEY = "s3cret"
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> EngineService:
    folder = save_llm(tmp_path_factory.mktemp("bytes"))
    keys = {"kv_cache_tokens": 1024, "max_batched_tokens": 16, "max_running": 4}
    return EngineService(LLM(str(folder), heads=str(folder / "heads"), speculation=TREE, **keys))


@contextmanager
def server(service: EngineService, folder: Path) -> Iterator[tuple[openai.OpenAI, Application]]:
    """A server over the folder, and its client."""
    app = Application(service, store_in(folder), api_key=KEY)
    with serving(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=20) as client:
        yield client, app


def chat(number: int, max_tokens: int) -> dict:
    body = {"model": "tiny", "messages": [{"role": "user", "content": f"say {number}"}], "max_tokens": max_tokens}
    return {"custom_id": f"id{number}", "method": "POST", "url": CHAT, "body": body | {"temperature": 0}}


def write(folder: Path, lines: list[dict]) -> Path:
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def submit(client: openai.OpenAI, path: Path) -> openai.types.Batch:
    with path.open("rb") as file:
        uploaded = client.files.create(file=file, purpose="batch")
    return client.batches.create(
        input_file_id=uploaded.id, endpoint=CHAT, completion_window="24h", metadata={"job": "nightly"}
    )


def finished(client: openai.OpenAI, batch_id: str) -> openai.types.Batch:
    def over() -> openai.types.Batch | None:
        batch = client.batches.retrieve(batch_id)
        return batch if batch.status in ("completed", "failed", "cancelled", "expired") else None

    return wait_until(over, 60.0)


def records(client: openai.OpenAI, file_id: str) -> dict[str, dict]:
    lines = [json.loads(line) for line in client.files.content(file_id).text.splitlines()]
    assert len({line["custom_id"] for line in lines}) == len(lines), "a line occurs twice"
    return {line["custom_id"]: line for line in lines}


def test_batch_runs_over_a_restart_and_its_answers_are_those_of_http(service, tmp_path):
    lines = [chat(number, 40) for number in range(12)] + [chat(99, 10_000)]
    with server(service, tmp_path / "store") as (client, app):
        batch = submit(client, write(tmp_path, lines))
        assert batch.status == "validating" and batch.metadata == {"job": "nightly"}
        wait_until(lambda: app.worker.counts.lines[True] >= 3)
    with server(service, tmp_path / "store") as (client, app):
        assert client.batches.retrieve(batch.id).status == "in_progress"
        batch = finished(client, batch.id)
        assert len(app.worker.sent) <= len(lines) - 3, "finished lines are not processed again"
        assert batch.status == "completed" and batch.errors is None
        counts = batch.request_counts
        assert (counts.total, counts.completed, counts.failed) == (13, 12, 1)
        output, errors = records(client, batch.output_file_id), records(client, batch.error_file_id)
        assert output.keys() == {f"id{number}" for number in range(12)} and errors.keys() == {"id99"}
        assert errors["id99"]["response"]["body"]["error"]["code"] == "context_length_exceeded"
        for number in (0, 11):
            there = client.chat.completions.create(**lines[number]["body"])
            assert output[f"id{number}"]["response"]["body"]["choices"][0]["message"]["content"] == (
                there.choices[0].message.content
            )
        assert [one.id for one in client.batches.list(limit=1)] == [batch.id]
        assert client.files.retrieve(batch.output_file_id).purpose == "batch_output"
        assert {one.id for one in client.files.list()} == {
            batch.input_file_id,
            batch.output_file_id,
            batch.error_file_id,
        }
        assert client.files.delete(batch.input_file_id).deleted


def test_cancel_keeps_finished_lines_and_a_malformed_file_fails_by_line(service, tmp_path):
    with server(service, tmp_path / "store") as (client, app):
        batch = submit(client, write(tmp_path, [chat(number, 60) for number in range(40)]))
        wait_until(lambda: app.worker.counts.lines[True] >= 2)
        assert client.batches.cancel(batch.id).status == "cancelling"
        batch = finished(client, batch.id)
        assert batch.status == "cancelled" and batch.cancelling_at <= batch.cancelled_at <= time.time()
        output, errors = records(client, batch.output_file_id), records(client, batch.error_file_id)
        assert len(output) >= 2 and len(output) + len(errors) == 40 and not output.keys() & errors.keys()
        with pytest.raises(openai.ConflictError, match="Cannot cancel a batch with status 'cancelled'"):
            client.batches.cancel(batch.id)
        bad = submit(client, write(tmp_path, [chat(1, 5), chat(1, 5), {"custom_id": "x"}]))
        bad = finished(client, bad.id)
        assert bad.status == "failed" and bad.failed_at and bad.output_file_id is None
        assert [(e.line, e.code, e.param) for e in bad.errors.data] == [
            (2, "duplicate_custom_id", "custom_id"),
            (3, "missing_required_parameter", "url"),
        ]

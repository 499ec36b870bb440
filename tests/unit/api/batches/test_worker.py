"""The worker: every line once, whatever happens in the middle."""

import asyncio
import errno
import json
import uuid
from contextlib import asynccontextmanager

import pytest

from medusa_dist.api.batches import run as run_module
from medusa_dist.api.batches import worker as worker_module
from medusa_dist.errors import EngineError, StorageError
from medusa_dist.storage.batch_record import BatchRecord
from medusa_dist.storage.pages import new_id
from tests.support.batch_lines import line
from tests.support.batch_server import POLL_S, Counts, store_in, worker_of
from tests.support.fake_service import FakeService, completion

MANY = [line(f"l{i}", body=completion(max_tokens=5)) for i in range(20)]


@pytest.fixture(params=["folder", "url"])
def store(request, tmp_path, monkeypatch):
    monkeypatch.setattr("medusa_dist.storage.remote_folder.SETTLE_S", 0.0)
    return store_in(tmp_path if request.param == "folder" else f"memory://{uuid.uuid4().hex}")


@pytest.fixture
def local(tmp_path):
    return store_in(tmp_path)


@pytest.fixture
def service():
    return FakeService(portion=1000)


def put(store, lines, **changes):
    """A batch of these lines."""
    data = b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines)
    file = store.files.upload("t", "in.jsonl", [data], len(data))
    now = store.batches.clock()
    given = {
        "id": new_id("batch_"),
        "tenant": "t",
        "endpoint": "/v1/completions",
        "input_file_id": file.id,
        "completion_window": "24h",
        "created_at": int(now),
        "expires_at": int(now) + 86400,
    }
    batch = BatchRecord(**{**given, **changes})
    store.batches.create(batch)
    return batch.id


def content(store, file_id):
    return [] if file_id is None else [json.loads(raw) for raw in store.files.open("t", file_id)]


def results(store, batch_id):
    """(batch, lines of the output file, lines of the error file)."""
    batch = store.batches.get("t", batch_id).public()
    return batch, content(store, batch["output_file_id"]), content(store, batch["error_file_id"])


@asynccontextmanager
async def working(store, service, **more):
    worker = worker_of(store, service, **more)
    worker.start()
    try:
        yield worker
    finally:
        await worker.stop()


async def until(condition, seconds=20.0):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def over(store, batch_id):
    await until(lambda: store.batches.get("t", batch_id).is_over)
    return results(store, batch_id)


def names(records):
    return sorted(record["custom_id"] for record in records)


async def test_good_and_bad_lines_go_to_their_files_with_the_answers_of_http(store, service):
    lines = [
        line("good", body=completion(max_tokens=5)),
        line("bad", body=completion(temperature=-1)),
        line("lost", body={"model": "nobody", "prompt": "x"}),
    ]
    batch_id = put(store, lines)
    observer = Counts()
    async with working(store, service, observer=observer):
        batch, good, bad = await over(store, batch_id)
        await until(lambda: not observer.states)
    assert batch["status"] == "completed" and batch["request_counts"] == {"total": 3, "completed": 1, "failed": 2}
    assert None not in (batch["in_progress_at"], batch["finalizing_at"], batch["completed_at"])
    assert names(good) == ["good"] and good[0]["response"]["body"]["choices"][0]["text"] == "Hello"
    assert good[0]["error"] is None and good[0]["response"]["status_code"] == 200 and good[0]["response"]["request_id"]
    assert {r["custom_id"]: (r["response"]["status_code"], r["error"]) for r in bad} == {
        "bad": (400, None),
        "lost": (404, None),
    }
    assert {r["response"]["body"]["error"]["param"] for r in bad} == {"temperature", "model"}
    assert observer.lines == {True: 1, False: 2} and observer.ended == {"completed": 1}
    assert list(store.batches.open_batches()) == [] and store.files.folder.names("journals") == []


async def test_file_without_a_line_of_its_kind_is_not_made(local, service):
    batch_id = put(local, [line("a", body=completion(temperature=-1))])
    async with working(local, service):
        batch, _, bad = await over(local, batch_id)
    assert batch["output_file_id"] is None and len(bad) == 1
    assert batch["status"] == "completed", "as with OpenAI, failed lines do not fail the batch"


async def test_malformed_input_fails_the_batch_before_a_line_is_sent(store, service):
    batch_id = put(store, [line("a", body=completion()), b"{"])
    async with working(store, service) as worker:
        batch, *_ = await over(store, batch_id)
        assert worker.sent == []
    assert batch["status"] == "failed" and batch["failed_at"] and batch["output_file_id"] is None
    assert [(e["code"], e["line"], e["param"]) for e in batch["errors"]["data"]] == [("invalid_json_line", 2, None)]


async def test_lines_of_all_three_routes_run(local, service):
    message = [{"role": "user", "content": "Hi"}]
    bodies = {
        "/v1/completions": completion(max_tokens=5),
        "/v1/chat/completions": {"model": service.name, "messages": message},
        "/v1/responses": {"model": service.name, "input": "Hi"},
    }
    ids = {url: put(local, [line("a", url=url, body=body)], endpoint=url) for url, body in bodies.items()}
    async with working(local, service):
        found = {url: await over(local, batch_id) for url, batch_id in ids.items()}
    kinds = {url: good[0]["response"]["body"]["object"] for url, (_, good, _) in found.items()}
    assert kinds == {
        "/v1/completions": "text_completion",
        "/v1/chat/completions": "chat.completion",
        "/v1/responses": "response",
    }


async def test_restart_in_the_middle_neither_repeats_nor_loses_nor_doubles_a_line(store, service):
    service.pause_s = 0.02
    batch_id = put(store, MANY)
    async with working(store, service) as first:
        await until(lambda: first.counts.lines[True] >= 6)
    assert store.batches.get("t", batch_id).status == "in_progress"
    finished = {
        json.loads(one.record)["custom_id"] for one in store.batches.journal(store.batches.get("t", batch_id)).lines()
    }
    assert 6 - 4 <= len(finished) < 20
    async with working(store, service) as second:
        batch, good, _ = await over(store, batch_id)
    assert names(good) == names(MANY) and batch["request_counts"] == {"total": 20, "completed": 20, "failed": 0}
    assert len(second.sent) == 20 - len(finished)
    seeds = {}
    for _, body in (*first.sent, *second.sent):
        seeds.setdefault(body["seed"], []).append(body)
    assert len(seeds) == 20, "a line that is sent again has the seed that it had"


async def test_crash_while_files_are_written_writes_the_same_files_again(local, service, monkeypatch):
    batch_id = put(local, MANY[:3])
    real, calls = local.files.write, []

    def dies(*args):
        calls.append(args)
        if len(calls) == 1:
            raise StorageError("the store is gone")
        return real(*args)

    monkeypatch.setattr(local.files, "write", dies)
    monkeypatch.setattr(worker_module, "PAUSES_S", (0.01,))
    async with working(local, service) as worker:
        batch, good, _ = await over(local, batch_id)
    assert len(worker.sent) == 3 and names(good) == ["l0", "l1", "l2"]
    assert calls[0][1] == calls[1][1] == batch["output_file_id"] and batch["errors"] is None
    assert len(local.files.listed("t", purpose="batch_output", after=None, limit=9, order="desc").entries) == 1


async def test_cancelled_batch_keeps_finished_lines_and_names_the_others(store, service):
    batch_id = put(store, MANY)
    service.pause_s = 0.02
    async with working(store, service) as worker:
        await until(lambda: worker.counts.lines[True] >= 5)
        assert store.batches.cancel("t", batch_id).status == "cancelling"
        batch, good, bad = await over(store, batch_id)
        await until(lambda: service.num_here == 0)
    assert batch["status"] == "cancelled" and batch["cancelling_at"] and batch["cancelled_at"]
    assert 1 <= len(good) < 20 and names([*good, *bad]) == names(MANY)
    assert {record["error"]["code"] for record in bad} == {"batch_cancelled"}
    assert batch["request_counts"] == {"total": 20, "completed": len(good), "failed": len(bad)}


async def test_batch_that_is_cancelled_before_it_began_has_no_files(local, service):
    batch_id = put(local, MANY)
    local.batches.cancel("t", batch_id)
    async with working(local, service) as worker:
        batch, *_ = await over(local, batch_id)
        assert worker.sent == []
    assert batch["status"] == "cancelled" and batch["output_file_id"] is batch["error_file_id"] is None


async def test_batch_whose_window_is_over_expires_with_what_it_has(local, service):
    service.hang_after = 0
    batch_id = put(local, MANY[:3], expires_at=int(local.batches.clock()) + 1)
    async with working(local, service):
        batch, good, bad = await over(local, batch_id)
    assert batch["status"] == "expired" and batch["finalizing_at"] and batch["expired_at"] and not good
    assert {record["error"]["code"] for record in bad} == {"batch_expired"} and len(bad) == 3


async def test_output_files_expire_as_the_batch_asks(local, service):
    batch_id = put(local, MANY[:1], output_expires_after_s=3600)
    async with working(local, service):
        batch, *_ = await over(local, batch_id)
    output = local.files.get("t", batch["output_file_id"])
    assert output.expires_at == output.created_at + 3600 and output.purpose == "batch_output"


async def test_of_two_workers_only_one_runs_and_the_other_takes_over(store, service):
    service.pause_s = 0.2
    first, second = worker_of(store, service), worker_of(store, service)
    first.start()
    batch_id = put(store, MANY)
    await until(lambda: first.counts.lines[True] >= 5)
    second.start()
    await asyncio.sleep(10 * POLL_S)
    assert second.sent == []
    await first.stop()
    _, good, _ = await over(store, batch_id)
    await second.stop()
    assert second.sent and names(good) == names(MANY)


async def test_line_that_the_model_cannot_process_gets_three_tries_while_it_restarts(local, service, monkeypatch):
    monkeypatch.setattr(run_module, "PAUSE_S", 0.01)
    service.before = EngineError("the group failed")
    batch_id = put(local, MANY[:1])
    async with working(local, service) as worker:
        _, _, bad = await over(local, batch_id)
    assert len(worker.sent) == 3 and bad[0]["response"]["status_code"] == 503


async def test_nothing_is_sent_while_the_model_is_not_ready(local, service):
    service.state = type(service.state)(False, "restarting")
    batch_id = put(local, MANY[:1])
    async with working(local, service) as worker:
        await until(lambda: local.batches.get("t", batch_id).status == "in_progress")
        await asyncio.sleep(5 * POLL_S)
        assert worker.sent == []


async def test_full_disk_is_said_in_the_batch_and_waited_for(local, service, monkeypatch):
    monkeypatch.setattr(worker_module, "PAUSES_S", (0.05,))
    batch_id = put(local, MANY[:4])
    real = type(local.files.folder).append
    is_full = True

    def append(self, name, data):
        if is_full:
            raise self._trouble("write", OSError(errno.ENOSPC, "No space left on device"))
        real(self, name, data)

    monkeypatch.setattr(type(local.files.folder), "append", append)
    async with working(local, service):
        await until(lambda: local.batches.get("t", batch_id).errors)
        waiting = local.batches.get("t", batch_id)
        assert waiting.status == "in_progress" and waiting.errors[0].code == "storage_unavailable"
        assert "No space left on device" in waiting.errors[0].message
        is_full = False
        batch, good, _ = await over(local, batch_id)
    assert batch["status"] == "completed" and batch["errors"] is None and names(good) == ["l0", "l1", "l2", "l3"]


async def test_a_bug_fails_the_batch_after_some_tries_and_keeps_what_is_finished(local, service, monkeypatch):
    monkeypatch.setattr(worker_module, "PAUSES_S", (0.01,))
    batch_id = put(local, MANY[:3])
    worker = worker_of(local, service, num_places=1)
    real = worker._lines.send

    async def send(url, body):
        if worker.counts.lines[True] >= 1:
            raise ZeroDivisionError
        return await real(url, body)

    worker._lines = type(worker._lines)(send, lambda: True, asyncio.Semaphore(1))
    worker.start()
    batch, good, bad = await over(local, batch_id)
    await worker.stop()
    assert batch["status"] == "failed" and batch["errors"]["data"][0]["code"] == "internal_error"
    assert names(good) == ["l0"] and {r["error"]["code"] for r in bad} == {"batch_failed"} and len(bad) == 2


async def test_input_that_is_gone_fails_the_batch(local, service, monkeypatch):
    batch_id = put(local, MANY[:1])
    local.files.delete("t", local.batches.get("t", batch_id).input_file_id)
    async with working(local, service):
        batch, *_ = await over(local, batch_id)
    assert batch["errors"]["data"][0]["code"] == "file_not_found"


async def test_batches_run_side_by_side_so_that_a_short_one_overtakes_a_long_one(local, service):
    service.pause_s = 0.02
    long, short = put(local, MANY), put(local, MANY[:2])
    async with working(local, service, num_places=2):
        await over(local, short)
        assert not local.batches.get("t", long).is_over
        await over(local, long)

"""The routes of batches over HTTP: what is refused before a batch exists, pages, and what belongs to whom."""

from contextlib import asynccontextmanager

import httpx
import pytest

from medusa_dist.api.batches.schema import window_s
from medusa_dist.api.routes import build_api
from tests.support.batch_server import store_in
from tests.support.fake_service import FakeService

URL = "/v1/completions"


@pytest.fixture
def store(tmp_path):
    return store_in(tmp_path)


@asynccontextmanager
async def client_of(store, key=None):
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    transport = httpx.ASGITransport(build_api(FakeService, key, store=store), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
        yield client


@pytest.fixture
async def client(store):
    async with client_of(store) as client:
        yield client


async def upload(client):
    reply = await client.post("/v1/files", files={"file": ("a.jsonl", b"{}")}, data={"purpose": "batch"})
    return reply.json()["id"]


async def create(client, file_id, **changes):
    body = {"input_file_id": file_id, "endpoint": URL, "completion_window": "24h", **changes}
    return await client.post("/v1/batches", json={k: v for k, v in body.items() if v is not ...})


async def test_new_batch_is_validating_and_says_what_it_was_given(client):
    reply = await create(client, await upload(client), metadata={"a": "b"}, completion_window="90m")
    batch = reply.json()
    assert batch["status"] == "validating" and batch["object"] == "batch" and batch["metadata"] == {"a": "b"}
    assert batch["expires_at"] == batch["created_at"] + 90 * 60 and batch["completion_window"] == "90m"
    assert batch["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    assert batch["output_file_id"] is batch["error_file_id"] is batch["errors"] is batch["in_progress_at"] is None
    assert (await client.get(f"/v1/batches/{batch['id']}")).json() == batch


@pytest.mark.parametrize(
    ("changes", "param", "text"),
    [
        ({"input_file_id": "file-nothing"}, "input_file_id", "No such File object: file-nothing"),
        ({"input_file_id": ...}, "input_file_id", "required"),
        ({"endpoint": "/v1/embeddings"}, "endpoint", "'/v1/embeddings' is not served in batches"),
        ({"endpoint": ...}, "endpoint", "required"),
        ({"completion_window": "soon"}, "completion_window", "24h, got 'soon'"),
        ({"completion_window": ...}, "completion_window", "required"),
        ({"metadata": {str(i): "x" for i in range(17)}}, "metadata", "16"),
        ({"metadata": {"a": "x" * 513}}, "metadata", "512"),
        ({"metadata": {"a": 1}}, "metadata", "string"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 60}}, "output_expires_after", "3600"),
        ({"priority": 1}, "priority", "priority"),
    ],
)
async def test_wrong_field_is_named(client, changes, param, text):
    reply = await create(client, await upload(client), **changes)
    error = reply.json()["error"]
    assert reply.status_code == 400 and error["param"] == param and text in error["message"]


def test_windows_are_minutes_hours_or_days():
    assert [window_s(text) for text in ("1m", "24h", "7d")] == [60, 86400, 604800]
    for text in ("0h", "24", "h", "-1h", "1.5h", "24 h", "99999h"):
        with pytest.raises(ValueError, match="24h"):
            window_s(text)


async def test_output_file_is_no_input(client, store):
    made = store.files.write("all", "file-" + "a" * 32, "o.jsonl", "batch_output", [b"{}"])
    error = (await create(client, made.id)).json()["error"]
    assert "purpose batch_output" in error["message"] and error["param"] == "input_file_id"


async def test_input_of_an_open_batch_cannot_be_deleted(client, store):
    file_id = await upload(client)
    batch = (await create(client, file_id)).json()
    reply = await client.delete(f"/v1/files/{file_id}")
    assert reply.status_code == 409 and batch["id"] in reply.json()["error"]["message"]
    assert reply.headers["x-should-retry"] == "false"
    store.batches.close(store.batches.load("all", batch["id"]))
    assert (await client.delete(f"/v1/files/{file_id}")).status_code == 200


async def test_pages_of_batches_follow_each_other_newest_first(client):
    file_id = await upload(client)
    ids = sorted([(await create(client, file_id)).json()["id"] for _ in range(3)], reverse=True)
    first = (await client.get("/v1/batches", params={"limit": 2})).json()
    assert [b["id"] for b in first["data"]] == ids[:2] and first["has_more"] and first["object"] == "list"
    rest = (await client.get("/v1/batches", params={"after": first["last_id"]})).json()
    assert [b["id"] for b in rest["data"]] == ids[2:] and not rest["has_more"]
    assert (await client.get("/v1/batches", params={"limit": 101})).json()["error"]["param"] == "limit"


async def test_one_key_never_sees_or_cancels_the_batches_of_another_nor_uses_its_files(store):
    async with client_of(store, "one") as one, client_of(store, "two") as two:
        file_id = await upload(one)
        batch = (await create(one, file_id)).json()
        assert (await two.get("/v1/batches")).json()["data"] == []
        assert (await two.get(f"/v1/batches/{batch['id']}")).status_code == 404
        assert (await two.post(f"/v1/batches/{batch['id']}/cancel")).status_code == 404
        assert (await create(two, file_id)).status_code == 400
        assert (await one.get("/v1/batches")).json()["data"] == [batch]


async def test_cancel_is_seen_at_once(client):
    batch = (await create(client, await upload(client))).json()
    asked = (await client.post(f"/v1/batches/{batch['id']}/cancel")).json()
    assert asked["status"] == "cancelling" and asked["cancelling_at"]
    assert (await client.get(f"/v1/batches/{batch['id']}")).json() == asked
    missing = await client.post("/v1/batches/batch_nothing/cancel")
    assert missing.status_code == 404 and "batch_nothing" in missing.json()["error"]["message"]

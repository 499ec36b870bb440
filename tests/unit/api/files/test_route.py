"""The routes of files over HTTP: forms, limits, pages, errors in OpenAI's form."""

from contextlib import asynccontextmanager

import httpx
import pytest

from medusa_dist.api.routes import build_api
from medusa_dist.config_parts.http import HttpConfig
from medusa_dist.errors import StorageError, StorageOffError
from tests.support.batch_server import store_in
from tests.support.fake_service import FakeService

FILE = ("in.jsonl", b'{"a": 1}\n')


@pytest.fixture
def store(tmp_path):
    return store_in(tmp_path, max_file_bytes=100_000, max_total_bytes=250_000)


@asynccontextmanager
async def client_of(store, key=None, **more):
    app = build_api(FakeService, key, store=store, **more)
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
        yield client


@pytest.fixture
async def client(store):
    async with client_of(store) as client:
        yield client


async def upload(client, file=FILE, status=200, **fields):
    reply = await client.post("/v1/files", files={"file": file}, data={"purpose": "batch", **fields})
    assert reply.status_code == status, reply.text
    return reply.json()


async def test_uploaded_bytes_come_back_unchanged_with_name_and_length(client):
    data = bytes(range(256)) * 100  # no UTF-8: only batches need that
    record = await upload(client, ("dé.jsonl", data))
    assert record["object"] == "file" and record["bytes"] == len(data) and record["status"] == "processed"
    assert record["filename"] == "dé.jsonl" and record["purpose"] == "batch" and record["expires_at"] is None
    content = await client.get(f"/v1/files/{record['id']}/content")
    assert content.content == data and content.headers["content-length"] == str(len(data))
    assert "d%C3%A9.jsonl" in content.headers["content-disposition"]
    assert (await client.get(f"/v1/files/{record['id']}")).json() == record


async def test_pages_of_files_follow_each_other(client):
    ids = []
    for _ in range(5):
        ids.append((await upload(client))["id"])
    expected = sorted(ids, reverse=True)
    first = (await client.get("/v1/files", params={"limit": 2})).json()
    assert [f["id"] for f in first["data"]] == expected[:2] and first["has_more"]
    assert (first["first_id"], first["last_id"]) == (expected[0], expected[1])
    rest = (await client.get("/v1/files", params={"after": first["last_id"], "purpose": "batch"})).json()
    assert [f["id"] for f in rest["data"]] == expected[2:] and not rest["has_more"]
    assert (await client.get("/v1/files", params={"purpose": "batch_output"})).json()["data"] == []
    asc = (await client.get("/v1/files", params={"order": "asc", "limit": 1})).json()
    assert asc["data"][0]["id"] == expected[-1]
    for params, field in (({"limit": 0}, "limit"), ({"order": "x"}, "order"), ({"after": "file-9"}, "after")):
        reply = await client.get("/v1/files", params=params)
        assert reply.status_code == 400 and reply.json()["error"]["param"] == field


async def test_deleted_file_is_gone_and_others_stay(client):
    one, two = await upload(client), await upload(client)
    assert (await client.delete(f"/v1/files/{one['id']}")).json() == {
        "id": one["id"],
        "object": "file",
        "deleted": True,
    }
    for path in ("", "/content"):
        reply = await client.get(f"/v1/files/{one['id']}{path}")
        assert reply.status_code == 404 and one["id"] in reply.json()["error"]["message"]
    assert (await client.delete(f"/v1/files/{one['id']}")).status_code == 404
    assert (await client.get(f"/v1/files/{two['id']}")).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param", "text"),
    [
        ({"purpose": "fine-tune"}, "purpose", "must be batch, got 'fine-tune'"),
        ({"colour": "red"}, "colour", "unknown field 'colour'"),
        ({"expires_after[anchor]": "now", "expires_after[seconds]": "3600"}, "expires_after.anchor", "created_at"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "60"}, "expires_after.seconds", "3600"),
        ({"expires_after[anchor]": "created_at"}, "expires_after.seconds", "whole number"),
    ],
)
async def test_wrong_field_of_a_form_is_named(client, fields, param, text):
    error = (await upload(client, status=400, **fields))["error"]
    assert error["param"] == param and text in error["message"] and error["type"] == "invalid_request_error"


async def test_expiry_is_kept(client):
    record = await upload(client, **{"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"})
    assert record["expires_at"] == record["created_at"] + 3600


async def test_form_without_file_or_purpose_and_other_bodies_are_refused(client):
    no_file = await client.post("/v1/files", files={"purpose": (None, "batch")})
    assert no_file.json()["error"]["param"] == "file"
    no_purpose = await client.post("/v1/files", files={"file": FILE})
    assert no_purpose.json()["error"]["param"] == "purpose"
    json_body = await client.post("/v1/files", json={"purpose": "batch"})
    assert json_body.status_code == 400 and "multipart/form-data" in json_body.json()["error"]["message"]
    form = {"content-type": "multipart/form-data; boundary=x"}
    broken = await client.post("/v1/files", content=b"--y\r\nno", headers=form)
    assert broken.status_code == 400 and "form" in broken.json()["error"]["message"]
    no_boundary = await client.post("/v1/files", content=b"x", headers={"content-type": "multipart/form-data"})
    assert no_boundary.status_code == 400
    zipped = await client.post("/v1/files", content=b"x", headers={**form, "content-encoding": "gzip"})
    assert zipped.status_code == 415


async def test_limits_of_a_file_hold_with_and_without_a_length_and_not_that_of_bodies(store):
    async with client_of(store, http=HttpConfig(max_body_bytes=1024)) as client:
        await upload(client, ("a", b"x" * 100_000))
        for size in (100_001, 1_000_000):
            error = (await upload(client, ("a", b"x" * size), status=413))["error"]
            assert "files.max_file_bytes" in error["message"] and error["param"] == "file"

        async def endless():
            yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            for _ in range(1000):
                yield b"x" * 10_000

        headers = {"content-type": "multipart/form-data; boundary=x"}
        assert (await client.post("/v1/files", content=endless(), headers=headers)).status_code == 413
        await upload(client, ("a", b"x" * 100_000))
        full = (await upload(client, ("a", b"x" * 100_000), status=400))["error"]
        assert full["code"] == "storage_limit_exceeded" and "files.max_total_bytes" in full["message"]


async def test_a_web_page_uploads_only_if_its_origin_is_listed_or_the_services_own(store):
    async with client_of(store, http=HttpConfig(cors_origins=("https://chat.example.com",))) as client:
        for origin, status in (
            ("https://chat.example.com", 200),
            ("http://test", 200),
            ("https://evil.example", 403),
            ("null", 403),
        ):
            form = {"files": {"file": FILE}, "data": {"purpose": "batch"}, "headers": {"origin": origin}}
            reply = await client.post("/v1/files", **form)
            assert reply.status_code == status, origin
        assert "http.cors_origins" in reply.json()["error"]["message"]


async def test_one_key_never_sees_the_files_of_another(store):
    async with client_of(store, "one") as one, client_of(store, "two") as two, client_of(store) as open_to_all:
        mine = await upload(one)
        for other in (two, open_to_all):
            assert (await other.get("/v1/files")).json()["data"] == []
            for path in ("", "/content"):
                assert (await other.get(f"/v1/files/{mine['id']}{path}")).status_code == 404
            assert (await other.delete(f"/v1/files/{mine['id']}")).status_code == 404
        assert (await one.get("/v1/files")).json()["data"] == [mine]
        assert (await one.get("/v1/files", headers={"authorization": "Bearer three"})).status_code == 401


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_without_a_store_the_answer_names_the_key_and_is_not_retried(method):
    async with client_of(StorageOffError("off by files.store: off")) as client:
        reply = await client.request(method, "/v1/files")
        assert reply.status_code == 501 and "files.store" in reply.json()["error"]["message"]
        assert reply.headers["x-should-retry"] == "false"


async def test_full_disk_is_507_with_the_cause(client, store, monkeypatch):
    def full(*_):
        raise StorageError("cannot write the store of files (files.store): No space left on device")

    monkeypatch.setattr(store.files.folder, "write", full)
    error = (await upload(client, status=507))["error"]
    assert "No space left on device" in error["message"] and error["type"] == "server_error"

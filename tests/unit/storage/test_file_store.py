"""Files by tenant, within limits, until they expire."""

import pytest

from medusa_dist.errors import BodyTooLargeError, NotFoundError, RequestError
from medusa_dist.storage.file_store import FileStore
from medusa_dist.storage.folder import LocalFolder


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def files(tmp_path, clock):
    return FileStore(LocalFolder(tmp_path), 100, 1000, clock)


def upload(files, data=b"x" * 10, tenant="t", name="a.jsonl", **more):
    return files.upload(tenant, name, [data], len(data), **more)


def test_upload_is_read_back_and_listed_newest_first(files, clock):
    one = upload(files, b"first")
    clock.now += 1
    two = upload(files, b"second", name="b.jsonl")
    assert (one.bytes, one.created_at, one.filename, one.purpose) == (5, 1000, "a.jsonl", "batch")
    assert files.open("t", two.id).read() == b"second" and files.get("t", one.id) == one
    listed = files.listed("t", purpose=None, after=None, limit=10, order="desc")
    assert listed.entries == [two, one] and not listed.has_more
    assert files.listed("t", purpose="batch_output", after=None, limit=10, order="desc").entries == []
    files.delete("t", one.id)
    with pytest.raises(NotFoundError, match=one.id):
        files.get("t", one.id)
    assert files.listed("t", purpose="batch", after=None, limit=10, order="asc").entries == [two]


def test_a_tenant_sees_no_file_of_another(files):
    mine = upload(files, tenant="mine")
    for name in (mine.id, "../mine/files/" + mine.id):
        with pytest.raises(NotFoundError):
            files.get("other", name)
    assert files.listed("other", purpose=None, after=None, limit=10, order="desc").entries == []


def test_limits_of_a_file_and_of_all_files_name_their_keys(files):
    with pytest.raises(BodyTooLargeError, match=r"files\.max_file_bytes"):
        upload(files, b"x" * 101)
    kept = [upload(files, b"x" * 100) for _ in range(3)]  # a record takes some 150 bytes
    with pytest.raises(RequestError, match=r"files\.max_total_bytes.*delete files") as info:
        for _ in range(10):
            kept.append(upload(files, b"x" * 100))
    assert info.value.code == "storage_limit_exceeded"
    for one in kept:
        files.delete("t", one.id)
    upload(files, b"x" * 100)


def test_expired_files_are_gone_for_clients_at_once_and_deleted_unless_in_use(files, clock, tmp_path):
    short, long = upload(files, expires_after_s=3600), upload(files, expires_after_s=7200)
    assert short.expires_at == 1000 + 3600 and files.get("t", short.id).public()["expires_at"] == 4600
    clock.now += 3600
    with pytest.raises(NotFoundError):
        files.get("t", short.id)
    assert files.listed("t", purpose=None, after=None, limit=10, order="desc").entries == [long]
    files.sweep(lambda tenant, name: (tenant, name) == ("t", short.id))
    assert files.open("t", short.id).read() == b"x" * 10
    files.sweep(lambda *_: False)
    with pytest.raises(FileNotFoundError):
        files.open("t", short.id)
    assert files.get("t", long.id) == long

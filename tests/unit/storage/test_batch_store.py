"""Records of batches: open ones are found, a wish to cancel is seen at once, closed ones leave no remains."""

from dataclasses import replace

import pytest

from medusa_dist.errors import ConflictError, NotFoundError
from medusa_dist.storage.batch_record import BatchRecord
from medusa_dist.storage.batch_store import BatchStore
from medusa_dist.storage.file_store import FileStore
from medusa_dist.storage.folder import LocalFolder
from medusa_dist.storage.journal import Finished
from medusa_dist.storage.pages import new_id


@pytest.fixture
def store(tmp_path):
    folder = LocalFolder(tmp_path)
    return BatchStore(folder, FileStore(folder, 100, 1000), 10, lambda: 5000.0)


def new(tenant="t", at=1000.0):
    return BatchRecord(
        id=new_id("batch_", at),
        tenant=tenant,
        endpoint="/v1/completions",
        input_file_id="file-1",
        completion_window="24h",
        created_at=int(at),
        expires_at=int(at) + 86400,
    )


def test_open_batches_are_found_oldest_first_until_they_are_closed(store, tmp_path):
    late, early = new(at=2000.0), new("u", at=1000.0)
    store.create(late)
    store.create(early)
    assert [one.id for one in store.open_batches()] == [early.id, late.id]
    assert store.uses("u", "file-1") == early.id and store.uses("u", "file-2") is None
    store.journal(early).add(Finished(1, True, b"{}"))
    store.cancel("u", early.id)
    store.close(early)
    assert [one.id for one in store.open_batches()] == [late.id]
    left = [path.name for path in tmp_path.rglob("*") if path.is_file() and early.id in str(path)]
    assert left == [f"{early.id}.json"]


def test_a_tenant_sees_no_batch_of_another(store):
    mine = new("mine")
    store.create(mine)
    assert store.listed("mine", after=None, limit=10).entries == [mine]
    assert store.listed("other", after=None, limit=10).entries == []
    for name in (mine.id, f"../../mine/batches/{mine.id}"):
        with pytest.raises(NotFoundError, match="No batch found"):
            store.get("other", name)
    with pytest.raises(NotFoundError):
        store.cancel("other", mine.id)


def test_cancelling_shows_before_anybody_runs_batches_and_twice_is_once(store):
    batch = new()
    store.create(batch)
    for _ in range(2):
        asked = store.cancel("t", batch.id)
        assert asked.status == "cancelling" and asked.stamps["cancelling"] == 5000
    assert store.load("t", batch.id).status == "validating", "only the worker writes records"


@pytest.mark.parametrize("status", ["finalizing", "completed", "failed", "expired", "cancelled"])
def test_batch_that_is_over_or_nearly_cannot_be_cancelled(store, status):
    batch = replace(new(), status=status)
    store.create(batch)
    with pytest.raises(ConflictError, match=f"Cannot cancel a batch with status '{status}'"):
        store.cancel("t", batch.id)


def test_mark_without_a_batch_is_dropped_once_it_cannot_be_in_the_making(store):
    store.folder.write(f"open/t.{new_id('batch_')}", [b'{"input_file_id": "file-1", "since": 4000}'])
    store.folder.write(f"open/t.{new_id('batch_')}", [b'{"input_file_id": "file-1", "since": 1000}'])
    for mark in store.open_batches():
        store.drop_orphan(mark)
    assert [mark.since for mark in store.open_batches()] == [4000]

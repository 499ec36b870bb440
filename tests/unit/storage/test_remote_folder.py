"""A store at a URL, in fsspec's memory: the same as a folder, with a lease in place of a lock."""

import uuid

import fsspec
import pytest

from medusa_dist.errors import ConfigError, StorageError
from medusa_dist.storage.remote_folder import LEASE_S, Lease, RemoteFolder


@pytest.fixture
def folder():
    return RemoteFolder(f"memory://{uuid.uuid4().hex}/store")


def content(folder, name):
    with folder.open(name) as file:
        return file.read()


def test_trouble_of_the_file_system_names_the_key(folder, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("the bucket is gone")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "open", broken)
    with pytest.raises(StorageError, match=r"cannot write.*files\.store.*the bucket is gone"):
        folder.write("a/x", [b"1"])


def test_unknown_protocol_is_refused_with_the_key():
    with pytest.raises(ConfigError, match=r"files\.store: 'nonsense://x'"):
        RemoteFolder("nonsense://x")


class World:
    def __init__(self):
        self.now = 1000.0

    def lease(self, folder, pause=lambda _: None):
        return Lease(folder, lambda: self.now, pause)


def test_lease_is_exclusive_until_it_is_released_or_runs_out(folder):
    world = World()
    one, two = world.lease(folder), world.lease(folder)
    assert one.acquire() and not two.acquire() and one.renew() and not two.renew()
    one.release()
    assert two.acquire() and not one.acquire()
    world.now += LEASE_S + 1  # its holder was killed
    assert one.acquire() and not two.renew()
    two.release()
    assert one.renew(), "releasing what one no longer has takes nothing from another"


def test_lease_that_is_renewed_does_not_run_out(folder):
    world = World()
    one, two = world.lease(folder), world.lease(folder)
    assert one.acquire()
    for _ in range(10):
        world.now += LEASE_S / 2
        assert one.renew() and not two.acquire()


def test_of_two_that_take_a_lease_at_once_only_the_last_writer_has_it(folder):
    world = World()
    two = world.lease(folder)
    one = world.lease(folder, pause=lambda _: two._write())
    assert not one.acquire() and two._read()["by"] == two._me

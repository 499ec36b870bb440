"""A local store: files are there as a whole or not at all, errors name the key, one process at a time has the lock."""

import errno
import os
import subprocess
import sys
import time
import uuid

import pytest

from medusa_dist.errors import StorageError
from medusa_dist.storage.folder import LocalFolder
from medusa_dist.storage.remote_folder import RemoteFolder


@pytest.fixture
def folder(tmp_path):
    return LocalFolder(tmp_path / "store")


def content(folder, name):
    with folder.open(name) as file:
        return file.read()


@pytest.fixture(params=[LocalFolder, RemoteFolder])
def any_folder(request, tmp_path):
    """A folder on this machine, and one at a URL: to the store they are the same."""
    where = tmp_path / "store" if request.param is LocalFolder else f"memory://{uuid.uuid4().hex}/store"
    return request.param(where)


def test_written_files_are_listed_read_counted_and_deleted(any_folder):
    folder = any_folder
    assert folder.names("a") == [] and folder.num_bytes() == 0
    assert folder.write("a/y", [b"12", b"345"]) == 5
    folder.write("a/x", [b"6"])
    assert folder.names("a") == ["x", "y"] and content(folder, "a/y") == b"12345" and folder.num_bytes() == 6
    folder.write("a/x", [b"77"])
    assert content(folder, "a/x") == b"77" and folder.names("tmp") == []
    folder.delete("a/x")
    folder.delete("a/x")
    assert folder.names("a") == ["y"]
    folder.delete_folder("a")
    folder.delete_folder("a")
    assert folder.names("a") == []
    with pytest.raises(FileNotFoundError):
        folder.open("a/y")


def test_a_write_that_fails_half_way_leaves_the_old_file_and_no_remains(any_folder):
    folder = any_folder
    folder.write("a/x", [b"old"])

    def broken():
        yield b"new"
        raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        folder.write("a/x", broken())
    assert content(folder, "a/x") == b"old" and folder.names("tmp") == []


def test_appended_bytes_follow_what_was_there(folder):
    folder.write("a/x", [b"6"])
    folder.append("a/x", b"7")
    assert content(folder, "a/x") == b"67"


def test_a_full_disk_is_an_error_that_names_the_key_and_the_cause(folder, monkeypatch):
    folder.write("a/x", [b"old"])

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"files\.store.*No space left on device"):
        folder.write("a/x", [b"new"])
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match="No space left on device"):
        folder.append("a/x", b"new")
    monkeypatch.undo()
    assert content(folder, "a/x") == b"old" and folder.names("tmp") == []


def test_only_old_remains_are_swept(folder, tmp_path):
    folder.write("a/x", [b"1"])
    for name, age_s in (("old", 7200), ("young", 60)):
        path = tmp_path / "store" / "tmp" / name
        path.write_bytes(b"")
        os.utime(path, (time.time() - age_s,) * 2)
    folder.sweep()
    assert folder.names("tmp") == ["young"]


def test_lock_excludes_others_until_its_process_is_killed(folder, tmp_path):
    assert not folder.alone().acquire(), "there is nothing to do in a store that does not exist"
    folder.write("a/x", [b"1"])
    code = (
        "import sys, time; from pathlib import Path; from medusa_dist.storage.folder import LocalFolder\n"
        "lock = LocalFolder(Path(sys.argv[1])).alone()\n"
        "assert lock.acquire(); print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "store")], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        mine = folder.alone()
        assert not mine.acquire()
        other.kill()
        other.wait()
        assert mine.acquire() and mine.renew()
        assert not folder.alone().acquire(), "a second one in this process is excluded, too"
        mine.release()
        assert folder.alone().acquire()
    finally:
        other.kill()
        other.wait()
        other.stdout.close()

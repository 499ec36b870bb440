"""The journal: what was finished is there after a kill, each line once."""

import time
import uuid

import pytest

from medusa_dist.storage import journal as module
from medusa_dist.storage.folder import LocalFolder
from medusa_dist.storage.journal import Finished, Journal
from medusa_dist.storage.remote_folder import RemoteFolder


@pytest.fixture(params=["local", "remote"])
def folder(request, tmp_path):
    return LocalFolder(tmp_path) if request.param == "local" else RemoteFolder(f"memory://{uuid.uuid4().hex}/s")


def fin(number, record=b"{}", ok=True):
    return Finished(number, ok, record)


def test_lines_come_back_in_order_and_a_second_finish_of_a_line_does_not_count(folder):
    first = Journal(folder, "b")
    first.add(fin(2, b'{"a": "x y"}'))
    first.add(fin(1, b"one", ok=False))
    first.flush()
    time.sleep(0.002)  # names of segments sort by milliseconds
    second = Journal(folder, "b")
    second.add(fin(2, b"again"))
    second.add(fin(3))
    second.flush()
    lines = [fin(2, b'{"a": "x y"}'), fin(1, b"one", ok=False), fin(3)]
    assert list(Journal(folder, "b").lines()) == lines
    assert list(Journal(folder, "other").lines()) == []
    first.remove()
    assert list(Journal(folder, "b").lines()) == [] and folder.names("journals/b") == []


def test_line_that_a_kill_cut_off_is_not_there_and_those_of_the_next_process_are(tmp_path):
    folder = LocalFolder(tmp_path)
    killed = Journal(folder, "b")
    killed.add(fin(1))
    folder.append(f"journals/b/{killed._segment}", b"2 1 {half")
    time.sleep(0.002)
    following = Journal(folder, "b")
    following.add(fin(2))
    assert list(following.lines()) == [fin(1), fin(2)]


def test_local_lines_are_there_at_once_and_remote_ones_after_so_many(folder, monkeypatch):
    monkeypatch.setattr(module, "FLUSH_LINES", 3)
    journal = Journal(folder, "b")
    seen = []
    for number in range(1, 5):
        journal.add(fin(number))
        seen.append(len(list(Journal(folder, "b").lines())))
    assert seen == ([1, 2, 3, 4] if folder.appends else [0, 0, 3, 3])
    journal.flush()
    assert len(list(Journal(folder, "b").lines())) == 4


def test_remote_lines_are_written_after_some_time(monkeypatch):
    monkeypatch.setattr(module, "FLUSH_S", 0.0)
    folder = RemoteFolder(f"memory://{uuid.uuid4().hex}/s")
    Journal(folder, "b").add(fin(1))
    assert list(Journal(folder, "b").lines()) == [fin(1)]

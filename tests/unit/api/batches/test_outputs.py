"""Output files are whole: one line for each of the batch, or no file at all."""

import json

import pytest

from medusa_dist.api.batches.outputs import success_or_failure, write_outputs
from medusa_dist.errors import StorageError
from medusa_dist.storage.batch_lines import NO_RESPONSE, LineAnswer
from medusa_dist.storage.batch_record import BatchRecord
from medusa_dist.storage.journal import Finished, Journal
from tests.support.batch_lines import line
from tests.support.batch_server import store_in

OUT, ERR = "file-" + "0" * 32, "file-" + "1" * 32


@pytest.fixture
def store(tmp_path):
    return store_in(tmp_path)


def batch_of(store, count, **changes):
    data = b"".join(json.dumps(line(str(i))).encode() + b"\n" for i in range(1, count + 1))
    file = store.files.upload("t", "in", [data], len(data))
    given = {"endpoint": "/v1/completions", "completion_window": "24h", "created_at": 0, "expires_at": 1}
    ids = {"id": "batch_1", "tenant": "t", "input_file_id": file.id, "output_id": OUT, "error_id": ERR}
    return BatchRecord(**{**given, **ids, "status": "finalizing", "total": count, **changes})


def finish(store, batch, **ok):
    journal = store.batches.journal(batch)
    for number, is_ok in ok.items():
        journal.add(Finished(int(number[1:]), is_ok, b'{"custom_id":"%s"}' % number[1:].encode()))


def ids(store, file_id):
    return [json.loads(raw)["custom_id"] for raw in store.files.open("t", file_id)]


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"status": "cancelling"}, "batch_cancelled"), ({"expired": True}, "batch_expired"), ({}, "batch_failed")],
)
def test_every_line_is_in_one_file_and_those_without_answer_say_why(store, changes, code):
    batch = batch_of(store, 4, **changes)
    finish(store, batch, n3=True, n1=False)
    written = write_outputs(store, batch)
    assert ids(store, OUT) == ["3"] and ids(store, ERR) == ["1", "2", "4"]
    assert (written.completed, written.failed, written.has_output, written.has_errors) == (1, 3, True, True)
    last = [json.loads(raw) for raw in store.files.open("t", ERR)][-1]
    assert last["error"]["code"] == code and last["response"] is None and last["id"].startswith("batch_req_")
    assert write_outputs(store, batch) == written and ids(store, ERR) == ["1", "2", "4"], "again, the same"


def test_journal_that_another_process_removed_meanwhile_overwrites_no_file(store, monkeypatch):
    batch = batch_of(store, 2)
    finish(store, batch, n1=True, n2=True)
    write_outputs(store, batch)
    real, calls = Journal.lines, []

    def once(self):
        calls.append(None)
        return real(self) if len(calls) == 1 else iter(())

    monkeypatch.setattr(Journal, "lines", once)
    with pytest.raises(StorageError, match="changed while its output was written"):
        write_outputs(store, batch)
    assert ids(store, OUT) == ["1", "2"]


def test_http_errors_are_in_the_response_and_others_in_error():
    body = {"error": {"message": "no", "code": "c"}}
    http = success_or_failure(LineAnswer("i", "a", 400, "r", body))
    assert http["error"] is None and http["response"] == {"status_code": 400, "request_id": "r", "body": body}
    lost = success_or_failure(LineAnswer("i", "a", NO_RESPONSE, "", body))
    assert lost["error"] == {"code": "c", "message": "no"} and lost["response"] is None

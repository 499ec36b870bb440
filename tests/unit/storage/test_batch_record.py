"""OpenAI's state machine of a batch: what may follow what, and the time of each."""

from dataclasses import replace

import pytest
from openai.types import Batch

from medusa_dist.storage.batch_record import NEXT, OVER, BatchRecord, LineError, loads

NEW = BatchRecord(
    id="batch_1",
    tenant="t",
    endpoint="/v1/completions",
    input_file_id="file-1",
    completion_window="24h",
    created_at=100,
    expires_at=100 + 86400,
    metadata={"a": "b"},
)
PATHS = [
    ("in_progress", "finalizing", "completed"),
    ("in_progress", "finalizing", "expired"),
    ("in_progress", "cancelling", "cancelled"),
    ("cancelling", "cancelled"),
    ("failed",),
    ("in_progress", "failed"),
]


@pytest.mark.parametrize("path", PATHS, ids="-".join)
def test_each_status_of_a_path_has_its_time_and_the_last_one_is_over(path):
    batch = NEW
    for step, status in enumerate(path):
        assert not batch.is_over
        batch = batch.to(status, 200.7 + step)
    assert batch.is_over and batch.status == path[-1]
    public = batch.public()
    assert {k: v for k, v in public.items() if k.endswith("_at") and v is not None} == {
        "created_at": 100,
        "expires_at": 86500,
        **{f"{status}_at": 200 + step for step, status in enumerate(path)},
    }


def test_every_other_step_is_refused():
    for status, allowed in NEXT.items():
        for other in NEXT.keys() - set(allowed):
            with pytest.raises(ValueError, match=f"{status} cannot become {other}"):
                replace(NEW, status=status).to(other, 1)
    assert {"completed", "expired", "cancelled", "failed"} == OVER


def test_public_form_is_read_by_the_openai_client_and_hides_ids_of_files_that_do_not_exist():
    failed = NEW.to("failed", 5, errors=(LineError("invalid_json_line", "no JSON", 3, None),), output_id="file-2")
    read = Batch.model_validate(failed.public())
    assert (read.errors.data[0].code, read.errors.data[0].line, read.errors.data[0].message) == (
        "invalid_json_line",
        3,
        "no JSON",
    )
    assert read.output_file_id is None and read.metadata == {"a": "b"} and read.request_counts.total == 0
    done = NEW.to("in_progress", 1).to("finalizing", 2).to("completed", 3, output_id="file-2", has_output=True)
    assert Batch.model_validate(done.public()).output_file_id == "file-2" and done.public()["errors"] is None


def test_a_record_survives_the_store():
    batch = NEW.to("failed", 5, errors=(LineError("a", "b", 1, "c"),))
    assert loads(batch.dumps()) == batch

"""Every line gets its output line: retries are bounded, and a line that is always lost takes no other along."""

import io

import pytest
from rich.console import Console

from medusa_dist.batch import passes
from medusa_dist.batch.job import run_batch
from medusa_dist.errors import EngineError
from tests.support.batch_lines import FakeSender, line, records, write


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr(passes.time, "sleep", waited.append)
    return waited


@pytest.fixture
def files(tmp_path, waits):
    write(tmp_path / "in.jsonl", [line(f"id{i}") for i in range(10)])
    return tmp_path / "in.jsonl", tmp_path / "out.jsonl"


def run(files, sender, existing="refuse"):
    return run_batch(*files, lambda: sender, Console(file=io.StringIO()), 0, existing)


class BlockSender(FakeSender):
    """Loses all lines of a block of four if it contains one of these."""

    def __init__(self, *poison):
        super().__init__()
        self.poison = poison

    def send(self, lines, deliver):
        lines = list(lines)
        for begin in range(0, len(lines), 4):
            block = lines[begin : begin + 4]
            self.sent += [one.custom_id for one in block if any(p.custom_id in self.poison for p in block)]
            if not any(one.custom_id in self.poison for one in block):
                super().send(block, deliver)


@pytest.mark.parametrize("poison", [("id5",), ("id0", "id9"), ("id4", "id5", "id6")])
def test_lines_that_lose_their_whole_block_fail_alone(files, poison):
    sender = BlockSender(*poison)
    assert run(files, sender).num_failed == len(poison)
    found = {r["custom_id"]: r for r in records(files[1])}
    assert len(found) == len(records(files[1])) == 10
    for name, record in found.items():
        if name in poison:
            assert record["response"] is None
            assert record["error"] == {"code": "no_response", "message": "no response in 3 tries"}
        else:
            assert record["error"] is None
    assert all(sender.sent.count(name) <= 20 for name in found)


def test_a_line_without_a_response_is_an_error_line_also_if_it_is_the_only_one(files):
    write(files[0], [line("a")])
    assert run(files, FakeSender(lambda one, n: None)).num_failed == 1
    assert records(files[1])[0]["error"]["code"] == "no_response"


def test_a_service_that_is_gone_is_no_fault_of_the_last_line(files):
    class Gone(FakeSender):
        def describe(self):
            if self.sent:
                raise EngineError("application 'm' does not respond")
            return super().describe()

    write(files[0], [line("a")])
    with pytest.raises(EngineError, match="does not respond"):
        run(files, Gone(lambda one, n: None))
    assert not files[1].exists()


def test_a_service_that_answers_nothing_is_given_up_after_two_minutes(files, waits):
    with pytest.raises(EngineError, match=r"no response in 12 passes; try again with --resume"):
        run(files, FakeSender(lambda one, n: None))
    assert 60 < sum(waits) < 240 and waits[:5] == [1.0, 2.0, 5.0, 10.0, 20.0]


@pytest.mark.parametrize("status", [502, 503, 504])
def test_three_tries_for_a_line_that_could_not_be_processed(files, status):
    sender = FakeSender(lambda one, n: status if one.custom_id == "id3" else 200)
    assert run(files, sender).num_failed == 1 and sender.sent.count("id3") == 3


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 429, 500])
def test_no_second_try_for_what_cannot_succeed(files, status):
    """429 has waited long before it is a line's answer."""
    sender = FakeSender(lambda one, n: status if one.custom_id == "id3" else 200)
    assert run(files, sender).num_failed == 1 and len(sender.sent) == 10
    assert next(r for r in records(files[1]) if r["error"])["response"]["status_code"] == status

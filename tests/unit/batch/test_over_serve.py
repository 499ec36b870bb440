"""Lines are sent through Ray in portions of bounded size, as strings that Arrow can hold."""

import json

import pyarrow

from medusa_dist.batch.over_serve import portions
from medusa_dist.storage.batch_lines import RawLine, parse_line
from tests.support.batch_lines import BODY, line


def parsed(names, prompt="x"):
    for number, name in enumerate(names):
        yield parse_line(RawLine(number, json.dumps(line(name, body={**BODY, "prompt": prompt})).encode()), 0)


def test_portions_are_bounded_by_lines_and_by_bytes():
    assert [len(p.rows) for p in portions(parsed("abcdefg"), 3, 10**9)] == [3, 3, 1]
    assert [len(p.rows) for p in portions(parsed("abcdefg", "y" * 1000), 100, 2500)] == [3, 3, 1]
    assert [len(p.rows) for p in portions(parsed("abc", "y" * 1000), 100, 10)] == [1, 1, 1]
    assert list(portions(iter(()), 3, 10)) == []


def test_a_portion_reads_no_line_ahead():
    lines = parsed("abcd")
    assert len(next(portions(lines, 2, 10**9)).rows) == 2
    assert next(lines).custom_id == "c"


def test_ids_and_texts_that_are_no_unicode_fit_into_arrow():
    (portion,) = portions(parsed(["\ud800", "b"], "\udfff"), 10, 10**9)
    table = pyarrow.Table.from_pylist(portion.rows)
    assert [json.loads(body)["prompt"] for body in table["body"].to_pylist()] == ["\udfff", "\udfff"]
    assert list(portion.custom_ids.values()) == ["\ud800", "b"] and set(portion.custom_ids) == set(
        table["id"].to_pylist()
    )

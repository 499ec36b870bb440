"""Ids sort by time, and pages follow each other without a gap or an overlap."""

import pytest

from medusa_dist.errors import RequestError
from medusa_dist.storage.pages import is_id, new_id, page

IDS = [f"f{i}" for i in range(7)]


def test_later_ids_sort_later_and_have_the_form_of_ids():
    ids = [new_id("file-", now) for now in (1.0, 1.01, 2.0, 1e9, 1e10)]
    assert ids == sorted(ids) and all(is_id("file-", one) for one in ids)


@pytest.mark.parametrize("text", ["", "file-", "file-../../etc", "file-" + "g" * 32, "batch_" + "a" * 32, "a" * 32])
def test_what_is_no_id_never_becomes_a_path(text):
    assert not is_id("file-", text)


@pytest.mark.parametrize(("order", "expected"), [("desc", IDS[::-1]), ("asc", IDS)])
def test_pages_follow_each_other_until_there_are_no_more(order, expected):
    found, after, sizes = [], None, []
    while True:
        one = page(IDS, str, after=after, limit=3, order=order)
        found += one.entries
        sizes.append(len(one.entries))
        if not one.has_more:
            break
        after = one.entries[-1]
    assert found == expected and sizes == [3, 3, 1]


def test_entries_that_do_not_count_take_no_place_and_are_not_more():
    only_odd = page(IDS, lambda one: one if int(one[1]) % 2 else None, after=None, limit=2)
    assert only_odd.entries == ["f5", "f3"] and only_odd.has_more
    rest = page(IDS, lambda one: one if int(one[1]) % 2 else None, after="f3", limit=2)
    assert rest.entries == ["f1"] and not rest.has_more
    assert not page(IDS, lambda one: one if one == "f6" else None, after=None, limit=1).has_more


def test_after_that_is_not_in_the_list_is_refused_by_name():
    with pytest.raises(RequestError, match="'f9'") as info:
        page(IDS, str, after="f9", limit=3)
    assert info.value.param == "after"

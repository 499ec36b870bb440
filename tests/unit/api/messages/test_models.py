"""Pages of models, of more models than a service has."""

import pytest

from medusa_dist.api.messages.models import model_page
from medusa_dist.errors import RequestError

MODELS = [{"id": name} for name in "abcde"]


@pytest.mark.parametrize(
    ("query", "ids", "has_more"),
    [
        ({}, "abcde", False),
        ({"limit": "2"}, "ab", True),
        ({"limit": "2", "after_id": "b"}, "cd", True),
        ({"limit": "2", "after_id": "c"}, "de", False),
        ({"after_id": "e"}, "", False),
        ({"limit": "2", "before_id": "d"}, "bc", True),
        ({"before_id": "a"}, "", False),
        ({"limit": "1000", "before_id": "c"}, "ab", False),
    ],
)
def test_page_is_what_the_cursor_asks_for(query, ids, has_more):
    page = model_page(MODELS, query, [])
    assert "".join(model["id"] for model in page["data"]) == ids and page["has_more"] is has_more
    assert (page["first_id"], page["last_id"]) == ((ids[0], ids[-1]) if ids else (None, None))


def test_lifecycles_without_active_find_nothing():
    assert model_page(MODELS, {}, ["retired"])["data"] == []
    assert model_page(MODELS, {}, ["active", "retired"])["data"] == MODELS


@pytest.mark.parametrize(
    ("query", "lifecycles", "name"),
    [
        ({"limit": "0"}, [], "limit"),
        ({"limit": "1001"}, [], "limit"),
        ({"limit": "x"}, [], "limit"),
        ({"limit": "0" * 5000 + "1"}, [], "limit"),
        ({"after_id": "z"}, [], "after_id"),
        ({"before_id": "z"}, [], "before_id"),
        ({"after_id": "a", "before_id": "b"}, [], "after_id"),
        ({}, ["new"], "lifecycle"),
    ],
)
def test_wrong_parameters_are_refused_by_name(query, lifecycles, name):
    with pytest.raises(RequestError) as caught:
        model_page(MODELS, query, lifecycles)
    assert caught.value.param == name

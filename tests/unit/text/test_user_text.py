"""Marks: methods of str on marked text do what they do on plain text, and keep the marks of what they keep."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medusa_dist.errors import RequestError
from medusa_dist.text import user_text
from medusa_dist.text.user_text import Marks

TEXT = st.text(alphabet='ab<|> \n"\\éÉß你', max_size=12)
SHORT = st.text(alphabet="ab<|> ", min_size=1, max_size=2)
CALLS = {
    "split": lambda a, b: (a,),
    "rsplit": lambda a, b: (a, 1),
    "partition": lambda a, b: (a,),
    "rpartition": lambda a, b: (a,),
    "replace": lambda a, b: (a, b),
    "strip": lambda a, b: (a,),
    "lstrip": lambda a, b: (a,),
    "rstrip": lambda a, b: (a,),
    "removeprefix": lambda a, b: (a,),
    "removesuffix": lambda a, b: (a,),
    "startswith": lambda a, b: (a,),
    "endswith": lambda a, b: ((a, b),),
    "find": lambda a, b: (a,),
    "count": lambda a, b: (a,),
    "isalpha": lambda a, b: (),
    "lower": lambda a, b: (),
    "upper": lambda a, b: (),
    "title": lambda a, b: (),
    "splitlines": lambda a, b: (),
    "zfill": lambda a, b: (len(a),),
}


@pytest.mark.parametrize("method", CALLS)
@given(text=TEXT, a=SHORT, b=SHORT)
def test_a_method_says_what_it_says_of_plain_text(method: str, text: str, a: str, b: str) -> None:
    marks, args = Marks([text], ""), CALLS[method](a, b)
    found = marks.call(marks.mark(text), method, *args)
    plain = getattr(text, method)(*args)
    assert (marks.plain(list(found)) if isinstance(found, list | tuple) else marks.plain(found)) == (
        list(plain) if isinstance(plain, tuple) else plain
    )


def test_what_is_kept_stays_marked_and_what_is_put_in_does_not_become_so() -> None:
    marks = Marks(["<b>x</b>"], "")
    marked = marks.mark("<b>x</b>")
    first, last = marks.call(marked, "split", "x")
    assert marks.is_marked(first) and marks.is_marked(last)
    assert not marks.is_marked(marks.call(marked, "replace", "<b>x</b>", "y"))
    assert marks.call("|", "join", [first, last]) == first + "|" + last
    assert marks.call("a-b", "replace", "-", marked) == "a" + marked + "b"


@given(text=st.text(max_size=30))
def test_every_character_but_white_space_and_what_json_escapes_is_marked(text: str) -> None:
    marks = Marks([text], text)
    for old, new in zip(text, marks.mark(text), strict=True):
        assert (old == new) == (old.isspace() or old in '"\\' or old < " ") and marks.is_marked(new) == (old != new)
        assert new == old or new not in text, "a character of the prompt itself"
    assert marks.plain(marks.mark(text)) == text


def test_names_stay_so_that_templates_find_them() -> None:
    message = {"role": "user", "content": "x", "call": {"name": "f", "a key": [1, None, "y"]}}
    marks = Marks([message], "")
    marked = marks.mark_messages([message])[0]
    assert list(marked) == ["role", "content", "call"] and marked["role"] == "user"
    first, second = marked["call"]
    assert first == "name" and marks.is_marked(second)
    assert marks.is_marked(marked["call"]["name"]) and marks.plain(marked) == message
    odd = marks.mark_messages([{"role": "x y"}])[0]["role"]
    assert marks.plain(odd) == "x y"


def test_more_characters_than_there_are_marks_is_an_error_of_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_text, "_PRIVATE", (range(0xF0000, 0xF0002),))
    with pytest.raises(RequestError, match="more than 2 different characters in one request"):
        Marks(["abc"], "")

"""A drawing as a file: everything is in it, nothing is fetched, and boxes do not lie on each other."""

import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.text import Text

from medusa_dist.errors import ConfigError
from medusa_dist.heads_tools.steps.page import as_html, as_svg, static_picture, step_picture, write_html
from medusa_dist.heads_tools.steps.show import TokenIds, traced
from tests.support.step_records import tree

SVG = "{http://www.w3.org/2000/svg}"
PICTURE = step_picture(traced(tree((0, 2))), TokenIds(), "step <2>", "a caption")


def boxes(svg: str) -> list[tuple[float, float]]:
    """Places of the boxes: the root, then the nodes."""
    return [(float(r.get("x")), float(r.get("y"))) for r in ElementTree.fromstring(svg).iter(f"{SVG}rect")]


def test_picture_of_a_step_has_drafts_the_choice_and_their_chances() -> None:
    assert PICTURE.root == "'#9'" and PICTURE.captions[1] == "a caption"
    assert [(n.parent, n.text, n.note, n.kind) for n in PICTURE.nodes] == [
        (-1, "'#2'", "50 %", "accepted"),
        (-1, "'#3'", "25 %, lookup", "rejected"),
        (0, "'#4'", "25 %, lookup", "accepted"),
        (2, "'#7'", "the model's own choice", "own"),
    ]


def test_svg_stands_by_depth_and_no_two_boxes_touch() -> None:
    svg = as_svg(PICTURE)
    places = boxes(svg)
    assert [x for x, _ in places] == [10, 200, 200, 390, 580], "the root, depth 1, 1, 2, 3"
    assert len(set(places)) == 5
    root, first, second, below, choice = (y for _, y in places)
    assert first == below == choice and second - first >= 50 and root == (first + second) / 2
    size = ElementTree.fromstring(svg)
    assert all(x + 140 <= float(size.get("width")) and y + 42 <= float(size.get("height")) for x, y in places)
    edges = [path.get("class") for path in size.iter(f"{SVG}path")]
    assert edges == ["edge accepted d1", "edge rejected", "edge accepted d2", "edge own"]


def test_many_leaves_get_rows_of_their_own() -> None:
    paths = [(i,) for i in range(5)] + [(0, i) for i in range(4)] + [(0, 0, 0), (4, 0)]
    places = boxes(as_svg(static_picture(paths, (), "wide")))
    assert len(places) == 12
    for depth in {x for x, _ in places}:
        rows = sorted(y for x, y in places if x == depth)
        assert all(b - a >= 50 for a, b in pairwise(rows))


def test_static_picture_names_guesses_and_chances() -> None:
    picture = static_picture([(0,), (1,), (0, 0)], ((0.5, 0.7), (0.2, 0.3)), "mine")
    assert [(node.parent, node.text, node.note) for node in picture.nodes] == [
        (-1, "[0]", "best guess, 50.0 %"),
        (-1, "[1]", "2nd guess, 20.0 %"),
        (0, "[0, 0]", "best guess, 10.0 %"),
    ]
    assert "expected 1.80 tokens/step" in picture.captions[0]


def test_html_is_one_file_that_fetches_nothing_and_escapes_what_models_write() -> None:
    evil = step_picture(traced(tree()), Evil(), "step 1")
    html = as_html("a & b", [PICTURE, evil], [Text("1 < 2")])
    assert html.startswith("<!doctype html>") and html.count("<svg ") == 2
    assert "<title>a &amp; b</title>" in html and "step &lt;2&gt;" in html and "1 &lt; 2" in html
    assert "<script" not in html and "&lt;script&gt;" in html
    linked = re.findall(r"(?:src|href)=|url\(|@import|https?://(?!www\.w3\.org/2000/svg)", html)
    assert not linked, linked


class Evil:
    def decode(self, ids: list[int]) -> str:
        return "<script>"


def test_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    write_html(tmp_path / "a.html", "é")
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == "é"
    with pytest.raises(ConfigError, match=r"--html: .*gone/a.html cannot be written: No such file"):
        write_html(tmp_path / "gone" / "a.html", "")

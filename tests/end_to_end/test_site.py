"""The site of docs/ shows every page. `make site` checks links, but not whether the nav has all pages."""

import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def pages(nav: Any) -> list[str]:
    """All paths of a nav, in order."""
    if isinstance(nav, str):
        return [nav]
    return [page for entry in (nav.values() if isinstance(nav, dict) else nav) for page in pages(entry)]


def test_every_page_is_in_the_nav_once() -> None:
    nav = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]
    assert sorted(pages(nav)) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))

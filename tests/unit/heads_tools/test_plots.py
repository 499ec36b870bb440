"""The picture of a heads report."""

from pathlib import Path

import pytest

from medusa_dist.errors import ConfigError
from tests.support.heads_report import some_report

pytest.importorskip("matplotlib")

from medusa_dist.heads_tools.plots import draw


def test_draw_writes_a_png_or_svg_by_the_files_ending(tmp_path: Path) -> None:
    draw(some_report(), tmp_path / "heads.png")
    assert (tmp_path / "heads.png").read_bytes().startswith(b"\x89PNG")
    draw(some_report(), tmp_path / "heads.svg")
    assert "head 2" in (tmp_path / "heads.svg").read_text()


def test_file_ending_other_than_png_or_svg_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"heads\.txt must end in \.png"):
        draw(some_report(), tmp_path / "heads.txt")

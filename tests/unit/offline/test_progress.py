from typing import Any, ClassVar

import pytest

from medusa_dist.offline.progress import progress_bar


class Bar:
    made: ClassVar[list["Bar"]] = []

    def __init__(self, **given: Any) -> None:
        self.given, self.done, self.is_closed = given, 0, False
        Bar.made.append(self)

    def update(self, count: int) -> None:
        self.done += count

    def close(self) -> None:
        self.is_closed = True


def test_tqdm_class_counts_and_is_closed_after_an_error_too() -> None:
    Bar.made.clear()
    with progress_bar(3, Bar) as advance:
        advance()
        advance()
    with pytest.raises(ValueError), progress_bar(1, Bar):
        raise ValueError
    assert [(bar.given["total"], bar.done, bar.is_closed) for bar in Bar.made] == [(3, 2, True), (1, 0, True)]


def test_bar_is_shown_only_with_use_tqdm(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(1, False) as advance:
        advance()
    assert capsys.readouterr() == ("", "")
    with progress_bar(1, True) as advance:
        advance()
    assert "1/1" in capsys.readouterr().out

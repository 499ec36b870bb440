"""Progress of a call of `LLM`: finished requests, on rich's bar or one that the caller makes, such as tqdm.

Owns how use_tqdm is read. Not here: the commands' progress (tools/progress.py).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

UseTqdm = bool | Callable[..., Any]


@contextmanager
def progress_bar(total: int, use_tqdm: UseTqdm) -> Iterator[Callable[[], None]]:
    """A function to call per finished request. use_tqdm: False = show nothing, True = rich's bar, or a class or
    function with tqdm's arguments, as in vLLM."""
    if use_tqdm is False:
        yield lambda: None
    elif use_tqdm is True:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns) as bar:
            task = bar.add_task("requests", total=total)
            yield lambda: bar.advance(task)
    else:
        made = use_tqdm(total=total, desc="Processed prompts", dynamic_ncols=True)
        try:
            yield lambda: made.update(1)
        finally:
            made.close()

"""A chat template's code within limits: endless and greedy ones are stopped, failing ones are the client's error."""

import asyncio
import threading
import time
from collections.abc import Callable

import pytest
from jinja2 import TemplateError

from medusa_dist.errors import RequestError
from medusa_dist.text import bounded_render
from medusa_dist.text.bounded_render import describe_failure, run_bounded
from medusa_dist.text.chat_template import render_chat
from tests.support.tiny_tokenizers import byte_tokenizer

MESSAGES = [{"role": "user", "content": "hi"}]
# The sandbox allows 100000 turns per loop, so it takes nested ones.
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = a %}{% endfor %}{% endfor %}"
GREEDY = (
    "{% set n = namespace(t='x' * 1000) %}{% for i in range(99999) %}{% set n.t = n.t ~ n.t[:9999999] %}{% endfor %}"
)


def rendering(template: str) -> Callable[[], str]:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return lambda: render_chat(tokenizer, MESSAGES)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "chat-template"]


def test_what_ends_is_returned() -> None:
    assert run_bounded(rendering("{{ messages[0].content }}!")) == "hi!"
    assert not threads()


def test_an_endless_template_is_stopped_and_named() -> None:
    begin = time.monotonic()
    with pytest.raises(RequestError, match=r"chat template did not end within 0.2 s .* endless loop") as caught:
        run_bounded(rendering(ENDLESS), cpu_s=0.2)
    assert caught.value.param == "messages" and time.monotonic() - begin < 5
    for _ in range(100):
        if not threads():
            break
        time.sleep(0.05)
    assert not threads(), "it still runs"


def test_a_thread_that_hardly_runs_has_a_limit_too() -> None:
    with pytest.raises(RequestError, match="did not end"):
        run_bounded(lambda: time.sleep(1), wall_s=0.1)


def test_a_template_that_takes_all_memory_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="needs more than 100 MiB of memory"):
        run_bounded(rendering(GREEDY), cpu_s=60, memory_bytes=100 << 20)


def test_other_work_of_the_service_goes_on_meanwhile() -> None:
    async def serve() -> int:
        stuck = asyncio.create_task(asyncio.to_thread(run_bounded, rendering(ENDLESS), 0.2))
        turns = 0
        while not stuck.done():
            await asyncio.sleep(0.01)
            turns += 1
        assert isinstance(stuck.exception(), RequestError)
        return turns

    assert asyncio.run(serve()) > 5


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", "these messages: roles must alternate"),
        ("{{ messages[0].content + 1 }}", "TypeError: "),
        ("{{ messages[0].content | int + 1 / 0 }}", "ZeroDivisionError: "),
        ("{{ {}['x'].y }}", "has no attribute 'x'"),
        ("{{ range(10 ** 9) | list }}", "OverflowError: "),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError: "),
        ("{{ messages[7].content }}", "list object has no element 7"),
        ("{% if %}", "Expected an expression"),
    ],
)
def test_a_failing_template_is_an_error_of_the_request(template: str, words: str) -> None:
    with pytest.raises(RequestError, match="chat template rejects these messages") as caught:
        run_bounded(rendering(template))
    assert words in caught.value.message and caught.value.param == "messages"


def test_an_error_of_ours_is_not_turned_into_the_clients() -> None:
    def wrong() -> None:
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        run_bounded(wrong)


def test_descriptions() -> None:
    assert describe_failure(TemplateError("no")) == "no"
    assert describe_failure(KeyError("x")) == "KeyError: 'x'" and describe_failure(MemoryError()) == "MemoryError"


def test_limits_leave_room_for_any_conversation() -> None:
    long = [{"role": "user", "content": "x" * 1000}] * 2000  # 2 million characters
    begin = time.thread_time()
    render_chat(byte_tokenizer(), long)
    assert time.thread_time() - begin < bounded_render.CPU_S / 2

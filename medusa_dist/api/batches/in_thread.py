"""in_thread: work that blocks, in a thread, and never left behind.

Owns what happens to such work on cancellation. Not here: what the work is.
"""

import asyncio
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

from anyio.to_thread import run_sync

T = TypeVar("T")
Args = TypeVarTuple("Args")


async def in_thread(work: Callable[[*Args], T], *args: *Args) -> T:
    """Run work in a thread. A cancelled caller still waits for its end.

    Otherwise a write could come after a later one, or after the lock of the store was given to another process.
    """
    task = asyncio.create_task(_run(work, *args))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


async def _run(work: Callable[[*Args], T], *args: *Args) -> T:
    return await run_sync(work, *args)

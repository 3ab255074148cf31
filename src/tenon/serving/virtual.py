"""Simulated time for asyncio: what waits is not waited for, so that a day of a gateway's life takes a minute.

    seconds = virtual.run(a_day_of_traffic())       # inside, loop.time(), sleep, timeout and call_later agree

The loop is asyncio's own; only its clock is ours. When nothing is ready, the clock jumps to the next thing that is due.
Code under it takes its clock as `asyncio.get_running_loop().time` and must not block: threads and sockets work, but the
clock does not stand still for them.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

Made = TypeVar("Made")


class _Jump:
    """A selector that never waits: it moves the clock instead."""

    def __init__(self) -> None:
        self.now = 0.0
        self._inner = selectors.DefaultSelector()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready now; the time that would have been waited has passed."""
        if timeout is None:  # only a thread or a socket can go on
            return self._inner.select(None)
        found = self._inner.select(0)
        if timeout > 0 and not found:
            self.now += timeout
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def run(main: Coroutine[Any, Any, Made]) -> Made:
    """Run a coroutine on a loop of simulated time, from 0 on; returns what it returns."""
    selector: Any = _Jump()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(main)

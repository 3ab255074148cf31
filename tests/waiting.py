"""Waiting for what another thread or process does: no longer than it takes, and not for ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def eventually(check: Callable[[], Any], seconds: float = 10.0, *, every: float = 0.01) -> Any:
    """Ask until the answer is true, and return it; after so many seconds return the last answer, true or not."""
    until = time.monotonic() + seconds
    while not (found := check()) and time.monotonic() < until:
        time.sleep(every)
    return found

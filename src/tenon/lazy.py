"""Public names of a room, imported when they are first asked for.

A room names its modules and what each defines; `lazy` makes of it the two functions that Python asks a package for
(PEP 562). The names stand a second time under `TYPE_CHECKING`, for type checkers and editors, which run nothing: a
promise of the house holds the two together. `tenon` itself has its own, because importing it imports nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy(package: str, homes: Mapping[str, tuple[str, ...]]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package, given the names that each of its modules defines."""
    home_of = {name: f"{package}.{module}" for module, names in homes.items() for name in names}

    def resolve(name: str) -> Any:
        if name in home_of:
            return getattr(import_module(home_of[name]), name)
        raise AttributeError(f"module '{package}' has no attribute '{name}'")

    return resolve, lambda: sorted(sys.modules[package].__all__)

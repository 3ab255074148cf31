"""The local web page over what the store remembers: models, runs, versions, data, watching, findings, costs.

    app.py    routes, headers, and who may ask (only this machine, by its own name)
    read.py   from records to what a page shows
    view.py   from what a page shows to pictures
    chart.py  SVG by hand; text.py numbers and times as people read them

Read-only, no script, nothing loaded from elsewhere.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenon.ui.app import build_app, run

_HOME = {"build_app": "app", "run": "app"}
__all__ = ["build_app", "run"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"tenon.ui.{_HOME[name]}"), name)
    raise AttributeError(f"module 'tenon.ui' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)

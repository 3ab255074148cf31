"""The local web page over what the store remembers: models, runs, versions, data, watching, findings, costs.

    app.py    routes, headers, and who may ask (only this machine, by its own name)
    read.py   from records to what a page shows
    view.py   from what a page shows to pictures
    chart.py  SVG by hand; text.py numbers and times as people read them

Read-only, no script, nothing loaded from elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenon.lazy import lazy

if TYPE_CHECKING:
    from tenon.ui.app import build_app, run

_HOMES = {"app": ("build_app", "run")}
__all__ = ["build_app", "run"]

__getattr__, __dir__ = lazy(__name__, _HOMES)

"""Facts once, told three ways: gather what the store knows about a model, and draw it for whoever reads it.

    facts(store, model) -> dict                       every figure with where it comes from; reads only
    draw(facts, audience, format) -> str              audience: engineer, manager, executive; format: html, text, json

`fact` gathers (`lineage`, `made`, `live`, `spent`, `verdict` each own a part), `executive`, `manager` and `engineer`
turn facts into a `page`, `drawing` turns the page into a format, `chart` draws pictures. Everything after `facts` is
pure: no clock, no file but the templates, so the same facts give the same bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenon.lazy import lazy

if TYPE_CHECKING:
    from tenon.report.drawing import AUDIENCES, FORMATS, draw
    from tenon.report.fact import facts

__all__ = ["AUDIENCES", "FORMATS", "draw", "facts"]

_HOMES = {"drawing": ("AUDIENCES", "FORMATS", "draw"), "fact": ("facts",)}

__getattr__, __dir__ = lazy(__name__, _HOMES)

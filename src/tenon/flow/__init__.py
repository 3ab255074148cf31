"""The stages in order, from raw files to a served, watched, costed model; the only room that writes their results.

work.py     what stages work with, and how a stage is done once for what it is made of
data.py     raw files -> datasets under contract
piece.py    rows in pieces cut where their content says: kept once, opened lazily, written out
history.py  versions of a source's data, what made them and how two differ
tidy.py     what nothing needs any more
learn.py    datasets -> features -> a run -> a version before its gate
spread.py   the run of a trainer of one's own, in several processes
path.py     all of it in order, for `tenon run`
promote.py  which version answers: aliases, rollback, the audit
live.py     serving, scoring files, replay, labels
tell.py     watching, reports, the page, the costs
look.py     runs found by name, shown and compared
change.py   what changed between two runs
search.py   runs searched in SQL
single.py   ingest and check on their own, without a project
begin.py    a new project
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenon.lazy import lazy

if TYPE_CHECKING:
    from tenon.flow.path import Outcome, run
    from tenon.flow.work import Stage, Work

_HOMES = {"path": ("Outcome", "run"), "work": ("Stage", "Work")}

__all__ = ["Outcome", "Stage", "Work", "run"]

__getattr__, __dir__ = lazy(__name__, _HOMES)

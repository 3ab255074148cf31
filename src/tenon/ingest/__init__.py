"""Messy files in, typed columns out, every byte accounted for.

`job` has the words (what is asked, what came of it, the account of bytes) and `read` the way through. Names are found
on first use, so that declaring a source costs nothing of reading one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenon.lazy import lazy

if TYPE_CHECKING:
    from tenon.ingest.job import Balance, ColumnFacts, Ingested, Job
    from tenon.ingest.read import ingest

_HOMES = {"job": ("Balance", "ColumnFacts", "Ingested", "Job"), "read": ("ingest",)}

__all__ = ["Balance", "ColumnFacts", "Ingested", "Job", "ingest"]

__getattr__, __dir__ = lazy(__name__, _HOMES)

"""Messy files in, typed columns out, every byte accounted for.

`job` has the words (what is asked, what came of it, the account of bytes) and `read` the way through. Names are found
on first use, so that declaring a source costs nothing of reading one.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenon.ingest.job import Balance, ColumnFacts, Ingested, Job
    from tenon.ingest.read import ingest

_HOME = {
    "Balance": "tenon.ingest.job",
    "ColumnFacts": "tenon.ingest.job",
    "Ingested": "tenon.ingest.job",
    "Job": "tenon.ingest.job",
    "ingest": "tenon.ingest.read",
}

__all__ = ["Balance", "ColumnFacts", "Ingested", "Job", "ingest"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'tenon.ingest' has no attribute '{name}'")

"""Derived columns where they are missing: a request brings raw columns, a frame from ingest brings them all.

The SQL is the contract's and so is its execution (`contract.derived`); here is only the choice of what to compute, and
a cache of prepared derivations, because preparing one parses SQL and evaluates its lookups, which a request must not
wait for. A derived column that is already there is taken as it is, and then what it is made of is not asked for. A
column that may be null and is not given is null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from tenon.contract.column import Source
from tenon.contract.derived import Derivation, derivation
from tenon.contract.frame import DTYPES
from tenon.errors import InputError, sentence
from tenon.feature.compile import ancestry, parents
from tenon.feature.facts import latest, typed
from tenon.feature.plan import types_of

Row = Mapping[str, Any]
PREPARED = 64  # derivations kept; each set of columns that rows lack has one


class Deriver:
    """Computes missing derived columns of several sources; `lookups` are the rows that they are looked up in."""

    __slots__ = ("_derived", "_prepared", "_sources", "lookups")

    def __init__(self, sources: Mapping[str, Source], lookups: Mapping[str, pl.DataFrame]) -> None:
        self._sources, self.lookups = sources, dict(lookups)
        self._prepared: dict[tuple[str, frozenset[str]], Derivation] = {}
        self._derived: dict[tuple[str, tuple[str, ...]], tuple[str, ...]] = {}

    def frame(self, source: str, names: tuple[str, ...], frame: pl.DataFrame) -> pl.DataFrame:
        """Return the frame with those of the named columns that are derived and that it lacks."""
        lacking = [name for name in self._derived_of(source, names) if name not in frame.columns]
        raw = ancestry(self._sources[source], names, self._sources, frame.columns)
        frame = with_optional(frame, self._sources[source], raw)
        if not lacking:
            return frame
        prepared = self._prepare(source, lacking, frame.columns)
        for name in sorted(prepared.inputs - set(frame.columns)):
            raise InputError(
                sentence(
                    f"the column '{name}', to derive {', '.join(lacking)}",
                    "rows without it",
                    at=f"source '{source}'",
                    hint="give it, or the derived columns themselves",
                )
            )
        return prepared.frame(frame)

    def rows(self, source: str, names: tuple[str, ...], rows: Sequence[Row]) -> Sequence[Row]:
        """Return plain rows with those of the named columns that are derived and that some row lacks."""
        derived = self._derived_of(source, names)
        lacking = [name for name in derived if any(name not in row for row in rows)]
        if not lacking:
            return rows
        present = set.intersection(*(set(row) for row in rows))
        return self._prepare(source, lacking, present).rows(rows)

    def put(self, source: str, rows: pl.DataFrame) -> int:
        """Take in rows of a source that columns are looked up in, and return how many changed something."""
        if source not in self.lookups:
            return 0
        kept = self.lookups[source]
        fresh = typed(rows, self._sources[source], kept.columns)
        changed = fresh.join(kept, on=kept.columns, how="anti", nulls_equal=True).height
        if changed:
            self.lookups[source] = latest(pl.concat([kept, fresh]), list(self._sources[source].key))
            self._prepared.clear()
        return changed

    def _derived_of(self, source: str, names: tuple[str, ...]) -> tuple[str, ...]:
        """Name the derived ones among the columns."""
        found = self._derived.get((source, names))
        if found is None:
            of = self._sources[source]
            found = tuple(name for name in names if parents(of, name, self._sources))
            self._derived[source, names] = found
        return found

    def _prepare(self, source: str, lacking: Sequence[str], present: Any) -> Derivation:
        of = self._sources[source]
        derived = [column for column in of.columns if column.derive]
        given = frozenset(column.name for column in derived if column.name in present)
        known = (source, given | {f"?{name}" for name in lacking})
        found = self._prepared.get(known)
        if found is None:
            needed = set(ancestry(of, lacking, self._sources, given)) - given
            columns = [column for column in derived if column.name in needed]
            keys = {column.of: self._sources[column.of].key for column in columns if column.of}
            found = derivation(columns, types_of(of), {name: self.lookups[name] for name in keys}, keys)
            if len(self._prepared) >= PREPARED:
                self._prepared.clear()
            self._prepared[known] = found
        return found


def with_optional(frame: pl.DataFrame, source: Source, names: Sequence[str]) -> pl.DataFrame:
    """Return the frame with a column of nulls for each named one that is absent, nullable and not derived."""
    absent = [column for column in source.columns if column.name in set(names) - set(frame.columns)]
    nulls = [
        pl.lit(None, dtype=DTYPES[column.type]).alias(column.name)
        for column in absent
        if column.nullable and not column.derive
    ]
    return frame.with_columns(nulls) if nulls else frame

"""Derived columns where they are missing: a request brings raw columns, a frame from ingest brings them all.

The SQL is the contract's and so is its execution (`contract.derived`); here is only the choice of what to compute, and
a cache of prepared derivations, because preparing one parses SQL and evaluates its lookups, which a request must not
wait for. A derived column that is already there is taken as it is, and then what it is made of is not asked for. A
column that may be null and is not given is null.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from tenon.contract.column import Column, Source
from tenon.contract.derived import Derivation, derivation
from tenon.contract.frame import DTYPES
from tenon.errors import InputError, sentence
from tenon.feature.compile import ancestry, parents
from tenon.feature.facts import latest, typed
from tenon.feature.plan import types_of

Row = Mapping[str, Any]
PREPARED = 64  # derivations kept; each set of columns that rows lack has one


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What is done to rows that lack certain columns: which nulls are filled in, and what is derived."""

    optional: tuple[Column, ...]
    derivation: Derivation | None


class Deriver:
    """Computes missing derived columns of several sources; `lookups` are the rows that they are looked up in."""

    __slots__ = ("_derived", "_prepared", "_sources", "lookups")

    def __init__(self, sources: Mapping[str, Source], lookups: Mapping[str, pl.DataFrame]) -> None:
        self._sources, self.lookups = sources, dict(lookups)
        self._prepared: dict[tuple[str, tuple[str, ...], frozenset[str]], Prepared] = {}
        self._derived: dict[tuple[str, tuple[str, ...]], tuple[str, ...]] = {}

    def frame(self, source: str, names: tuple[str, ...], frame: pl.DataFrame) -> pl.DataFrame:
        """Return the frame with those of the named columns that are derived, or may be null, and that it lacks."""
        prepared = self._prepare(source, names, frame.columns)
        if prepared.optional:
            nulls = [pl.lit(None, dtype=DTYPES[column.type]).alias(column.name) for column in prepared.optional]
            frame = frame.with_columns(nulls)
        if prepared.derivation is None:
            return frame
        for name in sorted(prepared.derivation.inputs - set(frame.columns)):
            raise InputError(
                sentence(
                    f"the column '{name}', from which others are derived",
                    "rows without it",
                    at=f"source '{source}'",
                    hint="give it, or the derived columns themselves",
                )
            )
        return prepared.derivation.frame(frame)

    def rows(self, source: str, names: tuple[str, ...], rows: Sequence[Row]) -> Sequence[Row]:
        """Return plain rows with those of the named columns that are derived and that some row lacks."""
        derived = self._derived.get((source, names))
        if derived is None:
            of = self._sources[source]
            derived = tuple(name for name in names if parents(of, name))
            self._derived[source, names] = derived
        if all(name in row for row in rows for name in derived):
            return rows
        present = set.intersection(*(set(row) for row in rows))
        prepared = self._prepare(source, names, present)
        return rows if prepared.derivation is None else prepared.derivation.rows(rows)

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

    def _prepare(self, source: str, names: tuple[str, ...], present: Collection[str]) -> Prepared:
        of = self._sources[source]
        declared = frozenset(column.name for column in of.columns if column.name in present)
        found = self._prepared.get((source, names, declared))
        if found is None:
            every = ancestry(of, names, declared)
            lacking = [column for column in of.columns if column.name in every and column.name not in declared]
            derived = [column for column in lacking if column.derive]
            keys = {column.of: self._sources[column.of].key for column in derived if column.of}
            lookups = {name: self.lookups[name] for name in keys if name in self.lookups}
            found = Prepared(
                optional=tuple(column for column in lacking if column.nullable and not column.derive),
                derivation=derivation(derived, types_of(of), lookups, keys) if derived else None,
            )
            if len(self._prepared) >= PREPARED:
                self._prepared.clear()
            self._prepared[source, names, declared] = found
        return found

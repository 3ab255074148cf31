"""A FeatureSet: feature definitions compiled once, run over whole frames, or over the state of a service.

`compile` checks the words and names the set by a digest of everything that gives the features their meaning: their
definitions, the code of Python functions, the label, and the columns of the sources they read with the SQL those are
derived by. Two sets of one digest give the same values for the same rows; a stored matrix or online state of another
digest is never mistaken for this set's.

Derived columns are computed where they are missing (a request has the raw ones, a frame from ingest has them all), by
the SQL of the source's contract, whichever stage asks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import polars as pl

from tenon.contract import sql
from tenon.contract.column import ColumnType, Source
from tenon.errors import MissingError, sentence
from tenon.feature import matrix, online
from tenon.feature.compile import ancestry, function_source, parents, plan, source_of
from tenon.feature.derive import Deriver
from tenon.feature.examine import examine
from tenon.feature.facts import columns_needed, fact_table, finite, latest, lookup_table, micros_column, timed, typed
from tenon.feature.online import Online
from tenon.feature.plan import (
    History,
    HistoryFeature,
    Kind,
    Plan,
    RowFeature,
    Table,
    TableFeature,
    types_of,
)
from tenon.feature.words import Feature, Label
from tenon.finding import Finding

MEANING = 1  # part of the digest; raised when a release changes what a definition computes


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSet:
    """Features of one model, compiled: the same values offline (`matrix`) and online (`online`, then `Online.read`)."""

    features: tuple[Feature, ...]
    label: Label
    spine: Source
    sources: Mapping[str, Source]
    plan: Plan
    needs: Mapping[str, tuple[str, ...]]  # columns of each source that the features, the label or a derivation read
    lookups: Mapping[str, tuple[str, ...]]  # columns of each source that derived columns are looked up in
    digest: str

    @classmethod
    def compile(
        cls, features: Sequence[Feature], label: Label, spine: Source, sources: Mapping[str, Source]
    ) -> FeatureSet:
        """Check every word and compile; ConfigError names the feature, what is wrong, and what to do.

        Sources must declare every column that is read, with its type; `sources` may hold the spine too.
        """
        everything = {**sources, spine.name: spine}
        compiled = plan(features, label, spine, everything)
        needs, lookups = _needs(compiled, spine, everything)
        return cls(
            features=tuple(features),
            label=label,
            spine=spine,
            sources=everything,
            plan=compiled,
            needs=needs,
            lookups=lookups,
            digest=_digest(features, label, spine, everything, needs),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Name the features, in order."""
        return tuple(feature.name for feature in self.plan.features)

    @property
    def kinds(self) -> dict[str, Kind]:
        """Return "number" or "category" for each feature."""
        return {feature.name: feature.kind for feature in self.plan.features}

    @property
    def definition(self) -> list[dict[str, Any]]:
        """Return the definitions as plain data, as kept with a model."""
        return [feature.to_dict() for feature in self.features]

    @property
    def inputs(self) -> dict[str, ColumnType]:
        """Return the columns of a request, with types: what the features read, down to what is not derived."""
        types = {name: cast(ColumnType, kind) for name, kind in types_of(self.spine).items()}
        every = ancestry(self.spine, self.plan.spine_columns)
        return {name: types[name] for name in every if not parents(self.spine, name)}

    # ── whole frames ─────────────────────────────────────────────────────────────────────────────────────────────────

    def matrix(self, frames: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
        """Return one row for each row of the spine: the features, then `_label`, `_time`, `_known` and `_key_*`.

        `frames` holds a frame for the spine and for every other source that is read. Reads only; takes a few passes
        over each source and about eight bytes for each value it returns.
        """
        facts, tables, complete = self._tables(frames)
        rows = complete[self.spine.name]
        spine = typed(rows, self.spine, self.needs[self.spine.name])
        timed(spine, self.spine)
        times = spine.select(micros_column(self.spine.time)).to_series().to_numpy()
        found: dict[str, pl.Series] = {}
        for name, history in self.plan.histories.items():
            wanted = [f for f in self.plan.features if isinstance(f, HistoryFeature) and f.source == name]
            for column in matrix.history_features(history, wanted, facts[name], spine, times):
                found[column.name] = column
        for feature in self.plan.features:
            if isinstance(feature, RowFeature):
                found[feature.name] = matrix.row_feature(feature, spine)
            elif isinstance(feature, TableFeature):
                found[feature.name] = matrix.table_feature(feature, tables[feature.source], spine)
        moment = pl.Datetime("us")
        rest = spine.select(
            finite(sql.to_polars(self.plan.label)).alias("_label"),
            pl.col(self.spine.time).cast(moment).alias("_time"),
            pl.col(self.plan.label_known).cast(moment).alias("_known"),
            *(pl.col(name).alias(f"_key_{name}") for name in self.spine.key),
        )
        return pl.DataFrame([found[name] for name in self.names]).hstack(rest) if found else rest

    def online(self, frames: Mapping[str, pl.DataFrame]) -> Online:
        """Return the state of everything the frames know, for `Online.read`."""
        facts, tables, complete = self._tables(frames)
        lookups = {}
        for name, columns in self.lookups.items():
            lookups[name] = latest(typed(complete[name], self.sources[name], columns), list(self.sources[name].key))
        return Online(self, facts, tables, lookups)

    def load(self, body: bytes) -> Online:
        """Read back what `Online.to_bytes` gave; CorruptError when damaged, InputError when of other features."""
        return online.load(self, body)

    def examine(self, frames: Mapping[str, pl.DataFrame], made: pl.DataFrame) -> list[Finding]:
        """Return findings about the sources that features look back on and about the matrix made of them."""
        return examine(self, frames, made)

    def _tables(
        self, frames: Mapping[str, pl.DataFrame]
    ) -> tuple[dict[str, pl.DataFrame], dict[str, pl.DataFrame], dict[str, pl.DataFrame]]:
        """Return the facts of each history, the rows of each lookup table, and the frames with derived columns."""
        for name in self.needs:
            if name not in frames:
                raise MissingError(
                    sentence(
                        f"the rows of source '{name}'",
                        "none",
                        at="feature set",
                        hint=f"there are {', '.join(sorted(frames)) or 'none'}",
                    )
                )
        deriver = Deriver(self.sources, frames)
        complete = {name: deriver.frame(name, columns, frames[name]) for name, columns in self.needs.items()}
        facts = {name: fact_table(history, complete[name]) for name, history in self.plan.histories.items()}
        tables = {name: lookup_table(table, complete[name]) for name, table in self.plan.tables.items()}
        return facts, tables, complete

    # ── derived columns ──────────────────────────────────────────────────────────────────────────────────────────────

    def derive(self, source: str, frame: pl.DataFrame, lookups: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
        """Return the frame with every derived column of the source that it lacks, by the SQL of its contract."""
        every = tuple(column.name for column in self.sources[source].columns)
        return Deriver(self.sources, lookups).frame(source, every, frame)


def _needs(
    compiled: Plan, spine: Source, sources: Mapping[str, Source]
) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """Return the columns needed of each source, and of those, what derived columns are looked up in."""
    needs: dict[str, dict[str, None]] = {
        spine.name: dict.fromkeys(
            (*compiled.spine_columns, *spine.key, compiled.label_known, *sorted(sql.columns(compiled.label)))
        )
    }
    lookups: dict[str, dict[str, None]] = {}
    read_of: dict[str, History | Table] = {**compiled.histories, **compiled.tables}
    for name, read in read_of.items():
        needs.setdefault(name, {}).update(dict.fromkeys(columns_needed(read)))
    waiting = list(needs)
    while waiting:
        source = sources[waiting.pop()]
        for name in ancestry(source, needs[source.name]):
            column = source.column(name)
            if column is not None and column.of:
                other = source_of(column, source, sources)
                read_there = sql.columns(
                    sql.parse(column.derive, f"source '{source.name}', column '{name}'", types_of(other))
                )
                wanted = dict.fromkeys((*other.key, *sorted(read_there)))
                lookups.setdefault(other.name, {}).update(wanted)
                if not wanted.keys() <= needs.get(other.name, {}).keys():
                    needs.setdefault(other.name, {}).update(wanted)
                    waiting.append(other.name)
    return {name: tuple(kept) for name, kept in needs.items()}, {name: tuple(kept) for name, kept in lookups.items()}


def _digest(
    features: Sequence[Feature],
    label: Label,
    spine: Source,
    sources: Mapping[str, Source],
    needs: Mapping[str, Sequence[str]],
) -> str:
    """Name everything that gives the features their meaning, in 12 hex digits."""
    read = {}
    for name, columns in sorted(needs.items()):
        source = sources[name]
        every = ancestry(source, columns)
        types = types_of(source)
        kept = {c.name: c for c in source.columns}
        read[name] = {
            "key": list(source.key),
            "time": source.time,
            "known": source.known_at,
            "columns": [
                [each, types[each], *((kept[each].derive, kept[each].of, kept[each].on) if each in kept else ())]
                for each in sorted(every)
            ],
        }
    meaning = {
        "meaning": MEANING,
        "features": [feature.to_dict() for feature in features],
        "functions": {f.name: function_source(f.function) for f in features if f.function is not None},
        "label": [label.sql, label.known],
        "spine": spine.name,
        "sources": read,
    }
    return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()[:12]

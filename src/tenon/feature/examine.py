"""What a person should know about the data that features were made of: findings, counted, with what to do.

None of these stops the work; the matrix is well defined in each case (the module `plan` says how). They are the usual
signs that a key, a time or a join is not what its author believes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import polars as pl

from tenon.contract.column import Severity, Source
from tenon.feature.facts import typed
from tenon.feature.plan import History
from tenon.finding import Finding

if TYPE_CHECKING:
    from tenon.feature.featureset import FeatureSet

_COUNTED = {"never-known": "unknown", "known-early": "early", "repeated-fact": "repeated"}


def examine(features: FeatureSet, frames: Mapping[str, pl.DataFrame], matrix: pl.DataFrame) -> list[Finding]:
    """Return what stands out in the sources that features look back on, and in the finished matrix; reads only."""
    found: list[Finding] = []
    for name, history in features.plan.histories.items():
        found += _history(history, frames[name])
    for name, table in features.plan.tables.items():
        found += _repeated(table.source, frames[name], table.source.key, "and only the last counts")
    found += _constant(features, matrix)
    return found


def _history(history: History, frame: pl.DataFrame) -> Iterator[Finding]:
    source = history.source
    place = f"source '{source.name}', column '{source.known_at}'"
    yield from _repeated(source, frame, (*source.key, source.time), "and are taken for earlier versions of it")
    if source.known_at == source.time or not {source.time, source.known_at} <= set(frame.columns):
        return
    rows = typed(frame, source, (source.time, source.known_at))
    unknown = rows[source.known_at].null_count()
    if unknown:
        said = "never became known and are in no window"
        hint = "Right for what never came to an end; otherwise find out why the time is missing."
        yield _some("never-known", place, (unknown, rows.height), said, hint, "info")
    early = int(rows.select((pl.col(source.known_at) < pl.col(source.time)).sum()).item() or 0)
    if early and history.own:
        said = "are known before they happened; they count only after"
        hint = "Look for local time beside UTC, or a time of the next day with the date of this one."
        yield _some("known-early", place, (early, rows.height), said, hint)


def _some(
    kind: str, place: str, share: tuple[int, int], said: str, hint: str, severity: Severity = "warning"
) -> Finding:
    """Say something of a share of rows: how many, of how many."""
    count, rows = share
    return Finding(
        code=f"feature/{kind}",
        severity=severity,
        place=place,
        said=f"{count:,} of {rows:,} rows {said}.",
        hint=hint,
        numbers={"rows": rows, _COUNTED[kind]: count},
    )


def _repeated(source: Source, frame: pl.DataFrame, identity: Sequence[str], meaning: str) -> Iterator[Finding]:
    if not set(identity) <= set(frame.columns) or frame.height < 2:
        return
    repeated = frame.height - frame.n_unique(identity)
    if repeated:
        said = f"share {', '.join(identity)} with a later row, {meaning}"
        hint = "If they are different things, add the column that tells them apart to key=."
        yield _some("repeated-fact", f"source '{source.name}'", (repeated, frame.height), said, hint)


def _constant(features: FeatureSet, matrix: pl.DataFrame) -> Iterator[Finding]:
    if matrix.height < 2:
        return
    for name in features.names:
        values = matrix[name]
        if values.n_unique() > 1:
            continue
        if values.null_count():
            said, hint = "No row of {:,} has a value.", "Compare keys and times of the two sources: nothing matched."
        else:
            said, hint = "All {:,} rows have one value.", "Leave it out, or find out why it never varies."
        yield Finding(
            code="feature/constant",
            severity="warning",
            place=f"feature '{name}'",
            said=said.format(matrix.height),
            hint=hint,
            numbers={"rows": matrix.height},
        )

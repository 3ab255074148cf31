"""Versions of a source's data: which there are, what made them, how two differ, and their rows in a file again.

A version is the rows of a dataset, named by what they are: `content` is the hash of the digests of its pieces, so the
same rows are the same version however often and from whatever they were made. People say `flights@3`, or `@latest` and
`@previous`, or the beginning of an id; the number is given when a version is first kept and stays with it. The id of a
dataset record, which runs and model versions name, stands for the version it holds.

A difference is told from records and profiles alone: it reads kilobytes, so two versions of a thousand million rows are
compared as quickly as two of a thousand. Columns are ordered by how much changed, which is a share of rows between 0
and 1: the largest gap between the two distributions (Kolmogorov-Smirnov, total variation for categories) or the change
of the share that is missing, whichever is larger; a column of another kind counts as 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from tenon import contract, sketch
from tenon.errors import MissingError, UsageError, nearest, sentence
from tenon.flow.work import digest
from tenon.sketch.summary import ColumnProfile
from tenon.store import Store

LATEST, PREVIOUS = "latest", "previous"
SHORTEST = 4  # letters of an id that must be given
TOP = 5  # most frequent values that are told
QUANTILES = {"p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version of a source: its rows, what they share with the version before, and every dataset that holds them.

    `records` are those datasets, oldest first; `why` says what had changed when it was first made; `used_by` names the
    model versions, and the features without one, that were made of it.
    """

    source: str
    number: int
    id: str
    records: tuple[Mapping[str, Any], ...]
    bytes: int
    shared_bytes: int
    shared_rows: int
    contract_changed: bool
    why: tuple[str, ...]
    used_by: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Return what people call it: source@number."""
        return f"{self.source}@{self.number}"

    @property
    def record(self) -> Mapping[str, Any]:
        """Return the newest dataset that holds these rows."""
        return self.records[-1]

    @property
    def rows(self) -> int:
        """Return how many rows it has."""
        return int(self.record["rows"])

    def to_dict(self) -> dict[str, Any]:
        """Return the version with its lineage as plain data."""
        first = self.records[0]
        return {
            "name": self.name,
            "source": self.source,
            "number": self.number,
            "id": self.id,
            "at": first["at"],
            "rows": self.rows,
            "columns": len(self.record["columns"]),
            "quarantined": self.record["quarantined"],
            "bytes": self.bytes,
            "shared_bytes": self.shared_bytes,
            "shared_rows": self.shared_rows,
            "pieces": len(self.record["files"]),
            "contract": self.record["contract"],
            "contract_changed": self.contract_changed,
            "why": list(self.why),
            "datasets": [_lineage(record) for record in self.records],
            "used_by": list(self.used_by),
        }


def _lineage(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": record["id"],
        "at": record["at"],
        "ingest": record.get("ingest", ""),
        "lookups": dict(record.get("lookups") or {}),
        "raw": list(record.get("raw") or [{"path": path} for path in record.get("paths") or ()]),
        "made": dict(record.get("made") or {}),
    }


# ── which there are ──────────────────────────────────────────────────────────────────────────────────────────────────


def content_of(record: Mapping[str, Any]) -> str:
    """Name the rows of a dataset by what they are: the hash of its source and of its pieces, which hold the schema."""
    return digest({"source": record["source"], "files": list(record["files"])})[:12]


def numbered(store: Store, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a new dataset's record with its content and its number: the next, or the one these rows have already."""
    content, taken = content_of(record), 0
    for number, known, _ in _numbers(_datasets(store, record["source"])):
        if known == content:
            return {**record, "content": content, "number": number}
        taken = max(taken, number)
    return {**record, "content": content, "number": taken + 1}


def versions(store: Store, source: str = "") -> list[Version]:
    """Return the versions of a source, or of all by name, oldest first. Reads records only."""
    found = []
    used = _used(store)
    for name in [source] if source else sorted({record["source"] for record in store.find("dataset")}):
        made = _datasets(store, name)
        # What a version came after is the dataset made last before it, which may hold the rows of an older version.
        preceding = dict(zip((record["id"] for record in made[1:]), made, strict=False))
        files: set[str] = set()
        for number, content, records in _numbers(made):
            version = _version(store, (number, content, records), preceding.get(records[0]["id"]), files)
            found.append(replace(version, used_by=_users(records, used)))
            files = set(records[-1]["files"])
    if source and not found:
        known = {record["source"] for record in store.find("dataset")}
        hint = nearest(source, known) if known else "run `tenon run` first"
        raise MissingError(sentence("a source with data", f"'{source}'", at=str(store.root), hint=hint))
    return found


def find(store: Store, name: str) -> Version:
    """Return the version of that name: source, source@number, @latest, @previous, or the beginning of an id.

    An id is that of the version or of a dataset; alone it needs four letters, behind a source one. Raises MissingError
    when there is none, and UsageError when there are several.
    """
    source, _, which = name.partition("@")
    sources = {record["source"] for record in store.find("dataset")}
    if source in sources:
        return _of_source(versions(store, source), name, which or LATEST)
    every = versions(store)
    found = [one for one in every if _is(one, name)] if len(name) >= SHORTEST and not which else []
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(f"{one.id} ({one.name})" for one in found)
        raise UsageError(sentence("one version", f"'{name}', the beginning of {names}", hint="give more of the id"))
    known = [*sources, *(one.name for one in every), *(one.id for one in every)]
    hint = f"{nearest(name, known)}; `tenon data list` shows all" if known else "run `tenon run` first"
    raise MissingError(sentence("a version of a source", f"'{name}'", at=str(store.root), hint=hint))


def _of_source(every: Sequence[Version], name: str, which: str) -> Version:
    numbers = {str(one.number): one for one in every}
    numbers[LATEST] = every[-1]
    if len(every) > 1:
        numbers[PREVIOUS] = every[-2]
    if which in numbers:
        return numbers[which]
    found = [one for one in every if _is(one, which)]
    if len(found) == 1:
        return found[0]
    words = ", ".join(word for word in (LATEST, PREVIOUS) if word in numbers)
    allowed = f"{every[0].number} to {every[-1].number}, {words} or an id"
    raise MissingError(sentence("a version of this source", f"'{name}'", hint=f"after the @ say {allowed}"))


def _is(version: Version, name: str) -> bool:
    return version.id.startswith(name) or any(record["id"].startswith(name) for record in version.records)


def _datasets(store: Store, source: str) -> list[dict[str, Any]]:
    return store.find("dataset", newest_first=False, source=source)


def _numbers(records: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, str, list[Mapping[str, Any]]]]:
    """Yield (number, content, datasets) of one source in order; what an earlier release kept gets the next number."""
    by_content: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        by_content.setdefault(content_of(record), []).append(record)
    taken, found = 0, []
    for content, group in by_content.items():
        given = [int(record["number"]) for record in group if record.get("number")]
        taken = given[0] if given else taken + 1
        found.append((taken, content, group))
    yield from sorted(found, key=lambda one: one[0])


def _users(records: Iterable[Mapping[str, Any]], used: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for record in records for name in used.get(record["id"], ())))


def _version(
    store: Store, found: tuple[int, str, list[Mapping[str, Any]]], before: Mapping[str, Any] | None, theirs: set[str]
) -> Version:
    number, content, records = found
    sizes = _sizes(store, records[-1])
    shared = {digest: size for digest, size in sizes.items() if digest in theirs}
    return Version(
        source=records[0]["source"],
        number=number,
        id=content,
        records=tuple(records),
        bytes=sum(size for _, size in sizes.values()),
        shared_bytes=sum(size for _, size in shared.values()),
        shared_rows=sum(rows for rows, _ in shared.values()),
        contract_changed=bool(before and before["contract"] != records[0]["contract"]),
        why=_why(before, records[0]) if before else ("first version",),
    )


def _sizes(store: Store, record: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Return (rows, bytes) of each piece; a dataset of an earlier release is asked for its bytes."""
    pieces = record.get("pieces") or ()
    if len(pieces) == len(record["files"]):
        return {digest: (rows, size) for digest, (rows, size) in zip(record["files"], pieces, strict=True)}
    here = set(record["files"]) - store.blobs.absent(record["files"])
    rows = record["rows"] if len(record["files"]) == 1 else 0
    return {digest: (rows, store.blobs.size(digest)) for digest in record["files"] if digest in here}


def _why(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    """Say what differs between what two datasets were made of."""
    said = []
    raws = [{Path(raw["path"]).name: raw.get("content") for raw in _lineage(one)["raw"]} for one in (before, after)]
    new, gone = sorted(set(raws[1]) - set(raws[0])), sorted(set(raws[0]) - set(raws[1]))
    changed = sorted(name for name in set(raws[0]) & set(raws[1]) if raws[0][name] != raws[1][name])
    for words, names in (("new", new), ("without", gone), ("changed", changed)):
        if names:
            said.append(f"{words}: {names[0]}" + (f" and {len(names) - 1} more files" if len(names) > 1 else ""))
    if before["contract"] != after["contract"]:
        said.append("contract")
    lookups = [dict(one.get("lookups") or {}) for one in (before, after)]
    said += [f"lookup {name}" for name in sorted(lookups[1]) if lookups[0].get(name) != lookups[1][name]]
    made = [dict(one.get("made") or {}) for one in (before, after)]
    if before["contract"] == after["contract"] and _differs(made, "declared"):
        said.append("declaration")
    said += [f"{name} {made[1][name]}" for name in ("tenon", "polars") if _differs(made, name)]
    if not said and before.get("ingest") != after.get("ingest"):
        said.append("raw files or the columns that are read")
    return tuple(said)


def _differs(made: Sequence[Mapping[str, Any]], name: str) -> bool:
    return bool(made[0].get(name) and made[1].get(name) and made[0][name] != made[1][name])


def _used(store: Store) -> dict[str, tuple[str, ...]]:
    """Return by dataset what was made of it: model versions with their aliases, and features no version has."""
    found: dict[str, list[str]] = {}
    aliases: dict[str, list[str]] = {}
    for alias in store.find("alias"):
        aliases.setdefault(str(alias.get("version")), []).append(str(alias.get("alias")))
    through = set()
    for version in store.find("version", newest_first=False):
        through.add(version.get("features"))
        held = aliases.get(version["id"], [])
        name = f"{version['model']}/{version['number']}" + (f" ({', '.join(held)})" if held else "")
        for dataset in (version.get("datasets") or {}).values():
            found.setdefault(dataset, []).append(name)
    for features in store.find("features", newest_first=False):
        if features["id"] not in through:
            for dataset in (features.get("datasets") or {}).values():
                found.setdefault(dataset, []).append(f"features of {features['model']}")
    return {dataset: tuple(dict.fromkeys(names)) for dataset, names in found.items()}


# ── how two differ ───────────────────────────────────────────────────────────────────────────────────────────────────


def difference(store: Store, before: Version, after: Version) -> dict[str, Any]:
    """Say what changed from one version to another, as plain data. Reads records, profiles and contracts; no row."""
    pair = (before.record, after.record)
    ours, theirs = (sketch.Profile.from_bytes(store.blobs.read(record["profile"])) for record in pair)
    found = sketch.diff(ours, theirs)
    types = [{column["name"]: column for column in record["columns"]} for record in pair]
    both = [name for name in types[0] if name in types[1]]
    sizes = _sizes(store, pair[1])
    shared = [sizes[digest] for digest in set(pair[0]["files"]) & set(sizes)]
    columns = [
        {
            "column": name,
            "change": _change(name, found),
            "said": list(said),
            "psi": _finite(found.columns[name].psi),
            "distance": _finite(found.columns[name].distance),
            "before": summary(ours.columns[name]),
            "after": summary(theirs.columns[name]),
        }
        for name, said in found.said.items()
    ]
    return {
        "before": _side(before),
        "after": _side(after),
        "same": before.id == after.id,
        "rows": list(found.rows),
        "shared_rows": sum(rows for rows, _ in shared),
        "shared_bytes": sum(size for _, size in shared),
        "quarantined": [record["quarantined"] for record in pair],
        "repaired": [record.get("repaired", 0) for record in pair],
        "schema": {
            "added": [_typed(types[1][name]) for name in types[1] if name not in types[0]],
            "removed": [_typed(types[0][name]) for name in types[0] if name not in types[1]],
            "changed": [
                {"name": name, "before": _typed(types[0][name]), "after": _typed(types[1][name])}
                for name in both
                if _typed(types[0][name]) != _typed(types[1][name])
            ],
        },
        "contract": _contracts(store, *pair),
        "findings": _findings(*pair),
        "columns": sorted(columns, key=lambda column: -column["change"]),
        "unchanged": [name for name in both if name not in found.said],
    }


def _side(version: Version) -> dict[str, Any]:
    whole = version.to_dict()
    return {name: whole[name] for name in ("name", "source", "id", "at", "rows", "bytes", "contract")}


def _typed(column: Mapping[str, Any]) -> dict[str, Any]:
    return {name: column.get(name) for name in ("name", "type", "unit", "derived", "late")}


def _change(name: str, found: sketch.Difference) -> float:
    if name in found.retyped:
        return 1.0
    figures = found.columns[name]
    parts = [figures.distance, abs(figures.missing_delta)]
    return max(part for part in (*parts, 0.0) if math.isfinite(part))


def summary(column: ColumnProfile) -> dict[str, Any]:
    """Return what a column's profile says, as plain data; times in ISO 8601, what has no meaning is None."""

    def value(number: float) -> Any:
        if column.kind != "time" or not math.isfinite(number):
            return _finite(number)
        return str(np.datetime64(round(number), "s"))

    body: dict[str, Any] = {
        "kind": column.kind,
        "rows": column.rows,
        "missing_pct": 100 * column.missing_share,
        "distinct": column.distinct if column.kind != "other" else None,
    }
    if column.kind in ("number", "time"):
        body |= {"mean": value(column.mean), "min": value(column.min), "max": value(column.max)}
        body |= {"std": _finite(column.std)}
        body |= {name: value(column.quantile(q)) if column.count else None for name, q in QUANTILES.items()}
    if column.kind == "category":
        body["top"] = [[level, 100 * count / column.count] for level, count in column.top(TOP)]
    return body


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _contracts(store: Store, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Say what changed in the contract, a line for each word of it."""
    if before["contract"] == after["contract"]:
        return []
    old, new = (contract.Contract.from_odcs(store.blobs.read(one["contract"]).decode()) for one in (before, after))
    said = []
    for field in fields(contract.Contract):
        was, now = getattr(old, field.name), getattr(new, field.name)
        if field.name not in ("columns", "rules", "unread") and was != now:
            said.append(f"{field.name}: {_word(was)} -> {_word(now)}")
    rules = [{rule.sql: rule for rule in one.rules} for one in (old, new)]
    said += [f"rule added: {sql}" for sql in rules[1] if sql not in rules[0]]
    said += [f"rule removed: {sql}" for sql in rules[0] if sql not in rules[1]]
    said += [f"rule changed: {sql}" for sql in rules[0] if sql in rules[1] and rules[0][sql] != rules[1][sql]]
    for column in new.columns:
        known = old.column(column.name)
        if known is None:
            said.append(f"column {column.name}: added")
            continue
        for field in fields(contract.Column):
            was, now = getattr(known, field.name), getattr(column, field.name)
            if was != now:
                said.append(f"column {column.name}: {field.name} {_word(was)} -> {_word(now)}")
    said += [f"column {column.name}: removed" for column in old.columns if new.column(column.name) is None]
    return said or ["its text, and nothing that it means"]


def _word(value: Any) -> str:
    if isinstance(value, tuple):
        return "(" + ", ".join(map(str, value)) + ")"
    return "none" if value in (None, "") else str(value)


def _findings(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return findings that are in one only, or that say something else: a rule that more rows break, say."""
    sides = [{(one["code"], one["place"]): one["said"] for one in record["findings"]} for record in (before, after)]
    return [
        {"code": key[0], "place": key[1], "before": sides[0].get(key, ""), "after": sides[1].get(key, "")}
        for key in {**sides[0], **sides[1]}
        if sides[0].get(key) != sides[1].get(key)
    ]

"""Tidy up: results of stages that nothing needs any more, and the bytes that only they named.

What `ingest`, `dataset` and `features` made can be made again from raw files; runs, model versions, aliases, reports,
events and watches cannot, so those are never touched, nor anything they name, nor what that was made of. Of the rest
go results of ingest no dataset came of and features no run was trained on, and, when asked to keep only the newest
versions of each source, the datasets before them. The newest of its kind always stays.

A reference is the id, twelve hex digits, standing anywhere in the text of a record or event. That is a search and not a
table, because such a table can be wrong and text cannot.

Safe while another tenon works: it marks every stage it finds as used (`work.once`), and what was made or used within
a day stays. What goes is chosen and deleted in one step in which nobody else writes; bytes go after it, by the store's
own collection, which passes over whatever was put within a day.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tenon.errors import UsageError, sentence
from tenon.flow import history
from tenon.store import Garbage, Store
from tenon.store.care import Spare

GRACE_S = 24 * 3600.0
# Kinds of records that can be made again, and the field that says what they are of.
AGAIN = {"ingest": "source", "dataset": "source", "features": "model"}
# Beside those: a stage goes with what it made, and what a file held is looked up again.
PASSED_OVER = ("stage", "file")
ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{12}(?![0-9a-f])")
PAGE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Tidied:
    """What went, or would go: records, bytes nobody else names, and what is too young to go yet."""

    done: bool
    records: tuple[Mapping[str, Any], ...]
    blobs: int
    bytes: int
    leftovers: int
    young_blobs: int
    young_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {name: getattr(self, name) for name in Tidied.__slots__} | {"records": list(self.records)}


def tidy(store: Store, *, keep: int | None = None, yes: bool = False, grace_s: float = GRACE_S) -> Tidied:
    """Say what nothing needs any more and, with `yes`, delete it; `keep` is how many versions of a source stay."""
    if keep is not None and keep < 1:
        raise UsageError(sentence("at least 1 version of each source to keep", str(keep), at="--keep"))
    before = time.time() - grace_s
    if yes:
        with store.atomic():
            gone = _unneeded(store, keep, before)
            for one in gone:
                for place in (one["place"], one["stage"]):
                    if place:
                        store.delete(*place.split("/", 1))
        freed: Garbage | Spare = store.gc(grace_s=grace_s)
        left = store.spare(grace_s=grace_s)
    else:
        gone = _unneeded(store, keep, before)
        places = {place for one in gone for place in (one["place"], one["stage"])}
        freed = left = store.spare(without=places, grace_s=grace_s)
    return Tidied(
        done=yes,
        records=tuple(_said(one) for one in gone),
        blobs=freed.blobs,
        bytes=freed.size_bytes,
        leftovers=freed.leftovers,
        young_blobs=left.young_blobs,
        young_bytes=left.young_bytes,
    )


def _said(one: Mapping[str, Any]) -> dict[str, Any]:
    record = one["record"]
    of = record.get(AGAIN[one["kind"]], "")
    name = f"{of}@{one['number']}" if one["kind"] == "dataset" else of
    return {"kind": one["kind"], "id": record["id"], "of": name, "at": record["at"], "rows": record.get("rows", 0)}


def _unneeded(store: Store, keep: int | None, before: float) -> list[dict[str, Any]]:
    """Return what may go, each with its record and places; inside `atomic`, nothing can come to need it meanwhile."""
    records = {kind: {one["id"]: one for one in store.find(kind)} for kind in AGAIN}
    stages = {f"{stage['name']}/{stage['id'][:12]}": stage for stage in store.find("stage")}
    versions = history.versions(store)
    numbers = {record["id"]: one.number for one in versions for record in one.records}
    newest = {one.source: one.number for one in versions}  # the last of each source has the highest

    def stays(kind: str, id: str) -> bool:
        stage = stages.get(f"{kind}/{id}", {})
        return bool(max(records[kind][id]["at"], stage.get("used", 0.0), stage.get("at", 0.0)) >= before)

    needed = set(_named(store)) | _newest(records)
    for version in versions:
        if keep is None or version.number > newest[version.source] - keep:
            needed |= {record["id"] for record in version.records}
    needed |= {id for kind in records for id in records[kind] if stays(kind, id)}
    for kind in ("features", "dataset"):
        waiting = [record for id, record in records[kind].items() if id in needed]
        while waiting:
            record = waiting.pop()
            under = {*(record.get("datasets") or record.get("lookups") or {}).values(), record.get("ingest", "")}
            waiting += [records[kind][id] for id in under - needed if id in records[kind]]
            needed |= under
    return [
        {
            "kind": kind,
            "record": record,
            "place": f"{kind}/{id}",
            "stage": f"stage/{stages[f'{kind}/{id}']['id']}" if f"{kind}/{id}" in stages else "",
            "number": numbers.get(id, 0),
        }
        for kind in records
        for id, record in sorted(records[kind].items(), key=lambda item: item[1]["at"])
        if id not in needed
    ]


def _newest(records: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> set[str]:
    """Return the ids of the newest record of each kind for each source or model."""
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for kind, field in AGAIN.items():
        for record in records[kind].values():
            key = (kind, str(record.get(field)))
            if key not in found or record["at"] > found[key]["at"]:
                found[key] = record
    return {record["id"] for record in found.values()}


def _named(store: Store) -> Iterator[str]:
    """Yield every id that stands in the text of a record or event that cannot be made again."""
    marks = ", ".join("?" for _ in (*AGAIN, *PASSED_OVER))
    for table, where, params in (("record", f"kind NOT IN ({marks}) AND ", (*AGAIN, *PASSED_OVER)), ("event", "", ())):
        after = 0
        sql = f"SELECT seq, body FROM {table} WHERE {where}seq > ? ORDER BY seq LIMIT {PAGE}"
        while page := store.query(sql, (*params, after)):
            for row in page:
                yield from ID.findall(row["body"])
            after = page[-1]["seq"]

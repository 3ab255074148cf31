"""The facts of money: what it cost to make this version, what answering costs, and what that comes to in a month.

The stages that made the version keep what they cost, so the cost of making is their sum. The cost of answering is what
the ledger charged for requests, the same figure that `tenon cost` tells; where nothing was charged, what the windows
of live traffic kept. A month is 30 days, as in the ledger: the traffic seen spread over the days it came in, what is
kept of this version at the price of storage, and one making anew. The ledger's own entries give the money by kind, with
runs that came to nothing; entries of other models are left out, those of shared sources are not.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from tenon import ledger
from tenon.config import Prices
from tenon.errors import TenonError
from tenon.report.lineage import Records
from tenon.report.sheet import Origin, Sheet, finite, total

if TYPE_CHECKING:
    from tenon.store import Store

STAGE_NAMES = {
    "ingest": "reading raw files",
    "dataset": "checking and typing",
    "features": "building features",
    "run": "training",
    "version": "compiling and judging",
    "watch": "watching",
}
_KEPT = "bytes of this version's blobs x usd per GB and month, as the run was configured"


def spent(sheet: Sheet, records: Records, store: Store) -> None:
    """Enter what was spent and what a month comes to."""
    _making(sheet, records)
    entries = _entries(sheet, records, store)
    _answering(sheet, records, [one for one in entries if one.kind == "request"])
    _month(sheet, records, store)
    budget = records.declared.get("budget")
    limit = finite(budget.get("usd")) if isinstance(budget, dict) else None
    if limit is not None:
        origin = Origin(record="project", id=str(records.project.get("id", "")), field="models[].budget.usd")
        sheet.figure("budget.usd", limit, "budget for one training", origin, unit="usd")


def _making(sheet: Sheet, records: Records) -> None:
    made = [("ingest", one) for one in records.ingests]
    made += [("dataset", one) for one in records.datasets]
    made += [("features", records.features), ("run", records.run), ("version", records.version)]
    rows = [
        {
            "stage": STAGE_NAMES[kind],
            "what": str(one.get("source") or one.get("trainer") or ""),
            "record": kind,
            "id": str(one.get("id", "")),
            "seconds": one.get("seconds"),
            "usd": one.get("usd"),
        }
        for kind, one in made
        if one
    ]
    origin = Origin(record="stages", id=", ".join(str(row["id"]) for row in rows), field="usd")
    sheet.table("making", rows, origin)
    for key, unit, label in (
        ("usd", "usd", "cost of making this version"),
        ("seconds", "s", "time to make this version"),
    ):
        if any(finite(row[key]) is not None for row in rows):
            place = Origin(record=origin.record, id=origin.id, field=key, formula="sum over stages")
            sheet.figure(f"making.{key}", total(row[key] for row in rows), label, place, unit=unit)
    run = Origin(record="run", id=str(records.run.get("id", "")), field="usd")
    sheet.figure("run.usd", records.run.get("usd"), "cost of the training", run, unit="usd")
    peak = Origin(record="run", id=run.id, field="peak_bytes")
    sheet.figure("run.peak_bytes", records.run.get("peak_bytes"), "most memory held while training", peak, unit="bytes")
    seconds = Origin(record="run", id=run.id, field="seconds")
    sheet.figure("run.seconds", records.run.get("seconds"), "time of the training", seconds, unit="s")


def _answering(sheet: Sheet, records: Records, requests: list[ledger.Entry]) -> None:
    """Enter what 1,000 predictions cost: as charged, or as the windows kept it."""
    rows, usd = sheet.number("live.rows"), sheet.number("live.usd")
    field, formula = "windows[].usd, windows[].rows", "1000 x usd / rows"
    origin = Origin(record="watch", id=str(records.watch.get("id", "")), field=field, formula=formula)
    if answered := total(one.quantity for one in requests):
        rows, usd = answered, ledger.total(requests)
        origin = Origin(
            record="ledger", id=records.model, field="usd, quantity of requests", formula="1000 x usd / quantity"
        )
    if not rows or usd is None:
        todo = "`tenon serve`, then `tenon watch`"
        sheet.lack("cost of answering", "what a prediction costs is not known before it is served", todo)
        return
    sheet.figure(
        "cost.thousand", ledger.per_thousand(usd, round(rows)), "cost of 1,000 predictions", origin, unit="usd"
    )
    sheet.figure("cost.over", rows, "predictions that were charged", origin, unit="count")


def _month(sheet: Sheet, records: Records, store: Store) -> None:
    """Enter what a month comes to: answering, keeping, and one making anew."""
    start, end, rows = sheet.number("live.from"), sheet.number("live.to"), sheet.number("live.rows")
    thousand, making = sheet.number("cost.thousand"), sheet.number("making.usd")
    if start is None or end is None or rows is None or thousand is None:
        return
    monthly = ledger.per_month(rows, end - start)
    if monthly is None:
        return
    watched = Origin(
        record="watch",
        id=str(records.watch.get("id", "")),
        field="windows[].rows",
        formula=f"rows x 30 / {(end - start) / 86_400:.4g} days",
    )
    sheet.figure("month.rows", monthly, "predictions a month", watched, unit="count")
    parts = {"cost.answering_month": thousand * monthly / 1000, "cost.keeping_month": _keeping(records, store)}
    formulas = {"cost.answering_month": "cost of 1,000 x predictions a month / 1000", "cost.keeping_month": _KEPT}
    for key, usd in parts.items():
        label = "answering for a month" if key == "cost.answering_month" else "keeping data and model for a month"
        sheet.figure(key, usd, label, Origin(record="figures of", id=records.model, formula=formulas[key]), unit="usd")
    if making is not None:
        formula = "answering + keeping for a month + making once"
        whole = Origin(record="figures of", id=records.model, formula=formula)
        sheet.figure("cost.month", sum(parts.values()) + making, "cost of a month", whole, unit="usd")
    _value(sheet, records)


def _keeping(records: Records, store: Store) -> float:
    """Reckon what a month of keeping this version's data and model costs; a blob that is gone costs nothing."""
    config = records.run.get("config")
    found = config.get("prices") if isinstance(config, dict) else None
    price = finite(found.get("usd_per_gb_month")) if isinstance(found, dict) else None
    known: dict[str, int] = {}  # a dataset's record knows its pieces' sizes: there may be thousands to ask for
    for one in records.datasets:
        files, pieces = list(one.get("files") or ()), list(one.get("pieces") or ())
        sizes = [int(piece[1]) for piece in pieces] if len(pieces) == len(files) else [-1] * len(files)
        known |= dict(zip(map(str, files), sizes, strict=True))
    for digest in map(str, records.names()["blobs"].values()):
        known.setdefault(digest, -1)
    size = 0
    for digest, held in known.items():
        with suppress(TenonError):
            size += held if held >= 0 else store.blobs.size(digest)
    return size / ledger.GB * (price if price is not None else Prices().usd_per_gb_month)


def _value(sheet: Sheet, records: Records) -> None:
    """Enter what true alerts are worth, where the owner has said what one is worth."""
    worth = finite(records.declared.get("value_usd_true_alert"))
    known = "flagged" if sheet.number("flagged.true") is not None else "top"
    rows, share, true = (sheet.number(key) for key in ("month.rows", f"{known}.share", f"{known}.true"))
    if worth is None or rows is None or share is None or true is None:
        return
    project = Origin(record="project", id=str(records.project.get("id", "")), field="models[].value_usd_true_alert")
    sheet.figure("value.alert", worth, "worth of one true alert, as the owner said", project, unit="usd")
    formula = "predictions a month x share flagged x true share of those x worth of one"
    field = "artifacts.test_scores" if known == "flagged" else "calibration"
    origin = Origin(record="run", id=str(records.run.get("id", "")), field=field, formula=formula)
    sheet.figure("value.month", rows * share * true * worth, "worth of a month's true alerts", origin, unit="usd")


def _entries(sheet: Sheet, records: Records, store: Store) -> list[ledger.Entry]:
    """Enter the ledger's entries that belong to this model, by kind, and return them."""
    mine = {records.model}
    for one in (records.run, records.version, records.features, *records.datasets, *records.ingests):
        mine |= {str(one.get("id") or ""), str(one.get("source") or "")} - {""}
    entries = [one for one in store.entries() if mine & set(one.subject.split("/"))]
    if not entries:
        return []
    origin = Origin(record="ledger", id=records.model, field="usd", formula="sum of entries by kind")
    sheet.table("ledger", [{**line.to_dict(), "kind": line.key} for line in ledger.summary(entries, by="kind")], origin)
    whole = Origin(record="ledger", id=records.model, field="usd", formula=f"sum of {len(entries)} entries")
    sheet.figure("ledger.usd", ledger.total(entries), "everything charged so far", whole, unit="usd")
    since = Origin(record="ledger", id=records.model, field="at", formula="earliest")
    sheet.figure("ledger.since", min(one.at for one in entries), "first charge", since, unit="day")
    return entries

"""The facts of money: what it cost to make this version, what answering costs, and what that comes to in a month.

The stages that made the version keep what they cost, so the cost of making is their sum. The cost of answering is what
each window of live traffic kept. A month is 30 days (as in `ledger.per_month`): the traffic seen, spread over the days
it came in, and one making anew. The ledger's own entries give the same money by kind (processor, memory, storage),
including runs that came to nothing; entries of other models are left out, those of shared sources are not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tenon import ledger
from tenon.report.lineage import Records
from tenon.report.sheet import Origin, Sheet, finite, total

if TYPE_CHECKING:
    from tenon.store import Store

STAGE_NAMES = {
    "dataset": "reading data",
    "features": "building features",
    "run": "training",
    "version": "compiling and judging",
    "watch": "watching",
}


def spent(sheet: Sheet, records: Records, store: Store) -> None:
    """Enter what was spent and what a month comes to."""
    _making(sheet, records)
    _answering(sheet, records)
    _entries(sheet, records, store)
    budget = records.declared.get("budget")
    limit = finite(budget.get("usd")) if isinstance(budget, dict) else None
    if limit is not None:
        origin = Origin(record="project", id=str(records.project.get("id", "")), field="models[].budget.usd")
        sheet.figure("budget.usd", limit, "budget for one training", origin, unit="usd")


def _making(sheet: Sheet, records: Records) -> None:
    made = [("dataset", one) for one in records.datasets]
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
    origin = Origin(record="dataset, features, run, version", id=", ".join(str(row["id"]) for row in rows), field="usd")
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


def _answering(sheet: Sheet, records: Records) -> None:
    rows, usd = sheet.number("live.rows"), sheet.number("live.usd")
    start, end = sheet.number("live.from"), sheet.number("live.to")
    if rows is None or usd is None:
        sheet.lack(
            "cost of answering",
            "what a prediction costs is not known before it is served",
            "`tenon serve`, then `tenon watch`",
        )
        return
    id_ = str(records.watch.get("id", ""))

    def origin(formula: str) -> Origin:
        return Origin(record="watch", id=id_, field="windows[].usd, windows[].rows", formula=formula)

    thousand = ledger.per_thousand(usd, int(rows))
    sheet.figure("cost.thousand", thousand, "cost of 1,000 predictions", origin("1000 x usd / rows"), unit="usd")
    if start is None or end is None or end <= start:
        return
    days = (end - start) / 86_400
    month = ledger.per_month(usd, end - start)
    shown = f"30 days / {days:.4g} days watched"
    sheet.figure("cost.answering_month", month, "answering for a month", origin(f"usd x {shown}"), unit="usd")
    sheet.figure("month.rows", rows * 30 / days, "predictions a month", origin(f"rows x {shown}"), unit="count")
    making = sheet.number("making.usd")
    if month is not None and making is not None:
        sheet.figure(
            "cost.month", month + making, "cost of a month", origin("answering for a month + making once"), unit="usd"
        )
    _value(sheet, records)


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


def _entries(sheet: Sheet, records: Records, store: Store) -> None:
    """Enter the ledger's entries that belong to this model, by kind."""
    mine = {records.model, *(str(one.get("id", "")) for one in (records.run, records.version, records.features))}
    mine |= {str(one.get("source", "")) for one in records.datasets} | {
        str(one.get("id", "")) for one in records.datasets
    }
    mine.discard("")
    entries = [one for one in store.entries() if mine & set(one.subject.split("/"))]
    if not entries:
        return
    origin = Origin(record="ledger", id=records.model, field="usd", formula="sum of entries by kind")
    kinds = [
        {"kind": line.key, "usd": line.usd, "quantity": line.quantity, "unit": line.unit, "entries": line.entries}
        for line in ledger.summary(entries, by="kind")
    ]
    sheet.table("ledger", kinds, origin)
    whole = Origin(record="ledger", id=records.model, field="usd", formula=f"sum of {len(entries)} entries")
    sheet.figure("ledger.usd", ledger.total(entries), "everything charged so far", whole, unit="usd")
    since: list[Any] = [one.at for one in entries]
    sheet.figure(
        "ledger.since", min(since), "first charge", Origin(record="ledger", id=records.model, field="at"), unit="day"
    )

"""The facts of the model at work: what was served when, what watching saw in each window, and what drifted.

A window's quality is known only once its labels are in. It counts as judged when it is over and none of its labels is
still expected; younger windows are shown but no conclusion is drawn from them, because early labels are not a fair
sample (a flight that is late lands late). Drift is the population stability index of a column against the training
data; whether it is too much is for watching to say, which knows what is chance and what is season, so inputs count as
moved only when a finding says so.
"""

from __future__ import annotations

from typing import Any

from tenon.config import WatchConfig
from tenon.report import word
from tenon.report.lineage import Record, Records
from tenon.report.sheet import Origin, Sheet, finite, total

MATURE = 0.8  # of a window's rows, in records that do not say themselves whether a window is mature
SCORE = "score"  # the model's own answers, which watching compares like an input


def live(sheet: Sheet, records: Records) -> None:
    """Enter what is known about serving, watching, drift and the history of all that happened."""
    _serving(sheet, records)
    windows = [one for one in records.watch.get("windows") or () if finite(one.get("rows"))]
    if not windows:
        sheet.lack(
            "live traffic",
            "no live traffic has been watched, so how it does in use is not known",
            "serve it with `tenon serve`, then `tenon watch`",
        )
    else:
        _windows(sheet, records.watch, windows)
        _alerts(sheet, records.watch)
        _drift(sheet, records, windows)
    if records.watch and records.version and records.watch.get("version") not in (None, "", records.version.get("id")):
        sheet.lack(
            "watching of this version",
            f"the newest watching is of version {records.watch.get('version')}, not of {records.version.get('id')}",
            "run `tenon watch` again once this version has answered requests",
        )
    _timeline(sheet, records)


def _serving(sheet: Sheet, records: Records) -> None:
    """Enter what served when; each start of a version is a row."""
    model = records.model
    rows = [
        {
            "at": event.get("at"),
            "what": f"{event.get('previous') or 'nothing'} → {event.get('version')}",
            "why": str(event.get("reason") or ""),
            "who": str(event.get("by") or ""),
        }
        for event in records.alias_events
    ]
    sheet.table("aliases", rows, Origin(record="event alias", id=model))
    states = [
        {key: event.get(key) for key in ("at", "state", "version", "host", "port", "pid")}
        for event in records.serving_events
    ]
    sheet.table("served", states, Origin(record="event serving", id=model))
    if not states:
        sheet.lack("serving", "it has never been served", "serve it with `tenon serve`")
    if records.version and not records.alias:
        todo = f"promote one with `tenon models promote {records.version.get('id', '')}`"
        sheet.lack("production", "no version is in production", todo)


def _windows(sheet: Sheet, watch: Record, windows: list[Any]) -> None:
    id_ = str(watch.get("id", ""))
    origin = Origin(record="watch", id=id_, field="windows")
    rows = []
    for one in windows:
        labelled = finite(one.get("labelled")) or 0
        drift = {
            name: psi for name, psi in (one.get("drift") or {}).items() if finite(psi) is not None and name != SCORE
        }
        worst = max(drift, key=lambda name: (drift[name], name), default="")
        rows.append(
            {
                **{key: one.get(key) for key in ("start", "end", "rows", "p50_ms", "p99_ms", "errors", "usd")},
                "labelled": labelled,
                "mature": _mature(one, labelled),
                "metrics": dict(one.get("metrics") or {}),
                "drift_worst": drift.get(worst),
                "drift_column": worst,
            }
        )
    sheet.table("windows", rows, origin)
    for key, unit, label in (
        ("rows", "count", "predictions answered"),
        ("labelled", "count", "predictions whose outcome is known"),
        ("errors", "count", "requests that failed"),
        ("usd", "usd", "cost of scoring alone"),
    ):
        if any(finite(row[key]) is not None for row in rows):
            place = Origin(record="watch", id=id_, field=f"windows[].{key}", formula="sum over windows")
            sheet.figure(f"live.{key}", total(row[key] for row in rows), label, place, unit=unit)
    slow = [number for row in rows if (number := finite(row["p99_ms"])) is not None]
    if slow:
        place = Origin(record="watch", id=id_, field="windows[].p99_ms", formula="largest over windows")
        sheet.figure(
            "live.p99_ms", max(slow), "time to answer, slowest 1 in 100, in the worst window", place, unit="ms"
        )
    sheet.figure(
        "live.windows", len(rows), "windows watched", Origin(record="watch", id=id_, field="windows"), unit="count"
    )
    starts, ends = ([at for row in rows if (at := word.instant(row[name])) is not None] for name in ("start", "end"))
    if starts and ends:
        for key, value, label in (
            ("live.from", min(starts), "first day watched"),
            ("live.to", max(ends), "last day watched"),
        ):
            sheet.figure(key, value, label, Origin(record="watch", id=id_, field="windows"), unit="day")
    _last(sheet, id_, rows)


def _mature(window: Record, labelled: float) -> bool:
    """Say whether a window may be judged; records that do not tell are judged by how many labels are in."""
    if "maturing" in window or "open" in window:
        return not window.get("maturing") and not window.get("open") and labelled > 0
    return bool(labelled >= MATURE * window["rows"] > 0)


def _last(sheet: Sheet, id_: str, rows: list[dict[str, Any]]) -> None:
    """Enter the quality of the last window whose outcomes are in, and the worst of all such windows."""
    judged = [(i, row) for i, row in enumerate(rows) if row["mature"] and row["metrics"]]
    if not judged:
        sheet.lack(
            "quality in use",
            "the outcomes of live predictions are not known yet",
            "send them with `tenon labels`, then `tenon watch`",
        )
        return
    i, row = judged[-1]
    when = f"week of {word.day(row['start'])}" if row["start"] is not None else f"window {i}"
    origin = Origin(record="watch", id=id_, said=when)
    sheet.estimates("live.last", row["metrics"], when, origin, f"windows[{i}].metrics")
    count = Origin(record="watch", id=id_, field="windows", formula="windows that are over and mature")
    sheet.figure("live.judged", len(judged), "windows whose outcomes are in", count, unit="count")


def _drift(sheet: Sheet, records: Records, windows: list[Any]) -> None:
    id_ = str(records.watch.get("id", ""))
    columns = sorted({name for one in windows for name in one.get("drift") or ()})
    judged = {str(one.get("name")): one for one in records.watch.get("columns") or ()}
    rows = []
    for name in columns:
        values = [finite((one.get("drift") or {}).get(name)) for one in windows]
        known = [value for value in values if value is not None]
        if known:
            limit, usual = (finite(judged.get(name, {}).get(field)) for field in ("limit", "usual"))
            rows.append({"column": name, "values": values, "worst": max(known), "limit": limit, "usual": usual})
    rows.sort(key=lambda row: (-row["worst"], row["column"]))
    origin = Origin(record="watch", id=id_, field="windows[].drift")
    sheet.table("drift", rows, origin)
    if not rows:
        return
    warning, error = thresholds(records)
    for key, limit, label in (("drift.warning", warning, "worth a look"), ("drift.error", error, "large")):
        place = Origin(record="run", id=str(records.run.get("id", "")), field="config.watch", said="or its default")
        sheet.figure(key, limit, f"population stability index that is {label}, from", place)
    inputs = [row for row in rows if row["column"] != SCORE]
    sheet.figure("drift.columns", len(inputs), "inputs compared", origin, unit="count")
    if inputs:
        worst = Origin(
            record="watch", id=id_, field=f"windows[].drift.{inputs[0]['column']}", formula="largest over windows"
        )
        sheet.figure("drift.worst", inputs[0]["worst"], f"largest index of an input, {inputs[0]['column']}", worst)
    alerted = sheet.number("alert.drift.features")
    field = "findings[watch/drift].numbers.features" if alerted is not None else "findings"
    formula = "" if alerted is not None else "no finding watch/drift"
    over = Origin(record="watch", id=id_, field=field, formula=formula)
    sheet.figure("drift.over", alerted or 0, "inputs that moved beyond chance and season", over, unit="count")


def _alerts(sheet: Sheet, watch: Record) -> None:
    """Enter the numbers of watching's findings, so that pages can quote them; of two with one code the graver leads."""
    id_ = str(watch.get("id", ""))
    for finding in reversed(watch.get("findings") or ()):
        code = str(finding.get("code", ""))
        for name, number in (finding.get("numbers") or {}).items():
            origin = Origin(record="watch", id=id_, field=f"findings[{code}].numbers.{name}")
            unit = "day" if name.endswith("_s") else ""
            sheet.figure(f"alert.{code.rpartition('/')[2]}.{name}", number, f"{name} in {code}", origin, unit=unit)


def thresholds(records: Records) -> tuple[float, float]:
    """Return from where drift is a warning and an error: as the run was configured, or the defaults."""
    default = WatchConfig()
    config = records.run.get("config")
    watch = config.get("watch") if isinstance(config, dict) else None
    found = watch if isinstance(watch, dict) else {}
    return (
        float(finite(found.get("psi_warning")) or default.psi_warning),
        float(finite(found.get("psi_error")) or default.psi_error),
    )


def _timeline(sheet: Sheet, records: Records) -> None:
    """Enter everything that happened, in order: one row for each record and event."""
    rows: list[dict[str, Any]] = []

    def add(at: Any, said: str, kind: str, id_: Any) -> None:
        when = word.instant(at)
        if when is not None:
            rows.append({"at": when, "said": said, "kind": kind, "id": str(id_ or "")})

    for one in records.datasets:
        add(
            one.get("at"),
            f"read {one.get('source')}: {word.count(finite(one.get('rows')) or 0)} rows",
            "dataset",
            one.get("id"),
        )
    features = records.features
    add(features.get("at"), f"built {len(features.get('names') or ())} features", "features", features.get("id"))
    run, version = records.run, records.version
    verbs = {"done": "trained", "failed": "training failed with", "stopped": "training was stopped:"}
    add(run.get("at"), f"{verbs.get(str(run.get('status')), 'trained')} {run.get('trainer', '')}", "run", run.get("id"))
    allowed = (version.get("gate") or {}).get("allowed")
    judged = "not judged" if allowed is None else "the gate allowed it" if allowed else "the gate refused it"
    add(version.get("at"), f"built version {version.get('number', '')}: {judged}", "version", version.get("id"))
    for event in records.alias_events:
        said = f"{event.get('alias')} became version {event.get('version')}"
        reason = event.get("reason")
        add(event.get("at"), f"{said} ({reason})" if reason else said, "event alias", event.get("version"))
    verbs = {"start": "began to serve", "stop": "stopped serving", "swap": "changed to"}
    for event in records.serving_events:
        add(
            event.get("at"),
            f"{verbs.get(str(event.get('state')), str(event.get('state')))} version {event.get('version')}",
            "event serving",
            event.get("version"),
        )
    watch = records.watch
    if watch:
        alerts = sum(1 for one in watch.get("findings") or () if one.get("severity") in ("warning", "error"))
        windows = word.plural(len(watch.get("windows") or ()), "window")
        add(watch.get("at"), f"watched {windows}: {word.plural(alerts, 'alert')}", "watch", watch.get("id"))
    rows.sort(key=lambda row: row["at"])
    sheet.table("timeline", rows, Origin(record="all records of", id=records.model, field="at"))

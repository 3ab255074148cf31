"""The facts of how the model was made: data read and kept, features, split, measured quality, gate, speed.

Rows lost are reckoned from the balance of bytes that ingest keeps: every byte of a file is a row, in quarantine, or
skipped by rule, so what is left over is what was lost. Shares of a group's rows come from the calibration table, whose
groups hold equally many rows sorted by prediction: the last one is the riskiest tenth, exactly as measured on the test
split. Nothing here is estimated again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tenon.report.lineage import Record, Records
from tenon.report.sheet import Origin, Sheet, finite, metric_name, total

PARTS = ("train", "valid", "test")
PART_NAMES = {"train": "training", "valid": "validation", "test": "test"}


def made(sheet: Sheet, records: Records) -> None:
    """Enter what is known about the data, the features, the run and the version."""
    _data(sheet, records)
    _features(sheet, records)
    if not records.run:
        sheet.lack("training", "the model has not been trained", "train it with `tenon run`")
    else:
        _split(sheet, records.run)
        _quality(sheet, records.run)
        _calibration(sheet, records.run)
    _version(sheet, records)


# ── data ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _data(sheet: Sheet, records: Records) -> None:
    rows = []
    for one in records.datasets:
        balance = one.get("balance") or {}
        rows.append(
            {
                "source": one.get("source", ""),
                "id": one.get("id", ""),
                "at": one.get("at"),
                "rows": one.get("rows"),
                "bytes": balance.get("bytes", one.get("bytes")),
                "quarantined": one.get("quarantined"),
                "repaired": one.get("repaired"),
                "unaccounted_bytes": unaccounted(balance),
                "row_bytes": balance.get("row_bytes"),
                "quarantine_bytes": balance.get("quarantine_bytes"),
                "skipped_bytes": balance.get("skipped_bytes"),
                "closes": balance.get("closes"),
                "files": list(one.get("files") or ()),
                "paths": [str(path) for path in one.get("paths") or ()],
                "contract": one.get("contract", ""),
                "profile": one.get("profile", ""),
                "quarantine": one.get("quarantine", ""),
                "columns": list(one.get("columns") or ()),
                "seconds": one.get("seconds"),
                "usd": one.get("usd"),
            }
        )
    ids = ", ".join(str(one.get("id", "")) for one in records.datasets)
    sheet.table("datasets", rows, Origin(record="dataset", id=ids))
    if not rows:
        sheet.lack("data", "no data has been read for this model", "read it with `tenon run` or `tenon ingest`")
        return
    for name, label in (
        ("rows", "rows read from all sources"),
        ("quarantined", "rows put in quarantine"),
        ("repaired", "rows repaired"),
        ("bytes", "bytes of raw files"),
        ("unaccounted_bytes", "bytes of raw files in no row, quarantine or skipped part"),
    ):
        if any(finite(row[name]) is not None for row in rows):
            formula = f"sum of {name} over {len(rows)} datasets" if name != "unaccounted_bytes" else _BALANCE
            field = "balance" if name == "unaccounted_bytes" else name
            origin = Origin(record="dataset", id=ids, field=field, formula=formula)
            sheet.figure(
                f"data.{name}", total(row[name] for row in rows), label, origin, unit=_UNITS.get(name, "count")
            )
    sheet.figure("data.sources", len(rows), "sources", Origin(record="dataset", id=ids, formula="count"), unit="count")


_BALANCE = "bytes - row_bytes - quarantine_bytes - skipped_bytes, summed"
_UNITS = {"bytes": "bytes", "unaccounted_bytes": "bytes"}


def unaccounted(balance: Mapping[str, Any]) -> int | None:
    """Return the bytes of a file that the balance cannot place, or None when it was not kept."""
    parts = [finite(balance.get(name)) for name in ("bytes", "row_bytes", "quarantine_bytes", "skipped_bytes")]
    if parts[0] is None or parts[1] is None:
        return None
    whole, *rest = (int(part or 0) for part in parts)
    return whole - sum(rest)


def _features(sheet: Sheet, records: Records) -> None:
    features = records.features
    if not features:
        return
    origin = Origin(record="features", id=str(features.get("id", "")), field="definition")
    gains = {str(one.get("name")): finite(one.get("gain")) for one in records.run.get("importance") or ()}
    whole = total(gains.values())
    defined = {str(one.get("name")): one for one in features.get("definition") or ()}
    kinds = features.get("kinds") or {}
    rows = []
    for name in features.get("names") or defined:
        one = defined.get(str(name), {})
        gain = gains.get(str(name))
        rows.append(
            {
                "name": name,
                "kind": kinds.get(name, ""),
                "sql": one.get("sql") or one.get("function", ""),
                **{key: one.get(key, "") for key in ("of", "window", "within", "description")},
                "over": list(one.get("over") or ()),
                "on": list(one.get("on") or ()),
                "share": gain / whole if gain is not None and whole > 0 else None,
            }
        )
    rows.sort(key=lambda row: -(row["share"] if row["share"] is not None else -1.0))
    sheet.table("features", rows, origin)
    names = Origin(record=origin.record, id=origin.id, field="names", formula="count")
    sheet.figure("features.count", len(rows), "features", names, unit="count")
    rows_origin = Origin(record=origin.record, id=origin.id, field="rows", blob=str(features.get("matrix") or ""))
    sheet.figure("features.rows", features.get("rows"), "rows of the feature matrix", rows_origin, unit="count")


# ── quality ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _split(sheet: Sheet, run: Record) -> None:
    id_ = str(run.get("id", ""))
    split = run.get("split") or {}
    rows = []
    for part in PARTS:
        one = split.get(part)
        if not one:
            continue
        field = f"split.{part}"
        rows.append({"part": part, **{key: one.get(key) for key in ("from", "to", "rows", "rate")}})
        for key, unit, label in (("rows", "count", "rows"), ("rate", "share", "share that came true")):
            origin = Origin(record="run", id=id_, field=f"{field}.{key}", said=f"{PART_NAMES[part]} split")
            sheet.figure(f"{field}.{key}", one.get(key), f"{label}, {PART_NAMES[part]}", origin, unit=unit)
    sheet.table("split", rows, Origin(record="run", id=id_, field="split"))


def _quality(sheet: Sheet, run: Record) -> None:
    origin = Origin(record="run", id=str(run.get("id", "")), said="test split")
    measured = run.get("metrics") or {}
    for part in ("valid", "test"):
        said = Origin(record="run", id=origin.id, said=f"{PART_NAMES[part]} split")
        sheet.estimates(part, measured.get(part) or {}, f"{PART_NAMES[part]} split", said, f"metrics.{part}")
    baselines = run.get("baselines") or {}
    for name, found in baselines.items():
        sheet.estimates(f"baseline.{name}", found or {}, f"baseline {name}, test split", origin, f"baselines.{name}")
    sheet.estimates("lift", run.get("lift") or {}, "better than the best baseline", origin, "lift", unit="fine")
    test = measured.get("test") or {}
    if not test:
        sheet.lack("quality", f"run {origin.id} has no measured quality", "train again with `tenon run`")
        return
    who = [(name, False, found or {}) for name, found in baselines.items()]
    who.append((str(run.get("trainer") or "model"), True, test))
    rows = [
        {"who": name, "is_model": ours, "metric": metric, **_estimate(found[metric])}
        for name, ours, found in who
        for metric in found
    ]
    sheet.table("metrics", rows, origin)
    if not baselines:
        sheet.lack("a simple rule", "no simple rule was measured beside the model", "train again with baselines")
    _skill(sheet, run, test, baselines)


def _estimate(found: Any) -> dict[str, Any]:
    if isinstance(found, Mapping):
        return {key: finite(found.get(key)) for key in ("value", "low", "high")}
    return {"value": finite(found), "low": None, "high": None}


def _skill(sheet: Sheet, run: Record, test: Mapping[str, Any], baselines: Mapping[str, Any]) -> None:
    """Enter how much smaller the squared error is than that of always quoting the average: 1 - error / constant's."""
    for metric in ("brier", "rmse"):
        ours = _estimate(test.get(metric, {}))["value"]
        plain = _estimate((baselines.get("constant") or {}).get(metric, {}))["value"]
        if ours is not None and plain:
            name = metric_name(metric)
            origin = Origin(
                record="run",
                id=str(run.get("id", "")),
                field=f"metrics.test.{metric}, baselines.constant.{metric}",
                formula=f"1 - {name} / {name} of the constant",
                said="test split",
            )
            sheet.figure("skill", 1 - ours / plain, f"{name} below the constant's", origin, unit="share")
            return


def _calibration(sheet: Sheet, run: Record) -> None:
    """Enter the calibration table, what flagging from the top would catch, and the riskiest group's record."""
    id_ = str(run.get("id", ""))
    origin = Origin(record="run", id=id_, field="calibration", said="test split")
    groups = [one for one in run.get("calibration") or () if finite(one.get("observed")) is not None]
    groups = sorted(groups, key=lambda one: one["predicted"])
    sheet.table("calibration", groups, origin)
    rows = total(one.get("rows") for one in groups)
    hits = total(one["observed"] * one["rows"] for one in groups)
    if len(groups) < 2 or hits <= 0 or any(not 0 <= one["observed"] <= 1 for one in groups):
        return
    gains, rows_to, hits_to = [], 0.0, 0.0
    for one in reversed(groups):
        rows_to += one["rows"]
        hits_to += one["observed"] * one["rows"]
        gains.append(
            {"flagged": rows_to / rows, "caught": hits_to / hits, "true": hits_to / rows_to, "from": one["predicted"]}
        )
    sheet.table("gains", gains, Origin(record="run", id=id_, field="calibration", formula=_GAINS, said="test split"))
    top = groups[-1]
    for key, value, label, formula in (
        ("top.share", top["rows"] / rows, "share of rows in the riskiest group", "its rows / all rows"),
        ("top.true", top["observed"], "share of the riskiest group that came true", ""),
        ("top.caught", gains[0]["caught"], "share of all that came true caught there", _GAINS),
        (
            "top.times",
            top["observed"] * rows / hits,
            "riskiest group against the average",
            "its rate / the rate of all",
        ),
    ):
        said = Origin(record="run", id=id_, field=f"calibration[{len(groups) - 1}]", formula=formula, said="test split")
        unit = "times" if key == "top.times" else "share"
        sheet.figure(key, value, label, said, unit=unit, of=top if key == "top.true" else None)
    gap = total(abs(one["observed"] - one["predicted"]) * one["rows"] for one in groups) / rows
    sheet.figure(
        "calibration.gap",
        gap,
        "mean distance of promised and observed share",
        Origin(record="run", id=id_, field="calibration", formula="mean |observed - predicted|, weighted by rows"),
        unit="share",
    )


_GAINS = "sum of observed x rows from the riskiest group downward / that of all groups"

# ── version ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _version(sheet: Sheet, records: Records) -> None:
    version = records.version
    if not version:
        sheet.lack("a version", "no version has been built from a run, so no gate has judged it", "run `tenon run`")
        return
    id_ = str(version.get("id", ""))
    gate = version.get("gate") or {}
    origin = Origin(record="version", id=id_, field="gate")
    checks = [
        {key: check.get(key) for key in ("name", "passed", "said", "value", "limit")}
        for check in gate.get("checks") or ()
    ]
    sheet.table("gate", checks, Origin(record="version", id=id_, field="gate.checks"))
    if isinstance(gate.get("allowed"), bool):
        allowed = Origin(record="version", id=id_, field="gate.allowed", said="1 allowed, 0 refused")
        sheet.figure("gate.allowed", int(gate["allowed"]), "gate's decision", allowed, unit="count")
        passed = sum(1 for check in checks if check["passed"])
        counted = Origin(record=origin.record, id=id_, field="gate.checks", formula="count")
        sheet.figure("gate.passed", passed, "checks of the gate that passed", counted, unit="count")
        sheet.figure("gate.checks", len(checks), "checks of the gate", counted, unit="count")
    if checks and records.newest_version.get("id") != version.get("id"):
        newer = records.newest_version.get("gate") or {}
        refused = [
            {key: check.get(key) for key in ("name", "said")}
            for check in newer.get("checks") or ()
            if not check.get("passed")
        ]
        newer_id = str(records.newest_version.get("id", ""))
        sheet.table("refused", refused, Origin(record="version", id=newer_id, field="gate.checks"))
    parity = version.get("parity") or {}
    latency = version.get("latency") or {}
    for key, found, field, label, unit in (
        ("parity.max_abs", parity.get("max_abs"), "parity.max_abs", "largest difference after compiling", ""),
        (
            "parity.flips",
            parity.get("decision_flips"),
            "parity.decision_flips",
            "decisions changed by compiling",
            "count",
        ),
        ("parity.delta", parity.get("metric_delta"), "parity.metric_delta", "metric changed by compiling", ""),
        ("parity.rows", parity.get("rows"), "parity.rows", "rows compared after compiling", "count"),
        ("version.p50_ms", latency.get("p50_ms"), "latency.p50_ms", "time of one prediction, median", "ms"),
        ("version.p99_ms", latency.get("p99_ms"), "latency.p99_ms", "time of one prediction, slowest 1 in 100", "ms"),
        ("version.bytes", version.get("size_bytes"), "size_bytes", "size of the model file", "bytes"),
        ("version.threshold", version.get("threshold"), "threshold", "score from which a row is flagged", ""),
        ("version.number", version.get("number"), "number", "version", "count"),
    ):
        blob = str(version.get("onnx") or "") if key in ("version.bytes", "parity.max_abs") else ""
        sheet.figure(key, found, label, Origin(record="version", id=id_, field=field, blob=blob), unit=unit)

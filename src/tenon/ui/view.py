"""From what a page shows to its pictures: which lines, which marks, which colours.

Pure functions of records: nothing here reads the store or knows of requests, so a picture can be drawn and tested from
plain data. What is missing in a record is a gap in a line, never a zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from markupsafe import Markup

from tenon.metric import NAMES
from tenon.ui import chart, text
from tenon.ui.chart import Axes, Series
from tenon.ui.read import FIRST, Record, leading

HEAT_ROWS = 40
DRIFTED, GRAVE = 0.1, 0.25  # the usual marks of PSI, for colour; whether it matters is what findings say


def overview(facts: Record) -> Record:
    """Add each card's line of performance."""
    cards = [{**card, "spark": chart.spark(card["trend"])} for card in facts["cards"]]
    return {**facts, "cards": cards}


def model(facts: Record) -> Record:
    """Add calibration, importance and the comparison with baselines."""
    run = facts["run"]
    return {
        **facts,
        "calibration": chart.calibration(run.get("calibration") or []),
        "importance": _importance(run),
        "ladder": _ladder(run, facts["metric"]),
        "spark": chart.spark(facts["trend"], width=320, height=60),
    }


def run(record: Record, curves: Mapping[str, Sequence[tuple[float, float]]]) -> Record:
    """Add one picture for each family of curves, calibration, importance, baselines."""
    return {
        "run": record,
        "metric": leading(record),
        "metrics": metric_table(record),
        "curves": [(name, _curve(found)) for name, found in _families({"": curves})],
        "calibration": chart.calibration(record.get("calibration") or []),
        "importance": _importance(record),
        "ladder": _ladder(record, leading(record)),
    }


def compare(
    records: Sequence[Record],
    curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    differences: Sequence[tuple[str, list[str]]],
) -> Record:
    """Put runs side by side: metrics, curves over each other, and what differs between their settings."""
    names = [name for name in FIRST if any(name in _test(one) for one in records)]
    rows = [(name, [_test(one).get(name) for one in records]) for name in names]
    return {
        "runs": records,
        "rows": rows,
        "curves": [(name, _curve(found)) for name, found in _families(curves)],
        "differences": differences,
    }


def dataset(record: Record) -> Record:
    """Add where every byte of the input went."""
    balance = record.get("balance") or {}
    items = [
        (label, float(balance.get(name) or 0), text.size(balance.get(name) or 0))
        for name, label in (
            ("row_bytes", "rows"),
            ("quarantine_bytes", "quarantine"),
            ("skipped_bytes", "named skips"),
        )
    ]
    return {"dataset": record, "balance": balance, "bytes": chart.bars(items, width=760) if balance else Markup("")}


def ledger(facts: Record) -> Record:
    """Add what was spent by subject and day."""
    subjects = [(str(row["name"]), float(row["usd"]), text.money(row["usd"])) for row in facts["by_subject"][:12]]
    total, points = 0.0, []
    for at, usd in facts["days"]:
        total += usd
        points.append((at, total))
    axes = Axes(x="day", y="US dollars, summed", time=True, zero=True, height=220, tick=text.money)
    return {
        **facts,
        "subjects": chart.bars(subjects, width=500),
        "over_time": chart.lines([Series(name="spent", points=points, dots=len(points) < 40)], axes)
        if len(points) > 1
        else Markup(""),
    }


# ── watching ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def watch(facts: Record) -> Record:
    """Add performance over windows with the test's mark, drift as a table of colours, and the service's health."""
    windows = [dict(one) for one in facts["watch"].get("windows") or () if isinstance(one, Mapping)]
    metric = facts["metric"] or next((name for one in windows for name in one.get("metrics") or ()), "")
    return {
        **facts,
        "windows": windows,
        "answers": sum(one["rows"] for one in windows if _number(one.get("rows"))),
        "labelled": sum(one["labelled"] for one in windows if _number(one.get("labelled"))),
        "metric": metric,
        "performance": _performance(windows, metric, facts),
        "rates": _rates(windows, facts),
        "heat": _heat(windows, facts["watch"]),
        "rows": _health(windows, "rows", "rows", zero=True),
        "latency": _health(windows, "p99_ms", "milliseconds", name="p99", other=("p50_ms", "p50"), zero=True),
        "cost": _health(windows, "usd_per_1000", "US dollars per 1,000", zero=True),
    }


def _performance(windows: Sequence[Record], metric: str, facts: Record) -> Markup:
    found = [
        (middle, one["metrics"][metric], one)
        for one in windows
        if (middle := _middle(one)) is not None and _number((one.get("metrics") or {}).get(metric, {}).get("value"))
    ]
    points = [(at, float(body["value"])) for at, body, _ in found]
    judged = [item for item in found if not _young(item[2])]
    band = [(at, float(body["low"]), float(body["high"])) for at, body, _ in judged if _number(body.get("low"))]
    titles = [
        f"{text.day(one['start'])}: {NAMES.get(metric, metric)} {text.estimate(body)}, "
        f"{text.count(one.get('labelled'))} labels{', still maturing' if _young(one) else ''}"
        for _, body, one in found
    ]
    series = Series(
        name="in use",
        points=points,
        band=band,
        dots=True,
        hollow=[_young(one) for _, _, one in found],
        titles=titles,
    )
    axes = Axes(x="window", y=NAMES.get(metric, metric), time=True, marks=_marks(facts, metric), width=1040, height=300)
    return chart.lines([series], axes)


def _marks(facts: Record, metric: str) -> list[tuple[float, str, str]]:
    """Return the lines across: what the test reached, and the best baseline there."""
    expected = facts["watch"].get("expected") or {}
    test = (expected.get("metrics") or _test(facts["run"])).get(metric) or {}
    marks = []
    if _number(test.get("value")):
        marks.append((float(test["value"]), f"in the test {text.decimal(test['value'])}", "good"))
    base = expected.get("baseline_value")
    if _number(base):
        marks.append((float(base), f"{expected.get('baseline')} baseline {text.decimal(base)}", "calm"))
    return marks


def _rates(windows: Sequence[Record], facts: Record) -> Markup:
    """Draw what happened and what was expected, window by window."""
    happened, expected = [], []
    for one in windows:
        middle = _middle(one)
        if middle is None or _young(one):
            continue
        if _number(one.get("rate")):
            happened.append((middle, float(one["rate"])))
        if _number(one.get("predicted")):
            expected.append((middle, float(one["predicted"])))
    rate = (facts["watch"].get("expected") or {}).get("rate")
    marks = [(float(rate), f"training {text.percent(rate)}", "calm")] if _number(rate) else []
    word = facts["words"].get("positive_word") or "positive"
    binary = all(0 <= y <= 1 for _, y in happened + expected)
    axes = Axes(
        x="window",
        y=f"share {word}" if binary else "mean",
        time=True,
        marks=marks,
        zero=binary,
        width=1040,
        height=250,
        tick=(lambda value: f"{100 * value:.0f} %") if binary else None,
    )
    return chart.lines(
        [
            Series(name="happened", points=happened, dots=True),
            Series(name="expected by the model", points=expected, tone="two", dots=True),
        ],
        axes,
    )


def _heat(windows: Sequence[Record], record: Record) -> Markup:
    """Draw drift: columns down, windows across, coloured by how far each is beyond what is usual for it."""
    limits = {str(one.get("name")): one for one in record.get("columns") or () if isinstance(one, Mapping)}
    names = list(limits) or sorted({name for one in windows for name in one.get("drift") or ()})
    rows = [(name, [_float((one.get("drift") or {}).get(name)) for one in windows]) for name in names[:HEAT_ROWS]]
    columns = [(text.short_day(one.get("start")), f"window of {text.day(one.get('start'))}") for one in windows]

    def level(name: str, index: int, value: float) -> str:
        if windows[index].get("open") or windows[index].get("partial"):
            return "open"  # part of a window is unlike a window: shown, and not judged
        limit = (limits.get(name) or {}).get("limit")
        mark = float(limit) if _number(limit) else DRIFTED
        if value > max(mark, GRAVE):
            return "bad"
        if value > mark:
            return "warn"
        return "some" if value > mark / 2 else "low"

    return chart.heat([row for row in rows if any(value is not None for value in row[1])], columns, level, unit="PSI")


def _health(
    windows: Sequence[Record],
    field: str,
    unit: str,
    *,
    name: str = "",
    other: tuple[str, str] | None = None,
    zero: bool = False,
) -> Markup:
    series = []
    for key, label, tone in ((field, name or field, "one"), (*(other or ("", "")), "two")):
        points = [
            (middle, float(one[key]))
            for one in windows
            if (middle := _middle(one)) is not None and _number(one.get(key))
        ]
        if points:
            series.append(Series(name=label, points=points, tone=tone, dots=len(points) < 40))
    return chart.lines(series, Axes(x="window", y=unit, time=True, zero=zero, width=520, height=210))


# ── pieces ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def metric_table(record: Record) -> list[tuple[str, Any, Any]]:
    """Return (metric, on validation, on test) in the usual order."""
    metrics = record.get("metrics") or {}
    valid, test = metrics.get("valid") or {}, metrics.get("test") or {}
    names = [*[name for name in FIRST if name in valid or name in test], *sorted({*valid, *test} - {*FIRST})]
    return [(name, valid.get(name), test.get(name)) for name in names]


def _ladder(record: Record, metric: str) -> list[tuple[str, Any, bool]]:
    """Return the model and its baselines by the deciding metric, best first: (name, estimate, is the model)."""
    rows = [(str(name), body.get(metric), False) for name, body in (record.get("baselines") or {}).items()]
    rows.append((str(record.get("trainer") or "model"), _test(record).get(metric), True))
    known = [row for row in rows if isinstance(row[1], Mapping) and _number(row[1].get("value"))]
    lower = metric in ("brier", "log_loss", "rmse", "mae")
    return sorted(known, key=lambda row: row[1]["value"], reverse=not lower)


def _importance(record: Record) -> Markup:
    gains = [(str(one.get("name")), _float(one.get("gain")) or 0.0) for one in record.get("importance") or ()]
    total = sum(gain for _, gain in gains)
    top = sorted(gains, key=lambda item: -item[1])[:15]
    shown = [(name, gain, text.percent(gain / total)) for name, gain in top] if total > 0 else []
    return chart.bars(shown, width=500)


def _families(
    curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
) -> list[tuple[str, list[tuple[str, Sequence[tuple[float, float]]]]]]:
    """Put curves of one quantity into one picture: ``train/loss`` and ``valid/loss`` of every run are family loss."""
    families: dict[str, list[tuple[str, Sequence[tuple[float, float]]]]] = {}
    for run_id, named in curves.items():
        for name, points in named.items():
            part, slash, rest = name.replace(".", "/").rpartition("/")
            base = rest if slash else name
            for prefix in ("train_", "valid_", "val_", "test_"):
                if base.startswith(prefix):
                    part, base = part or prefix[:-1], base[len(prefix) :]
            label = " ".join(one for one in (run_id[:8], part or (base if not run_id else "")) if one)
            families.setdefault(base, []).append((label or base, points))
    return sorted(families.items())


def _curve(found: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> dict[str, Any]:
    tones = ("one", "two", "three", "four", "five", "six")
    series = [Series(name=label, points=points, tone=tones[i % 6]) for i, (label, points) in enumerate(found[:6])]
    return {
        "picture": chart.lines(series, Axes(x="step", width=520, height=240)),
        "names": [(one.name, one.tone) for one in series],
    }


def _test(record: Mapping[str, Any]) -> dict[str, Any]:
    return dict((record.get("metrics") or {}).get("test") or {})


def _young(window: Mapping[str, Any]) -> bool:
    return bool(window.get("maturing") or window.get("open"))


def _middle(window: Mapping[str, Any]) -> float | None:
    """Return the middle of a window in Unix seconds, when its ends can be read."""
    start, end = text.instant(window.get("start")), text.instant(window.get("end"))
    return (start.timestamp() + end.timestamp()) / 2 if start and end else None


def _number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _float(value: Any) -> float | None:
    return float(value) if _number(value) else None

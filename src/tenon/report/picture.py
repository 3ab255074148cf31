"""The pictures of a model, made from facts: each is a Picture block, or None when its facts are not known.

One place decides how a fact is drawn, so that the manager's and the engineer's picture of the same thing is the same
picture. A picture's text is what a terminal shows in its place: the same numbers in a line or a small table. How lines
and bars become SVG is `chart`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tenon.metric import HIGHER_IS_BETTER
from tenon.report import chart, word
from tenon.report.chart import Bar, Frame, Point, Series, Span
from tenon.report.made import PART_NAMES
from tenon.report.page import Picture, has, rows_of, say, show, value
from tenon.report.plainly import window_name
from tenon.report.sheet import finite, metric_name

Facts = Mapping[str, Any]
FIFTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
MOVED = "alert.drift.psi_"  # figures of inputs that a finding says moved
DRIFT_ROWS = 12  # the columns of a heat map on a manager's page; the engineer's table has them all


def hundred(facts: Facts) -> Picture | None:
    """Of 100 flagged rows, or of the riskiest where no threshold is known, and of 100 in all: how many came true."""
    flagged = has(facts, "flagged.true", "flagged.share")
    true, share = ("flagged.true", "flagged.share") if flagged else ("top.true", "top.share")
    if not has(facts, true, share, "split.test.rate"):
        return None
    words = facts["words"]
    groups = [
        (f"{name} {words['unit_plural']}: {show(facts, key, 'of_hundred').text} of 100 {words['positive_word']}", key)
        for name, key in (("Flagged" if flagged else "Riskiest", true), ("All", "split.test.rate"))
    ]
    shares = [(name, value(facts, key)) for name, key in groups]
    frame = Frame(title=f"How many were truly {words['positive_word']}", desc="; ".join(name for name, _ in groups))
    which = "it flags" if flagged else f"among the {{{share}:percent0}} it calls riskiest"
    text = f"Of 100 {{unit_plural}} {which}, {{{true}:of_hundred}} were truly {{positive_word}} (filled dots); of 100 "
    text += "{unit_plural} of any kind, {split.test.rate:of_hundred} were."
    drawn = "\n".join(f"{name}\n{_dots(part)}" for name, part in shares)
    return Picture(svg=chart.icons(shares, frame), caption=say(facts, text), text=drawn)


def _dots(share: float) -> str:
    filled = int(word.of_hundred(share))
    return "\n".join("".join("●" if 50 * row + i < filled else "·" for i in range(50)) for row in range(2)) + "\n"


def quality(facts: Facts, *, plain: bool = False) -> Picture | None:
    """The deciding metric in each watched window with its interval, against what the test split promised."""
    metric = facts["metric"]
    windows = rows_of(facts, "windows")
    judged = [row for row in windows if row["mature"] and metric in row["metrics"]]
    if not judged or not has(facts, f"test.{metric}"):
        return None
    points = tuple(_window_point(row, metric) for row in windows)
    promised = value(facts, f"test.{metric}")
    name = "Times in 100 it ranks a pair right" if plain and metric == "roc_auc" else metric_name(metric)
    hundred_ = plain and metric == "roc_auc"
    drawn = tuple(_scaled(point, 100.0) for point in points) if hundred_ else points
    frame = Frame(
        title=f"{name}, week by week",
        desc=f"{len(judged)} windows from {word.day(judged[0]['start'])} to {word.day(judged[-1]['start'])}; "
        f"test split {word.decimal(promised)}.",
        y_name=name,
        width=430 if plain else 620,
        height=215,
    )
    level = promised * 100 if hundred_ else promised
    picture = chart.line(
        [Series(name=name, points=drawn)],
        frame,
        limit=(level, f"promised: {word.of_hundred(promised) if hundred_ else word.decimal(promised)}"),
        x_text=lambda at: word.day(at, year=False),
        y_text=word.count if hundred_ else word.decimal,
    )
    text = (
        "{name} in each of {live.judged} windows whose outcomes are in; the shade is the 95% interval, the dashed line "
    )
    text += "what the test promised "
    if plain:
        text = (
            "Each {window} whose outcomes are in. The shade is the margin of error, the dashed line what was promised "
        )
    text += "({promise})."
    promise = show(facts, f"test.{metric}", "of_hundred" if hundred_ else "")
    caption = say(facts, text, name=name, window=window_name(facts), promise=promise)
    values = [(row["start"], row["metrics"][metric]) for row in windows if metric in row["metrics"] and row["mature"]]
    shown = "\n".join(f"{word.day(at):>12}  {_said(found)}" for at, found in values)
    return Picture(svg=picture, caption=caption, text=shown, source="windows")


def _window_point(row: Mapping[str, Any], metric: str) -> Point:
    """Place a window at its start; one whose outcomes are not in has no value, and so leaves a gap."""
    found = row["metrics"].get(metric) if row["mature"] else None
    at = word.instant(row["start"]) or 0.0
    if not isinstance(found, Mapping):
        return Point(x=at, y=None)
    return Point(x=at, y=finite(found.get("value")), low=finite(found.get("low")), high=finite(found.get("high")))


def _scaled(point: Point, by: float) -> Point:
    return Point(x=point.x, y=_times(point.y, by), low=_times(point.low, by), high=_times(point.high, by))


def _times(number: float | None, by: float) -> float | None:
    return None if number is None else number * by


def _said(found: Mapping[str, Any]) -> str:
    number = finite(found.get("value"))
    if number is None:
        return "not known"
    low, high = finite(found.get("low")), finite(found.get("high"))
    interval = "" if low is None or high is None else f"  ({word.decimal(low)} to {word.decimal(high)})"
    return word.decimal(number) + interval


def calibration(facts: Facts) -> Picture | None:
    """What was promised against what happened on the test split."""
    groups = rows_of(facts, "calibration")
    if not groups or facts["task"] != "binary":
        return None
    points = [
        Point(x=one["predicted"], y=one["observed"], low=one.get("low"), high=one.get("high"), rows=one["rows"])
        for one in groups
    ]
    words = facts["words"]
    frame = Frame(
        title="Promised and observed share",
        desc=f"{len(points)} groups of {words['unit_plural']} by predicted probability, with 95% intervals; on the "
        "diagonal the promise holds.",
        x_name=f"promised probability of “{words['positive_word']}”",
        y_name="observed share",
        width=460,
        height=330,
    )
    caption = say(
        facts,
        "On the diagonal, what the model promises is what happens: of the {unit_plural} it gives 30%, 30 in 100 turn "
        "out {positive_word}. Dots grow with their rows; whiskers are 95% intervals.",
    )
    text = "\n".join(
        f"promised {word.percent(one['predicted']):>6}   observed {word.percent(one['observed']):>6}   "
        f"{word.count(one['rows']):>8} rows"
        for one in groups
    )
    return Picture(svg=chart.calibration(points, frame), caption=caption, text=text, source="calibration")


def gains(facts: Facts) -> Picture | None:
    """How many of all that came true are caught by flagging from the riskiest downward, against picking blindly."""
    found = rows_of(facts, "gains")
    if not found:
        return None
    ours = (Point(x=0.0, y=0.0), *(Point(x=one["flagged"], y=one["caught"]) for one in found))
    blind = (Point(x=0.0, y=0.0), Point(x=0.6, y=0.6), Point(x=1.0, y=1.0))
    words = facts["words"]
    frame = Frame(
        title=f"Share of the {words['positive_word']} {words['unit_plural']} caught by flagging the riskiest",
        desc=f"The riskiest {word.percent(found[0]['flagged'], 0)} hold {word.percent(found[0]['caught'], 0)} of them.",
        x_name=f"share of {words['unit_plural']} flagged, riskiest first",
        y_name=f"share of the {words['positive_word']} ones caught",
        width=460,
        height=330,
    )
    series = [
        Series(name="by chance", points=blind, tone="", band=False, name_at=0.6),
        Series(name="this model", points=ours, band=False, name_at=0.3),
    ]

    caption = say(
        facts,
        "Flagging the riskiest {top.share:percent0} of {unit_plural} catches {top.caught:percent0} of the "
        "{positive_word} ones, {top.times} as many as picking blindly.",
    )
    text = "\n".join(
        f"flag {word.percent(one['flagged'], 0):>4}   catch {word.percent(one['caught'], 0):>4}   of those flagged "
        f"{word.percent(one['true'], 0):>4} true"
        for one in found
    )
    return Picture(
        svg=chart.line(series, frame, x_text=_whole, y_text=_whole, x_marks=FIFTHS),
        caption=caption,
        text=text,
        source="gains",
    )


def roc(facts: Facts) -> Picture | None:
    """The ROC curve of the test split, from its kept scores."""
    found = rows_of(facts, "roc")
    if not found or not has(facts, "test.roc_auc"):
        return None
    frame = Frame(
        title="ROC curve",
        desc=f"Area {word.decimal(value(facts, 'test.roc_auc'))}, of {len(found)} points.",
        x_name=f"share of the other {facts['words']['unit_plural']} flagged wrongly",
        y_name=f"share of the {facts['words']['positive_word']} ones found",
        width=460,
        height=330,
    )
    chance = (Point(x=0.0, y=0.0), Point(x=0.6, y=0.6), Point(x=1.0, y=1.0))
    ours = tuple(Point(x=one["wrong"], y=one["found"]) for one in found)
    series = [
        Series(name="by chance", points=chance, tone="", band=False, name_at=0.6, dots=False),
        Series(name="this model", points=ours, band=False, name_at=0.3, dots=False),
    ]
    picture = chart.line(series, frame, x_text=_whole, y_text=_whole, x_marks=FIFTHS)
    caption = say(
        facts, "Every threshold at once; the area under the curve is {test.roc_auc} ({test.roc_auc:interval})."
    )
    tenths = [min(found, key=lambda one: abs(one["wrong"] - i / 10)) for i in range(1, 10)]
    text = "\n".join(
        f"wrong {word.percent(one['wrong'], 0):>4}   found {word.percent(one['found'], 0):>4}" for one in tenths
    )
    return Picture(svg=picture, caption=caption, text=text, source="roc")


def _whole(share: float) -> str:
    return word.percent(share, 0)


def against_baselines(facts: Facts) -> Picture | None:
    """The deciding metric of the model and of every simple rule, with intervals."""
    metric = facts["metric"]
    found = [row for row in rows_of(facts, "metrics") if row["metric"] == metric and row["value"] is not None]
    if len(found) < 2:
        return None
    better = HIGHER_IS_BETTER.get(metric, True)
    found.sort(key=lambda row: row["value"] if better else -row["value"])
    rows = [
        Bar(
            label=f"{row['who']} (this model)" if row["is_model"] else row["who"],
            value=row["value"],
            low=row["low"],
            high=row["high"],
            tone="accent" if row["is_model"] else "",
        )
        for row in found
    ]
    start = 0.5 if metric == "roc_auc" and min(row["value"] for row in found) >= 0.5 else 0.0
    frame = Frame(
        title=f"{metric_name(metric)} of the model and the simple rules",
        desc="; ".join(f"{row['who']} {_said(row)}" for row in found),
    )
    note = "Bars begin at 0.5, which is chance." if start else "Bars begin at 0."
    way = "higher" if better else "lower"
    caption = say(
        facts,
        "{name} on the test split; {way} is better. Whiskers are 95% intervals. {note}",
        name=metric_name(metric),
        way=way,
        note=note,
    )
    text = "\n".join(f"{row['who']:<24} {_said(row)}" for row in reversed(found))
    return Picture(svg=chart.bars(rows, frame, start=start), caption=caption, text=text, source="metrics")


def importance(facts: Facts, limit: int = 15) -> Picture | None:
    """The features the model leans on most, by their share of the gain."""
    found = [row for row in rows_of(facts, "features") if row["share"] is not None]
    if not found:
        return None
    shown = found[:limit]
    rows = [Bar(label=row["name"], value=row["share"], said=word.percent(row["share"])) for row in shown]
    frame = Frame(
        title="What the model leans on",
        desc="; ".join(f"{row['name']} {word.percent(row['share'])}" for row in shown),
        width=680,
    )
    caption = say(
        facts,
        "Share of the improvement in training that came from each feature. It says what the model uses, not what "
        "causes the outcome.",
    )
    text = "\n".join(f"{row['name']:<28} {word.percent(row['share']):>6}" for row in shown)
    return Picture(svg=chart.bars(rows, frame), caption=caption, text=text, source="features")


def drift(facts: Facts, limit: int = DRIFT_ROWS) -> Picture | None:
    """How far each input moved from the training data in each window; the columns that moved most."""
    found = rows_of(facts, "drift")[:limit]
    windows = rows_of(facts, "windows")
    if not found or not has(facts, "drift.warning", "drift.error"):
        return None
    warning, error = value(facts, "drift.warning"), value(facts, "drift.error")
    limits = [warning if row["limit"] is None else max(warning, row["limit"]) for row in found]
    moved = frozenset(key.removeprefix(MOVED) for key in facts["figures"] if key.startswith(MOVED))
    frame = Frame(
        title="Drift of each input, window by window",
        desc="; ".join(f"{row['column']} at most {row['worst']:.2f}" for row in found),
        width=680,
    )
    picture = chart.heat(
        [row["column"] for row in found],
        [word.day(row["start"], year=False) for row in windows],
        [row["values"] for row in found],
        frame,
        steps=[(limit, max(limit, error)) for limit in limits],
        marked=moved,
    )
    more = len(rows_of(facts, "drift")) - len(found)
    caption = say(
        facts,
        "Population stability index of each input against the training data. Amber is beyond the input's limit, which "
        "is {drift.warning:decimal2} or what chance and the weeks of the training data explain; red is beyond the "
        "limit and {drift.error:decimal2}. Inputs of an alert are named in bold.{more}",
        more=f" The {more} inputs that moved least are left out." if more > 0 else "",
    )
    text = "\n".join(
        f"{row['column']:<24}" + "".join(f"{'–' if v is None else format(v, '.2f'):>7}" for v in row["values"][-10:])
        for row in found
    )
    return Picture(svg=picture, caption=caption, text=text, source="drift")


def periods(facts: Facts) -> Picture | None:
    """Which stretch of time was used to learn, to choose, to judge, and watched at work."""
    spans = []
    for row in rows_of(facts, "split"):
        start, end = word.instant(row["from"]), word.instant(row["to"])
        if start is not None and end is not None and end >= start:
            rows = finite(row["rows"])
            said = word.count(rows) if rows is not None else ""
            tone = "accent" if row["part"] == "train" else "" if row["part"] == "valid" else "second"
            spans.append(Span(label=PART_NAMES[row["part"]], start=start, end=end, tone=tone, said=f"{said} rows"))
    if not spans:
        return None
    if has(facts, "live.from", "live.to"):
        rows_said = f"{word.count(value(facts, 'live.rows'))} rows" if has(facts, "live.rows") else ""
        spans.append(
            Span(
                label="watched at work",
                start=value(facts, "live.from"),
                end=value(facts, "live.to"),
                tone="good",
                said=rows_said,
            )
        )
    frame = Frame(
        title="Which time was used for what",
        desc="; ".join(f"{one.label} {word.day(one.start)} to {word.day(one.end)}" for one in spans),
        width=680,
    )
    caption = say(
        facts,
        "It learned from the first stretch, was tuned on the second, and is judged only on time it had never seen.",
    )
    text = "\n".join(
        f"{one.label:<16} {word.day(one.start):>12} to {word.day(one.end):>12}   {one.said}" for one in spans
    )
    return Picture(svg=chart.timeline(spans, frame), caption=caption, text=text, source="split")


def costs(facts: Facts) -> Picture | None:
    """What each stage of making the version cost."""
    found = [row for row in rows_of(facts, "making") if finite(row["usd"]) is not None]
    if not found:
        return None
    by_stage: dict[str, float] = {}
    for row in found:
        by_stage[row["stage"]] = by_stage.get(row["stage"], 0.0) + row["usd"]
    rows = [Bar(label=stage, value=usd, said=word.money(usd)) for stage, usd in by_stage.items()]
    frame = Frame(
        title="Cost of making this version, by stage", desc="; ".join(f"{row.label} {row.said}" for row in rows)
    )
    caption = (
        say(facts, "Together {making.usd}, in {making.seconds}.")
        if has(facts, "making.seconds")
        else (show(facts, "making.usd"),)
    )
    text = "\n".join(f"{row.label:<24} {row.said:>10}" for row in rows)
    return Picture(svg=chart.bars(rows, frame), caption=caption, text=text, source="making")

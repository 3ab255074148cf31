"""The manager's page: what was done, whether it may go on, how it does, what to act on and what it costs.

For someone who answers for the model and for a budget, knows the terms, and has ten minutes. Every alert comes with an
action and an owner; every decision of the gate with its reason, also those that passed. It opens with the executive's
answers, so that both have read the same words when they meet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tenon.report import picture, word
from tenon.report.executive import answers, best_rule, cost_tiles, quality_lines, subtitle
from tenon.report.page import (
    Block,
    Line,
    Note,
    Page,
    Picture,
    Points,
    Row,
    Say,
    Section,
    Table,
    Tile,
    Tiles,
    has,
    rows_of,
    say,
    show,
    value,
)
from tenon.report.plainly import marked, sentence_case
from tenon.report.sheet import finite, metric_name

Facts = Mapping[str, Any]
TIMELINE_ROWS = 14


def manager(facts: Facts) -> Page:
    """Tell the facts to someone who answers for the model."""
    return Page(
        audience="manager",
        model=facts["model"],
        title=facts["words"]["title"],
        subtitle=("“", facts["words"]["question"], "” ", *subtitle(facts)),
        sections=tuple(
            section
            for section in (
                Section(title="Where it stands", blocks=(Row(answers(facts)), Tiles(_tiles(facts)))),
                Section(title="Alerts and what to do", blocks=alerts(facts)),
                Section(title="What was done", blocks=_done(facts)),
                Section(title="Data quality", blocks=_data(facts)),
                Section(title="The gate's decision", blocks=gate(facts)),
                Section(title="Week by week", blocks=_weeks(facts)),
                Section(title="What it costs", blocks=_costs(facts)),
                Section(title="Risks and next steps", blocks=_next(facts)),
            )
            if section.blocks
        ),
    )


def _tiles(facts: Facts) -> tuple[Tile, ...]:
    metric = facts["metric"]
    shown = []
    if has(facts, f"test.{metric}"):
        note: Line = ("on the test split",)
        if has(facts, f"lift.{metric}"):
            lift = show(facts, f"lift.{metric}", "signed")
            note = say(facts, "{lift} better than {rule}", lift=lift, rule=best_rule(facts)[0])
        shown.append(Tile(label=metric_name(metric), value=(show(facts, f"test.{metric}"),), note=note))
    if has(facts, f"live.last.{metric}"):
        figure = facts["figures"][f"live.last.{metric}"]
        shown.append(
            Tile(
                label="in the last judged window",
                value=(show(facts, f"live.last.{metric}"),),
                note=(str(figure["source"]["said"]),),
            )
        )
    if has(facts, "live.rows"):
        note = say(facts, "{live.labelled:count} with known outcome") if has(facts, "live.labelled") else ()
        shown.append(Tile(label="predictions answered", value=(show(facts, "live.rows"),), note=note))
    return (*shown, *cost_tiles(facts)[:1])


def alerts(facts: Facts) -> tuple[Block, ...]:
    """Every warning and error with what to do about it, and who; the gravest first."""
    found = [one for one in facts["findings"] if one["severity"] in ("warning", "error")]
    if not found:
        return (Say(("Nothing needs action.",)),)
    return tuple(finding_note(facts, one) for one in found)


def finding_note(facts: Facts, found: Mapping[str, Any]) -> Note:
    """Word one finding with its action and owner."""
    owner = facts["words"]["owner"]
    about = {"watch": "live traffic", "version": "the gate", "run": "training", "dataset": f"data: {found['source']}"}[
        found["about"]
    ]
    todo = sentence_case(found["hint"]) if found["hint"] else "Look into it."
    return Note(
        head=(found["code"], f" · {about}"),
        said=marked(sentence_case(found["said"])),
        todo=marked(f"{todo} Owner: {owner}."),
        tone=found["severity"],
    )


# ── history and data ─────────────────────────────────────────────────────────────────────────────────────────────────


def _done(facts: Facts) -> tuple[Block, ...]:
    blocks: list[Block] = []
    lines = [*quality_lines(facts)]
    text = "From {data.rows:count} rows of {data.sources:count} sources came {features.count:count} features"
    if has(facts, "data.rows", "data.sources", "features.count"):
        text += "; the model learned from {split.train.rows:count} rows" if has(facts, "split.train.rows") else ""
        lines.insert(0, say(facts, text + "."))
    blocks += [Say(line) for line in lines]
    if periods := picture.periods(facts):
        blocks.append(periods)
    blocks.append(timeline(facts, TIMELINE_ROWS))
    return tuple(blocks)


def timeline(facts: Facts, limit: int | None = None) -> Table:
    """What happened in order; a long history shows its end."""
    rows = rows_of(facts, "timeline")
    shown = rows[-limit:] if limit else rows
    left = len(rows) - len(shown)
    return Table(
        caption="What happened" + (f" (the {left} earlier events are on the engineer's page)" if left else ""),
        heads=("when", "what", "record"),
        rows=tuple(((word.moment(row["at"]),), (row["said"],), (f"{row['kind']} {row['id']}",)) for row in shown),
        source="timeline",
    )


def _data(facts: Facts) -> tuple[Block, ...]:
    rows = rows_of(facts, "datasets")
    if not rows:
        return (Say(("No data has been read for this model.",)),)
    return (Say(_lost(facts)), data_table(facts))


def _lost(facts: Facts) -> Line:
    """Say what became of every row: kept, repaired, set aside, and lost."""
    text = "Rows lost: not known, the balance of bytes was not kept"
    if has(facts, "data.unaccounted_bytes"):
        lost = value(facts, "data.unaccounted_bytes")
        text = (
            "Rows lost: none. Every byte of every file is a row, in quarantine or skipped by rule"
            if lost == 0
            else ("Rows lost: {data.unaccounted_bytes} of the raw files cannot be accounted for")
        )
    if has(facts, "data.quarantined"):
        text += ". In quarantine: {data.quarantined:rows}"
    if has(facts, "data.repaired"):
        text += ". Repaired: {data.repaired:rows}"
    return say(facts, text + ".")


def data_table(facts: Facts) -> Table:
    """Each source with its rows and what became of them."""
    rows = []
    for row in rows_of(facts, "datasets"):
        lost = row["unaccounted_bytes"]
        rows.append(
            tuple(
                (cell,)
                for cell in (
                    str(row["source"]),
                    _count(row["rows"]),
                    _size(row["bytes"]),
                    _count(row["quarantined"]),
                    _count(row["repaired"]),
                    "none" if lost == 0 else "not known" if lost is None else word.size(lost),
                    word.day(row["at"]),
                )
            )
        )
    return Table(
        caption="The data as read",
        heads=("source", "rows", "raw size", "quarantined", "repaired", "lost", "read"),
        rows=tuple(rows),
        numeric=frozenset({1, 2, 3, 4}),
        source="datasets",
    )


def _count(number: Any) -> str:
    return "–" if finite(number) is None else word.count(number)


def _size(number: Any) -> str:
    return "–" if finite(number) is None else word.size(number)


# ── decision and weeks ───────────────────────────────────────────────────────────────────────────────────────────────


def gate(facts: Facts) -> tuple[Block, ...]:
    """The gate's checks with their reasons, and what a newer refused version failed on."""
    checks = rows_of(facts, "gate")
    blocks: list[Block] = []
    if has(facts, "gate.allowed"):
        allowed = value(facts, "gate.allowed")
        text = "Allowed into production" if allowed else "Refused"
        blocks.append(Say(say(facts, text + ": {gate.passed:count} of {gate.checks:count} checks passed.")))
    else:
        blocks.append(Say(("No gate has judged this model yet.",)))
    if checks:
        blocks.append(
            Table(
                caption="Checks set before the training",
                heads=("check", "passed", "measured", "limit", "reason"),
                rows=tuple(
                    (
                        (str(one["name"]),),
                        ("yes" if one["passed"] else "no",),
                        (_figure(one["value"]),),
                        (_figure(one["limit"]),),
                        (str(one["said"] or ""),),
                    )
                    for one in checks
                ),
                numeric=frozenset({2, 3}),
                source="gate",
            )
        )
    refused = rows_of(facts, "refused")
    if refused:
        newer = facts["lineage"]["newest_version"]
        blocks.append(Say((f"A newer version, {newer}, was refused and is not in use:",)))
        blocks.append(Points(tuple((f"{one['name']}: {one['said']}",) for one in refused)))
    return tuple(blocks)


def _figure(number: Any) -> str:
    if isinstance(number, bool) or number is None:
        return "–"
    return word.compact(number) if isinstance(number, int | float) else str(number)


def _weeks(facts: Facts) -> tuple[Block, ...]:
    blocks: list[Block] = [one for one in (picture.quality(facts),) if one]
    weeks = weeks_table(facts)
    if not weeks.rows:
        return (Say(("No live traffic has been watched yet.",)),)
    blocks.append(weeks)
    if heat := picture.drift(facts):
        blocks.append(heat)
    return tuple(blocks)


def weeks_table(facts: Facts, metrics: Sequence[str] = ()) -> Table:
    """Each window: rows, known outcomes, quality with interval, worst drift, speed, errors and cost."""
    windows = rows_of(facts, "windows")
    wanted = list(metrics) or [facts["metric"]]
    rows: list[tuple[Line, ...]] = []
    for row in windows:
        share = row["labelled"] / row["rows"] if row["rows"] else 0.0
        cells = [word.day(row["start"]), _count(row["rows"]), word.percent(share, 0)]
        for metric in wanted:
            found = row["metrics"].get(metric)
            cells.append(_interval(found) if row["mature"] else "too early")
        cells.append(
            f"{row['drift_column']} {row['drift_worst']:.2f}" if finite(row["drift_worst"]) is not None else "–"
        )
        cells += [
            _ms(row["p99_ms"]),
            _count(row["errors"]),
            word.money(row["usd"]) if finite(row["usd"]) is not None else "–",
        ]
        rows.append(tuple((cell,) for cell in cells))
    heads = (
        "from",
        "answered",
        "outcomes in",
        *(metric_name(one) for one in wanted),
        "most drifted",
        "p99",
        "errors",
        "scoring cost",
    )
    at = 3 + len(wanted)
    return Table(
        caption="Windows of live traffic; a figure with its 95% interval",
        heads=heads,
        rows=tuple(rows),
        numeric=frozenset({1, 2, *range(3, at), at + 1, at + 2, at + 3}),
        source="windows",
    )


def _interval(found: Any) -> str:
    number = finite(found.get("value")) if isinstance(found, Mapping) else None
    if number is None:
        return "–"
    low, high = finite(found.get("low")), finite(found.get("high"))
    return word.decimal(number) + (
        f" ({word.decimal(low)}–{word.decimal(high)})" if low is not None and high is not None else ""
    )


def _ms(number: Any) -> str:
    return "–" if finite(number) is None else f"{word.decimal(number, 2)} ms"


# ── money and next steps ─────────────────────────────────────────────────────────────────────────────────────────────


def _costs(facts: Facts) -> tuple[Block, ...]:
    blocks: list[Block] = []
    tiles = cost_tiles(facts)
    if has(facts, "budget.usd", "run.usd"):
        used = value(facts, "run.usd") / value(facts, "budget.usd") if value(facts, "budget.usd") else 0.0
        note = say(facts, "{run.usd} spent on the last training")
        tiles = (
            *tiles,
            Tile(label="of its budget used", value=(word.percent(used),), note=note, tone="warn" if used > 0.8 else ""),
        )
    blocks.append(Tiles(tiles))
    pictures: tuple[Picture, ...] = tuple(one for one in (picture.costs(facts),) if one)
    blocks += pictures
    kinds = ledger_table(facts)
    if kinds.rows:
        blocks.append(kinds)
    return tuple(blocks)


def ledger_table(facts: Facts) -> Table:
    """What has been charged so far, by kind."""
    rows = tuple(
        (
            (str(row["kind"]),),
            (f"{word.decimal(row['quantity'], 2)} {row['unit']}" if finite(row["quantity"]) is not None else "–",),
            (_count(row["entries"]),),
            (word.money(row["usd"]),),
        )
        for row in rows_of(facts, "ledger")
    )
    return Table(
        caption="Everything charged so far, with runs that came to nothing",
        heads=("kind", "quantity", "entries", "cost"),
        rows=rows,
        numeric=frozenset({1, 2, 3}),
        source="ledger",
    )


def _next(facts: Facts) -> tuple[Block, ...]:
    """Next steps in the order of need: alerts, then what is not known, then what was refused."""
    owner = facts["words"]["owner"]
    acts = [
        f"On {one['code']}, by {owner}: {sentence_case(one['hint'])}"
        for one in facts["findings"]
        if one["severity"] in ("warning", "error") and one["hint"]
    ]
    acts += [f"Not known: {one['said']}. To know it: {one['todo']}." for one in facts["missing"]]
    unique: list[Line] = [marked(text) for text in dict.fromkeys(acts)]
    if facts["verdict"]["good"]["answer"] == "no":
        unique.append(("Train a better version, or change the limits with a reason; the gate keeps both on record.",))
    if has(facts, "calibration.gap"):
        unique.append(
            say(
                facts,
                "Its probabilities were off by {calibration.gap} on average on the test split; mind that where a "
                "probability is used as one.",
            )
        )
    if has(facts, "split.test.rows"):
        unique.append(
            say(
                facts,
                "All quality figures rest on {split.test.rows:count} {unit_plural} of one stretch of time; another "
                "season may differ.",
            )
        )
    return (Points(tuple(unique)),)

"""The engineer's page: everything, with ids and digests, so that any figure can be found, checked and made again.

For someone who runs, debugs and rebuilds the model. Nothing is left out for length; tables scroll. Definitions are
shown as they were run, and the last sections are the lineage by id and the commands that make every part again.
What the manager's page draws already (gate, weeks, history) is drawn by the same functions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tenon.report import picture, word
from tenon.report.executive import answers, subtitle
from tenon.report.made import PART_NAMES
from tenon.report.manager import data_table, finding_note, gate, ledger_table, timeline, weeks_table
from tenon.report.page import (
    Block,
    Code,
    Line,
    Page,
    Part,
    Points,
    Quoted,
    Row,
    Say,
    Section,
    Shown,
    Table,
    Tile,
    Tiles,
    estimate,
    has,
    rows_of,
    show,
)
from tenon.report.plainly import marked
from tenon.report.sheet import finite, metric_name

Facts = Mapping[str, Any]
CONFIG_CHARS = 6_000
FILES = 8
CHOSEN = ("flagged.rows", "flagged.share", "flagged.true", "flagged.found")
PROOFS = (
    *("parity.rows", "parity.max_abs", "parity.flips", "parity.delta"),
    *("version.p50_ms", "version.p99_ms", "version.bytes", "version.threshold"),
)


def engineer(facts: Facts) -> Page:
    """Tell the facts to someone who runs, debugs and rebuilds the model."""
    sections = (
        Section(title="Where it stands", blocks=(Row(answers(facts)), Tiles(_tiles(facts)), *_missing(facts))),
        Section(title="Findings", blocks=_findings(facts)),
        Section(title="Data", blocks=_data(facts)),
        Section(title="Features", blocks=_features(facts)),
        Section(title="Split", blocks=_split(facts)),
        Section(title="Quality on the test split", blocks=_quality(facts)),
        Section(title="Gate, parity and latency", blocks=(*gate(facts), *_parity(facts))),
        Section(title="At work, window by window", blocks=_work(facts)),
        Section(title="Drift", blocks=_drift(facts)),
        Section(title="Cost", blocks=_cost(facts)),
        Section(title="Lineage", blocks=_lineage(facts)),
        Section(title="How to make it again", blocks=_again(facts)),
        Section(title="History", blocks=(timeline(facts), _aliases(facts), _served(facts))),
    )
    return Page(
        audience="engineer",
        model=facts["model"],
        title=f"{facts['words']['title']}: {facts['model']}",
        subtitle=("“", facts["words"]["question"], "” ", *subtitle(facts)),
        sections=tuple(section for section in sections if section.blocks),
    )


def _tiles(facts: Facts) -> tuple[Tile, ...]:
    metric = facts["metric"]
    shown = []
    for key, label, how in (
        (f"test.{metric}", f"{metric_name(metric)}, test", ""),
        (f"live.last.{metric}", f"{metric_name(metric)}, last judged window", ""),
        ("skill", "error below the constant's", ""),
        ("version.p99_ms", "p99 of one prediction", ""),
        ("drift.worst", "largest PSI of an input", "decimal2"),
    ):
        if has(facts, key):
            note: Line = (show(facts, key, "interval"),) if "low" in facts["figures"][key] else ()
            shown.append(Tile(label=label, value=(show(facts, key, how),), note=note))
    return tuple(shown)


def _missing(facts: Facts) -> tuple[Block, ...]:
    lines = tuple(marked(f"Not known: {one['said']}. To know it: {one['todo']}.") for one in facts["missing"])
    return (Points(lines),) if lines else ()


def _findings(facts: Facts) -> tuple[Block, ...]:
    found = facts["findings"]
    notes: tuple[Block, ...] = tuple(finding_note(facts, one) for one in found if one["severity"] != "info")
    table = Table(
        caption="All findings",
        heads=("severity", "code", "about", "place", "said", "numbers"),
        rows=tuple(
            (
                (one["severity"],),
                (Quoted(one["code"]),),
                (f"{one['about']} {one['id']}",),
                (Quoted(one["place"]),),
                (one["said"],),
                (
                    ", ".join(
                        _number(name, number) for name, number in one["numbers"].items() if finite(number) is not None
                    ),
                ),
            )
            for one in found
        ),
    )
    return (*notes, table) if found else (Say(("None: nothing was found in the data, the run or the live traffic.",)),)


def _number(name: str, number: float) -> str:
    """Word one of a finding's numbers by its name; an instant as a day."""
    instant = name.endswith("_s") and number > 1e8
    return f"{name.removesuffix('_s')} {word.day(number)}" if instant else f"{name} {word.compact(number)}"


# ── data and features ────────────────────────────────────────────────────────────────────────────────────────────────


def _data(facts: Facts) -> tuple[Block, ...]:
    rows = rows_of(facts, "datasets")
    if not rows:
        return (Say(("No data has been read for this model.",)),)
    balance = Table(
        caption="Versions and balance of bytes: raw = rows + quarantine + skipped",
        heads=("source", "version", "raw", "rows", "quarantine", "skipped", "closes", "contract", "files"),
        rows=tuple(
            (
                (str(row["source"]),),
                (Quoted(str(row["id"])),),
                *((_whole(row[key]),) for key in ("bytes", "row_bytes", "quarantine_bytes", "skipped_bytes")),
                ({True: "yes", False: "no"}.get(row["closes"], "not known"),),
                (Quoted(str(row["contract"])[:12]),),
                (Quoted(_files(row["files"])),),
            )
            for row in rows
        ),
        numeric=frozenset({2, 3, 4, 5}),
        source="datasets",
    )
    columns = Table(
        caption="Columns as read",
        heads=("source", "column", "type", "unit", "missing"),
        rows=tuple(_column(str(row["source"]), one) for row in rows for one in row["columns"]),
        numeric=frozenset({4}),
        source="datasets",
    )
    breaches = [one for one in facts["findings"] if one["about"] == "dataset"]
    said = f"{word.plural(len(breaches), 'finding')} about the data, listed under Findings." if breaches else ""
    blocks: list[Block] = [data_table(facts), balance]
    blocks += [columns] if columns.rows else []
    return (*blocks, Say((said,))) if said else tuple(blocks)


def _files(digests: Sequence[object]) -> str:
    """Name the first pieces of a dataset, which may have thousands; all of them stand in its record."""
    shown = " ".join(str(digest)[:12] for digest in digests[:FILES])
    return f"{shown} and {len(digests) - FILES:,} more" if len(digests) > FILES else shown


def _column(source: str, one: Mapping[str, Any]) -> tuple[Line, ...]:
    missing = finite(one.get("null_pct"))
    cells = (
        str(one.get("type", "")),
        str(one.get("unit") or ""),
        "–" if missing is None else f"{word.decimal(missing, 2)}%",
    )
    return ((source,), (Quoted(str(one.get("name", ""))),), *((cell,) for cell in cells))


def _features(facts: Facts) -> tuple[Block, ...]:
    rows = rows_of(facts, "features")
    if not rows:
        return (Say(("No features have been built.",)),)
    table = Table(
        caption="Definitions, by importance",
        heads=("feature", "kind", "SQL", "reads", "importance"),
        rows=tuple(
            (
                (Quoted(str(row["name"])),),
                (str(row["kind"]),),
                (Quoted(str(row["sql"])),),
                (_reads(row),),
                (word.percent(row["share"]) if row["share"] is not None else "–",),
            )
            for row in rows
        ),
        numeric=frozenset({4}),
        source="features",
    )
    chart = picture.importance(facts)
    return (chart, table) if chart else (table,)


def _reads(row: Mapping[str, Any]) -> str:
    """Word where a feature looks: its own row, the last known row of another source, or a window of rows."""
    if row["window"]:
        over = f" over {', '.join(row['over'])}" if row["over"] else ""
        of = f" of {row['of']}" if row["of"] else ""
        return f"last {row['window']}{of}{over}, known by then"
    if row["of"]:
        on = f" on {', '.join(row['on'])}" if row["on"] else ""
        age = f", at most {row['within']} old" if row["within"] else ""
        return f"last known of {row['of']}{on}{age}"
    return "its own row"


def _whole(number: Any) -> str:
    return "–" if finite(number) is None else word.count(number)


# ── quality ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _split(facts: Facts) -> tuple[Block, ...]:
    rows = rows_of(facts, "split")
    if not rows:
        return ()
    table = Table(
        caption="By time, so that nothing is judged on what came before it was learned",
        heads=("part", "from", "to", "rows", "came true"),
        rows=tuple(
            (
                (PART_NAMES[row["part"]],),
                (word.moment(row["from"]),),
                (word.moment(row["to"]),),
                _shown(facts, f"split.{row['part']}.rows"),
                _shown(facts, f"split.{row['part']}.rate"),
            )
            for row in rows
        ),
        numeric=frozenset({3, 4}),
        source="split",
    )
    chart = picture.periods(facts)
    return (chart, table) if chart else (table,)


def _shown(facts: Facts, key: str) -> Line:
    return (show(facts, key),) if has(facts, key) else ("–",)


def _quality(facts: Facts) -> tuple[Block, ...]:
    rows = rows_of(facts, "metrics")
    if not rows:
        return (Say(("Not measured.",)),)
    metrics = list(dict.fromkeys(row["metric"] for row in rows if row["is_model"]))
    baselines = list(dict.fromkeys(row["who"] for row in rows if not row["is_model"]))
    ours = next(row["who"] for row in rows if row["is_model"])
    heads = ("metric", f"{ours} (this model)", "difference to the best baseline", "on validation", *baselines)
    body = []
    for metric in metrics:
        keys = [
            f"test.{metric}",
            f"lift.{metric}",
            f"valid.{metric}",
            *(f"baseline.{one}.{metric}" for one in baselines),
        ]
        body.append(((metric_name(metric),), *(estimate(facts, key) if has(facts, key) else ("–",) for key in keys)))
    table = Table(
        caption="With 95% bootstrap intervals; a difference is paired on the same rows and positive is better",
        heads=heads,
        rows=tuple(body),
        numeric=frozenset(range(1, len(heads))),
        source="metrics",
    )
    pictures = tuple(one for one in (picture.calibration(facts), picture.roc(facts) or picture.gains(facts)) if one)
    bars = picture.against_baselines(facts)
    blocks: list[Block] = [*([bars] if bars else []), table]
    if pictures:
        blocks.append(Row(pictures))
    chosen = tuple(((str(facts["figures"][key]["label"]),), estimate(facts, key)) for key in CHOSEN if has(facts, key))
    if chosen:
        caption = "Flagged at the version's threshold, on the test split"
        blocks.append(Table(caption=caption, heads=("what", "value"), rows=chosen, numeric=frozenset({1})))
    groups = rows_of(facts, "calibration")
    if groups:
        blocks.append(_calibration(facts, groups))
    return tuple(blocks)


def _calibration(facts: Facts, groups: list[dict[str, Any]]) -> Table:
    share = word.percent if facts["task"] == "binary" else word.decimal
    return Table(
        caption="Calibration: groups of equally many rows by prediction",
        heads=("promised", "observed", "95% interval", "rows"),
        rows=tuple(
            (
                (share(one["predicted"]),),
                (share(one["observed"]),),
                (
                    f"{share(one['low'])} to {share(one['high'])}"
                    if finite(one.get("low")) is not None and finite(one.get("high")) is not None
                    else "–",
                ),
                (word.count(one["rows"]),),
            )
            for one in groups
        ),
        numeric=frozenset({1, 2, 3}),
        source="calibration",
    )


def _parity(facts: Facts) -> tuple[Block, ...]:
    rows = tuple(((str(facts["figures"][key]["label"]),), _precise(facts, key)) for key in PROOFS if has(facts, key))
    if not rows:
        return ()
    return (
        Table(
            caption="Compiled against trained model, and its speed",
            heads=("what", "value"),
            rows=rows,
            numeric=frozenset({1}),
        ),
    )


def _precise(facts: Facts, key: str) -> Line:
    """Differences after compiling are so small that three decimals would hide them."""
    found = facts["figures"][key]
    if key.startswith("parity.") and found["unit"] == "":
        return (Shown(f"{found['value']:.2g}", key),)
    return (show(facts, key),)


# ── at work ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _work(facts: Facts) -> tuple[Block, ...]:
    windows = rows_of(facts, "windows")
    if not windows:
        return (Say(("No live traffic has been watched yet.",)),)
    metrics = list(dict.fromkeys(name for row in windows for name in row["metrics"]))
    chart = picture.quality(facts)
    table = weeks_table(facts, metrics or [facts["metric"]])
    return (chart, table) if chart else (table,)


def _drift(facts: Facts) -> tuple[Block, ...]:
    rows = rows_of(facts, "drift")
    if not rows:
        return ()
    windows = rows_of(facts, "windows")
    table = Table(
        caption="Population stability index by feature and window. Usual: the most a window of training reached; "
        "limit: where an alert begins",
        heads=("feature", "worst", "usual", "limit", *(word.day(row["start"], year=False) for row in windows)),
        rows=tuple(
            (
                (Quoted(row["column"]),),
                *(
                    (f"{number:.3f}" if number is not None else "–",)
                    for number in (row["worst"], row["usual"], row["limit"])
                ),
                *((f"{number:.3f}" if number is not None else "–",) for number in row["values"]),
            )
            for row in rows
        ),
        numeric=frozenset(range(1, 4 + len(windows))),
        source="drift",
    )
    chart = picture.drift(facts, limit=40)
    return (chart, table) if chart else (table,)


def _cost(facts: Facts) -> tuple[Block, ...]:
    making = Table(
        caption="Stages of this version",
        heads=("stage", "what", "record", "time", "cost"),
        rows=tuple(
            (
                (str(row["stage"]),),
                (str(row["what"]),),
                (Quoted(f"{row['record']} {row['id']}"),),
                (word.duration(row["seconds"]) if finite(row["seconds"]) is not None else "–",),
                (word.money(row["usd"]) if finite(row["usd"]) is not None else "–",),
            )
            for row in rows_of(facts, "making")
        ),
        numeric=frozenset({3, 4}),
        source="making",
    )
    sums = [
        ((str(facts["figures"][key]["label"]),), (show(facts, key),))
        for key in (
            "making.usd",
            "cost.thousand",
            "cost.answering_month",
            "cost.keeping_month",
            "cost.month",
            "ledger.usd",
            "budget.usd",
            "value.month",
            "run.peak_bytes",
        )
        if has(facts, key)
    ]
    table = Table(caption="Sums", heads=("what", "value"), rows=tuple(sums), numeric=frozenset({1}))
    ledger = ledger_table(facts)
    return tuple(one for one in (making, table, ledger) if one.rows)


# ── lineage and history ──────────────────────────────────────────────────────────────────────────────────────────────


def _lineage(facts: Facts) -> tuple[Block, ...]:
    lineage = facts["lineage"]
    rows: list[tuple[Line, ...]] = [
        ((kind,), (Quoted(str(lineage[kind])),))
        for kind in ("alias", "version", "run", "features", "watch")
        if lineage[kind]
    ]
    rows += [((f"dataset {name}",), (Quoted(id_),)) for name, id_ in lineage["datasets"].items()]
    records = Table(caption="Records", heads=("record", "id"), rows=tuple(rows))
    blobs = Table(
        caption="Blobs, named by the SHA-256 of their bytes",
        heads=("what", "digest"),
        rows=tuple(((name,), (Quoted(digest),)) for name, digest in lineage["blobs"].items()),
    )
    return (records, blobs) if blobs.rows else (records,)


def _again(facts: Facts) -> tuple[Block, ...]:
    environment, git = facts["environment"], facts["git"]
    rows: list[tuple[Line, ...]] = []
    for name, found in (
        ("git", git),
        *((name, environment.get(name)) for name in ("python", "hardware", "seed", "params")),
    ):
        if found not in (None, "", {}, []):
            rows.append(((name,), (_worded(found),)))
    commands = ["tenon run            # does again only what changed", "tenon models list"]
    commit = git.get("commit") if isinstance(git, Mapping) else None
    if isinstance(commit, str) and commit.isalnum():
        commands.insert(0, f"git checkout {commit}")
    if facts["lineage"]["run"]:
        commands.append(f"tenon runs show {facts['lineage']['run']}")
    commands.append("tenon report --for engineer --format json   # every figure above with its source")
    blocks: list[Block] = [Code("\n".join(commands))]
    if rows:
        blocks.append(Table(caption="The run's circumstances", heads=("what", "as recorded"), rows=tuple(rows)))
    packages = environment.get("packages")
    if isinstance(packages, Mapping) and packages:
        blocks.append(
            Say(("Packages: ", Quoted(", ".join(f"{name} {version}" for name, version in sorted(packages.items())))))
        )
    config = environment.get("config")
    if config:
        text = json.dumps(config, indent=1, sort_keys=True)
        blocks.append(Say(("Configuration as it was in effect:",)))
        blocks.append(Code(text if len(text) <= CONFIG_CHARS else text[:CONFIG_CHARS] + "\n… (cut here)"))
    return tuple(blocks)


def _worded(found: Any) -> Part:
    if isinstance(found, Mapping):
        return Quoted(
            ", ".join(
                f"{name} {json.dumps(one) if isinstance(one, dict | list) else one}" for name, one in found.items()
            )
        )
    return Quoted(str(found))


def _aliases(facts: Facts) -> Table:
    return Table(
        caption="Which version was in production, and why",
        heads=("when", "change", "why", "by"),
        rows=tuple(
            ((word.moment(row["at"]),), (row["what"],), (row["why"],), (row["who"],))
            for row in rows_of(facts, "aliases")
        ),
        source="aliases",
        empty="none: nothing has been promoted",
    )


def _served(facts: Facts) -> Table:
    return Table(
        caption="What served when",
        heads=("when", "state", "version", "where"),
        rows=tuple(
            (
                (word.moment(row["at"]),),
                (str(row["state"]),),
                (Quoted(str(row["version"])),),
                (f"{row['host']}:{row['port']} pid {row['pid']}",),
            )
            for row in rows_of(facts, "served")
        ),
        source="served",
        empty="none: it has never been served",
    )

"""`tenon runs`: training runs listed, shown, compared, searched; what changed between two; files they kept.

Only the store is opened, not the project, so that the runs of somebody's own loop are looked at in the same way. A
run is named by its id, the beginning of it, MODEL@latest, MODEL@previous or MODEL@ALIAS. Scores are shown with their
95 % intervals. Names that came from data pass through `output.harmless` on their way to a terminal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from tenon.cli.output import Output, harmless, priced, seconds, stacked, table, terminal_width, usd, when
from tenon.cli.shared import Command, json_flag, model_option, project_argument, stored

PICTURES = 12  # metrics that are drawn in a terminal; --html draws more, --json has all
PACKAGES = 15  # packages that are told of in text, most telling first
LINES = 60  # lines of a file's difference that are shown in text

html_option: Callable[[Command], Command] = click.option(
    "--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page of its own into this file instead."
)
scale_option: Callable[[Command], Command] = click.option(
    "--scale", type=click.Choice(["auto", "log", "linear"]), default="auto", show_default=True, help="Axis of values."
)


@click.group()
def runs() -> None:
    """List, show, compare and search training runs; say what changed between two.

    A run is called by its id, the beginning of it, MODEL@latest, MODEL@previous or MODEL@ALIAS.
    """


# ── which there are ──────────────────────────────────────────────────────────────────────────────────────────────────


@runs.command("list")
@project_argument
@model_option
@click.option("--limit", default=20, show_default=True, help="How many, newest first.")
@click.option("--where", default="", help="A condition in SQL, such as \"test_roc_auc > 0.7 AND status = 'done'\".")
@json_flag
def runs_list(project: Path, model: str, limit: int, where: str, as_json: bool) -> None:
    """List runs, newest first; `tenon runs sql` shows what a condition may name."""
    from tenon.flow import look, search

    output = Output(as_json)
    with stored(project) as store:
        found = look.listed(store, model=model, limit=None if where else max(limit, 0) + 1)
        if where:
            wanted = set(search.where(store, where, limits=_limits(project)))
            found = [run for run in found if run["id"] in wanted]
    more = len(found) > max(limit, 0)
    found = found[: max(limit, 0)]
    rows = [
        [
            run["id"],
            run["model"],
            run.get("trainer"),
            run["status"],
            _score(run),
            run.get("seconds"),
            usd(run["usd"]) if run.get("usd") is not None else None,
            when(run["at"]),
        ]
        for run in found
    ]
    head = ["run", "model", "trainer", "status", "score", "seconds", "cost", "when (UTC)"]
    output.emit(found, lambda: table(head, rows) if rows else "no such runs" if where or more else "no runs yet")
    if more:
        output.say("· there are older ones: --limit shows more")


def _score(run: Mapping[str, Any]) -> str:
    """Say the first score of a run, or what the first metric it logged ended at."""
    from tenon.flow import look

    scores = sorted(look.scores(run), key=lambda one: one[0] != "test")
    if scores:
        _, name, one = scores[0]
        return f"{name} {one['value']:.4g}"
    for name, one in (run.get("final") or {}).items():
        return f"{name} {_figure(one.get('last'))}"
    return "–"


@runs.command("sql")
@click.argument("query", default="")
@project_argument
@json_flag
def runs_sql(query: str, project: Path, as_json: bool) -> None:
    """Answer QUERY, one SELECT over tables of runs; without it, show the tables and their columns."""
    from tenon.flow import search

    output = Output(as_json)
    if _folder(query):
        query, project = "", Path(query)
    with stored(project) as store:
        if not query:
            tables = search.described(store)
            output.emit(tables, lambda: "\n\n".join(_wrapped(name, columns) for name, columns in tables.items()))
            return
        found = search.ask(store, query, limits=_limits(project))
    output.emit(found.to_dicts(), lambda: table([harmless(name) for name in found.columns], found.rows))


def _folder(word: str) -> bool:
    """Tell whether a word is the project's folder; a question in SQL may be no name of a file at all."""
    try:
        return bool(word) and Path(word).is_dir()
    except OSError:
        return False


def _wrapped(name: str, columns: Sequence[str]) -> str:
    return click.wrap_text(
        harmless(f"{name}: {', '.join(columns)}"), width=100, initial_indent="", subsequent_indent="    "
    )


def _limits(project: Path) -> Any:
    import os

    from tenon import config

    return config.load(project, os.environ).limits.track


# ── one run ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@runs.command("show")
@click.argument("run")
@project_argument
@html_option
@scale_option
@json_flag
def runs_show(run: str, project: Path, html: Path | None, scale: Any, as_json: bool) -> None:
    """Show one RUN: split, scores with intervals beside the baselines, what mattered, cost, and its curves."""
    from tenon.flow import look

    output = Output(as_json)
    with stored(project) as store:
        shown = look.run(store, run)
    record, curves = shown["run"], shown["curves"]
    head = harmless(
        f"run {record['id']} of '{record['model']}': {record.get('trainer') or 'a loop of your own'}, "
        f"{record['status']}, {seconds(record.get('seconds', 0))}, {usd(record.get('usd', 0))}, "
        f"{when(record['at'])} UTC"
    )
    tables = {**_tables(shown), "Parameters": (["parameter", "value"], _pairs(record.get("params")))}
    body = {**shown, "curves": {name: curve.to_dict() for name, curve in curves.items()}}
    if html is not None:
        _write(html, head, [record], {"curves": [curves], "tables": _filled(tables)}, scale)
        output.emit({**body, "file": str(html)}, f"wrote {harmless(str(html))}")
    else:
        output.emit(body, lambda: "\n".join([head, *_drawn_tables(tables), *_drawn([curves], scale)]))
    output.findings(record.get("findings", []))


Tables = dict[str, tuple[list[str], list[list[Any]]]]


def _tables(shown: Mapping[str, Any]) -> Tables:
    """Lay out what a run's record says."""
    record = shown["run"]
    sides = record.get("split") or {}
    split = [[side, part["from"], part["to"], part["rows"], part["rate"]] for side, part in sides.items()]
    mine = {name: one for side, name, one in _scores(record) if side in ("test", "")}
    tests = {str(record.get("trainer") or "this run"): mine, **(record.get("baselines") or {})}
    names = list(mine)
    scores = [[name, *(_estimate(of.get(metric)) for metric in names)] for name, of in tests.items()] if mine else []
    energy = record.get("energy") or {}
    cost = [["cost", usd(record["usd"])]] if record.get("usd") is not None else []
    if energy:
        cost.append(["energy", f"{energy['kwh']:.3g} kWh ({energy['source']})"])
    gain = [[row["name"], row["gain"]] for row in (record.get("importance") or [])[:12]]
    kept = [[name, digest[:12]] for name, digest in (record.get("artifacts") or {}).items()]
    return {
        "Data": (["source", "version"], _pairs(shown["data"])),
        "Split": (["split", "from", "to", "rows", "mean label"], split),
        "Scores": priced(["on test", *names], scores, record.get("costs") or {}),
        "Importance": (["feature", "gain"], gain),
        "Cost": (["what", "how much"], cost),
        "Artifacts": (["artifact", "digest"], kept),
    }


def _scores(record: Mapping[str, Any]) -> Any:
    from tenon.flow import look

    return look.scores(record)


def _pairs(values: Mapping[str, Any] | None) -> list[list[Any]]:
    return [[name, value if isinstance(value, (int, float, str)) else _said(value)] for name, value in _items(values)]


def _items(values: Mapping[str, Any] | None) -> list[tuple[str, Any]]:
    return list((values or {}).items())


def _said(value: Any) -> str:
    """Write any plain value in one line."""
    if isinstance(value, str):
        return value
    return "–" if value is None else json.dumps(value, ensure_ascii=False)


def _estimate(estimate: Mapping[str, Any] | None) -> str:
    if not estimate:
        return "–"
    said = f"{estimate['value']:.4f}"
    return f"{said} ({estimate['low']:.4f} to {estimate['high']:.4f})" if estimate.get("low") is not None else said


def _figure(value: Any) -> str:
    return "–" if value is None else f"{value:,.5g}"


def _drawn_tables(tables: Tables) -> Iterator[str]:
    for heads, rows in tables.values():
        if rows:
            yield "\n" + stacked([harmless(str(head)) for head in heads], rows)


# ── curves ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _drawn(curves: Sequence[Mapping[str, Any]], scale: Any) -> Iterator[str]:
    """Draw the curves of one or several runs, metric by metric, as wide as the terminal and 80 columns at most."""
    from tenon.report import curve
    from tenon.report.runs import told

    width = max(min(curve.WIDTH, terminal_width()), 30)
    names = list(dict.fromkeys(name for one in curves for name in one))
    for name in names[:PICTURES]:
        chosen = [(place, one[name]) for place, one in enumerate(curves) if name in one]
        letters = [curve.LETTERS[place] if len(curves) > 1 else "" for place, _ in chosen]
        yield "\n" + harmless(name)[:width]
        yield from (f"  {told(one, letter)}"[:width] for letter, (_, one) in zip(letters, chosen, strict=True))
        yield from curve.plain(chosen, several=len(curves) > 1, wanted=scale, width=width)
    if len(names) > PICTURES:
        yield f"\n{len(names) - PICTURES} more metrics: --html FILE draws them, --json has them"


def _filled(tables: Tables) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Return the tables that have rows, with every cell as text."""
    return {
        caption: (heads, [[f"{cell:,.5g}" if isinstance(cell, float) else _said(cell) for cell in row] for row in rows])
        for caption, (heads, rows) in tables.items()
        if rows
    }


def _write(file: Path, title: str, records: Sequence[Mapping[str, Any]], found: Mapping[str, Any], scale: Any) -> None:
    """Write the page beside its place and rename it there."""
    from tenon.report.runs import page

    text = page(title, records, found, scale)
    beside = file.with_name(f"{file.name}.part")
    try:
        beside.write_text(text, "utf-8")
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


# ── several runs ─────────────────────────────────────────────────────────────────────────────────────────────────────


@runs.command("watch")
@click.argument("run")
@project_argument
@click.option(
    "--every", default=1.0, show_default=True, type=click.FloatRange(0.1, 3600), help="Seconds between looks."
)
@click.option("--metric", default="", help="The metric to draw; the first whose name has 'loss' in it otherwise.")
@click.option("--once", is_flag=True, help="Show how it stands now, and end.")
@json_flag
def runs_watch(run: str, project: Path, every: float, metric: str, once: bool, as_json: bool) -> None:
    """Follow one RUN at work: step, loss, rate, time left, money, where the time goes, findings as they come.

    Looks into the store only, so that any terminal of the machine will do. Ends when the run ends. With --json, one
    line for each look.
    """
    import sys

    from tenon.flow import look
    from tenon.report.follow import Screen

    screen = Screen(sys.stdout)
    with stored(project) as store:
        for record, name, losses, last in look.followed(store, run, metric=metric, every_s=every, once=once):
            if as_json:
                told = {field: record.get(field) for field in ("id", "model", "status", "stands", "findings")}
                click.echo(json.dumps({**told, "metric": name, "latest": float(losses[-1]) if len(losses) else None}))
            else:
                screen.draw(record, losses, name=name, last=last)


@runs.command("compare")
@click.argument("names", nargs=-1, required=True, metavar="RUN... [PROJECT]")
@html_option
@scale_option
@json_flag
def runs_compare(names: tuple[str, ...], html: Path | None, scale: Any, as_json: bool) -> None:
    """Compare two to eight runs: their scores, what they cost, and their curves in one picture for each metric."""
    from tenon.flow import look

    last = len(names) > 2 and _folder(names[-1])
    project, chosen = (Path(names[-1]), names[:-1]) if last else (Path(), names)
    output = Output(as_json)
    with stored(project) as store:
        compared = look.compare(store, chosen)
    records, curves = compared["runs"], compared["curves"]
    tables = _side_by_side(compared)
    body = {**compared, "curves": [{name: one.to_dict() for name, one in each.items()} for each in curves]}
    if html is not None:
        title = "Runs " + ", ".join(record["id"] for record in records)
        _write(html, title, records, {"curves": curves, "tables": _filled(tables)}, scale)
        output.emit({**body, "file": str(html)}, f"wrote {harmless(str(html))}")
    else:
        output.emit(body, lambda: "\n".join([*_drawn_tables(tables), *_drawn(curves, scale)]).lstrip("\n"))


def _side_by_side(compared: Mapping[str, Any]) -> Tables:
    """Lay out runs as rows, and their scores and final values as columns; parameters only where they differ."""
    from tenon.report.curve import LETTERS

    records = compared["runs"]
    scores = [{f"{side} {name}".strip(): one for side, name, one in _scores(record)} for record in records]
    names = list(dict.fromkeys(name for one in scores for name in one if not name.startswith("valid ")))
    ends = list(dict.fromkeys(name for one in compared["final"] for name in one))[:6]
    params = [record.get("params") or {} for record in records]
    differ = [
        name
        for name in sorted({name for one in params for name in one})
        if len({_said(one.get(name)) for one in params}) > 1
    ]
    lines = list(zip(LETTERS, records, strict=False))
    overview = [
        [
            letter,
            run["id"],
            run["model"],
            run.get("trainer"),
            run["status"],
            run.get("seconds"),
            usd(run.get("usd") or 0),
        ]
        for letter, run in lines
    ]
    return {
        "Runs": (["", "run", "model", "trainer", "status", "seconds", "cost"], overview),
        "Parameters that differ": (
            ["", *differ],
            [
                [letter, *(_said(one.get(name)) for name in differ)]
                for (letter, _), one in zip(lines, params, strict=True)
            ]
            if differ
            else [],
        ),
        "Scores": (
            ["", *names],
            [
                [letter, *(_estimate(one.get(name)) for name in names)]
                for (letter, _), one in zip(lines, scores, strict=True)
            ]
            if names
            else [],
        ),
        "Last values": (
            ["", *ends],
            [
                [letter, *((one.get(name) or {}).get("last") for name in ends)]
                for (letter, _), one in zip(lines, compared["final"], strict=True)
            ]
            if ends
            else [],
        ),
    }


# ── what changed ─────────────────────────────────────────────────────────────────────────────────────────────────────


@runs.command("diff")
@click.argument("before")
@click.argument("after")
@project_argument
@json_flag
def runs_diff(before: str, after: str, project: Path, as_json: bool) -> None:
    """Say what changed from run BEFORE to AFTER, most telling first, and what came of it."""
    from tenon.flow import change

    output = Output(as_json)
    with stored(project) as store:
        found = change.between(store, before, after)
    output.emit(found, lambda: "\n".join(_told(found)))


def _told(found: Mapping[str, Any]) -> Iterator[str]:
    sides = [found["before"], found["after"]]
    yield harmless(" -> ".join(f"{side['id']} ({side['model']}, {when(side['at'])})" for side in sides))
    if found["same"]:
        yield "\nnothing that they were made of differs"
    groups = dict.fromkeys(change["group"] for change in found["changes"])
    for group in [*groups, *(["code"] if found["files"] and "code" not in groups else [])]:
        yield f"\n{group}"
        of = [change for change in found["changes"] if change["group"] == group]
        for change in of[: PACKAGES if group == "packages" else None]:
            yield harmless(f"  {_changed(change)}")
        if group == "packages" and len(of) > PACKAGES:
            yield f"  and {len(of) - PACKAGES} more; --json has all"
        if group == "code":
            yield from _files(found["files"])
    metrics = [
        [
            f"{one['side']} {one['metric']}".strip(),
            _estimate(one["before"]),
            _estimate(one["after"]),
            _delta(one),
            one["verdict"],
            one["how"],
        ]
        for one in found["metrics"]
    ]
    if metrics:
        yield "\n" + table(["metric", "before", "after", "change (95 %)", "verdict", "judged by"], metrics)
    cost = [
        [
            one["name"],
            one["before"],
            one["after"],
            f"{one['ratio']:.2f} x" if one["ratio"] is not None else "–",
            one["how"],
        ]
        for one in found["cost"]
    ]
    if cost:
        yield "\n" + table(["cost", "before", "after", "", "how"], cost)


def _changed(change: Mapping[str, Any]) -> str:
    was, now = _said(change["before"]), _said(change["after"])
    kind = change["kind"]
    said = f"+ {change['name']}: {now}" if kind == "added" else f"- {change['name']}: {was}"
    if kind not in ("added", "gone"):
        level = f"  ({kind})" if kind != "changed" else ""
        said = f"  {change['name']}: {was} -> {now}{level}"
    return (said + (f"  [{change['said']}]" if change["said"] else "")).replace("\n", " ")


def _files(files: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for file in files:
        lines = file["diff"].splitlines()
        yield harmless(f"    {file['name']} ({file['kind']})")
        yield from (harmless(f"      {line}") for line in lines[2 : LINES + 2])
        if len(lines) > LINES + 2:
            yield f"      … {len(lines) - LINES - 2:,} more lines; --json has them"


def _delta(one: Mapping[str, Any]) -> str:
    if one["delta"] is None:
        return "–"
    ends = f" ({one['low']:+.4f} to {one['high']:+.4f})" if one["low"] is not None else ""
    return f"{one['delta']:+.4g}{ends}"


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@runs.command("artifact")
@click.argument("run")
@click.argument("name", default="")
@project_argument
@click.option("--out", "-o", type=click.Path(dir_okay=False, path_type=Path), help="Write the file here.")
@click.option("--force", is_flag=True, help="Replace the file that --out names.")
@json_flag
def runs_artifact(run: str, name: str, project: Path, out: Path | None, force: bool, as_json: bool) -> None:
    """List the files that RUN kept, by name and content; with NAME and --out, write one; every byte is checked."""
    from tenon.flow import look

    output = Output(as_json)
    if out is None and _folder(name):
        name, project = "", Path(name)
    with stored(project) as store:
        found = look.artifacts(store, run)
        if not name:
            rows = [[one["name"], one["bytes"], one["digest"]] for one in found]
            output.emit(found, lambda: table(["artifact", "bytes", "digest"], rows, cut=80) if rows else "no artifacts")
            return
        told = look.fetch(store, run, name, out, force=force)
    output.emit(told, harmless(f"wrote {told['file']}: {told['bytes']:,} bytes of '{name}' ({told['digest'][:12]})"))

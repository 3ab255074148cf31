"""`tenon data`: the versions of a project's data, listed, compared, opened and tidied away.

Only the store is opened, not the project: versions can be looked at where `project.py` does not load, and at once. What
came from somebody's file (names, values, paths) passes through `output.harmless` on its way to a terminal; a file that
is written holds every value as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from tenon.cli.output import Output, harmless, table, when
from tenon.cli.shared import Command, json_flag, stored
from tenon.report import word

project_option: Callable[[Command], Command] = click.option(
    "--project", "-p", type=click.Path(file_okay=False, path_type=Path), default=".", help="The project folder."
)
MOST = 20  # columns that are told of at once in text; --json has all


@click.group()
def data() -> None:
    """List, compare and open the versions of a project's data.

    A version is called SOURCE@1, SOURCE@latest, SOURCE@previous, or by the beginning of its id.
    """


@data.command("list")
@click.argument("source", default="")
@project_option
@json_flag
def data_list(source: str, project: Path, as_json: bool) -> None:
    """List the versions of SOURCE (default: of all): rows, bytes, how many are new, and what made each."""
    from tenon.flow import history

    output = Output(as_json)
    with stored(project) as store:
        found = [version.to_dict() for version in history.versions(store, source)]
    rows = [
        [
            one["name"],
            one["id"],
            when(one["at"]),
            one["rows"],
            one["quarantined"],
            word.size(one["bytes"]),
            word.size(one["bytes"] - one["shared_bytes"]),
            "changed" if one["contract_changed"] else "",
            "; ".join(one["why"]),
            _code(one["datasets"][0]["made"]),
            ", ".join(one["used_by"]),
        ]
        for one in found
    ]
    head = ["version", "id", "made", "rows", "quarantined", "size", "new bytes"]
    head += ["contract", "because of", "code", "used by"]
    output.emit(found, lambda: table(head, rows, cut=48) if rows else "no data yet: run `tenon run` first")


@data.command("diff")
@click.argument("before")
@click.argument("after")
@project_option
@json_flag
def data_diff(before: str, after: str, project: Path, as_json: bool) -> None:
    """Say what changed from version BEFORE to AFTER: schema, rows, contract, columns; what changed most first."""
    from tenon.flow import history

    output = Output(as_json)
    with stored(project) as store:
        found = history.difference(store, history.find(store, before), history.find(store, after))
    output.emit(found, lambda: "\n".join(_told(found)))


@data.command("open")
@click.argument("version")
@click.option(
    "--out",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write all rows here: .parquet, .csv or .jsonl.",
)
@click.option("--force", is_flag=True, help="Replace the file that --out names.")
@click.option("--head", default=10, show_default=True, help="How many rows to show without --out.")
@project_option
@json_flag
def data_open(version: str, out: Path | None, force: bool, head: int, project: Path, as_json: bool) -> None:
    """Show the first rows of VERSION and where its pieces are, or write all of it to a file; every byte is checked."""
    from tenon.errors import UsageError, sentence
    from tenon.flow import history, piece

    output = Output(as_json)
    with stored(project) as store:
        found = history.find(store, version)
        told = {"name": found.name, "id": found.id, "rows": found.rows, "pieces": len(found.record["files"])}
        if out is not None:
            if out.exists() and not force:
                raise UsageError(
                    sentence("a new file", "one that exists", at=str(out), hint="add --force to replace it")
                )
            size = piece.write(store, found.record, out)
            output.emit(
                {**told, "file": str(out), "bytes": size},
                f"wrote {harmless(str(out))}: {found.rows:,} rows of {harmless(found.name)}, {word.size(size)}",
            )
            return
        rows = piece.scan(store, found.record).head(max(head, 0)).collect()
        first = str(store.blobs.path(found.record["files"][0]))
    names = [harmless(name) for name in rows.columns]
    where = f"{found.name} ({found.id}): {found.rows:,} rows in {told['pieces']:,} pieces, the first of them {first}"
    body = {**told, "columns": rows.columns, "head": [list(row) for row in rows.iter_rows()], "first_piece": first}
    cells = [[value if value is None else str(value) for value in row] for row in rows.iter_rows()]
    output.emit(body, lambda: f"{table(names, cells, cut=30)}\n{harmless(where)}")


@data.command("gc")
@click.option("--keep", type=int, help="Keep only so many of the newest versions of each source, and what is used.")
@click.option("--yes", is_flag=True, help="Delete; without it this only says what would go.")
@project_option
@json_flag
def data_gc(keep: int | None, yes: bool, project: Path, as_json: bool) -> None:
    """Delete data that no version, run or alias needs; without --yes, only say what would go.

    What was made or used within a day always stays, because another tenon may be at work with it.
    """
    from tenon.flow import tidy

    output = Output(as_json)
    with stored(project, read_only=not yes) as store:
        found = tidy.tidy(store, keep=keep, yes=yes)
    rows = [[one["kind"], one["of"], one["id"], when(one["at"]), one["rows"]] for one in found.records]
    lines = [table(["", "of", "id", "made", "rows"], rows) + "\n"] if rows else []
    verb = "deleted" if found.done else "would delete"
    lines.append(f"{verb} {found.blobs:,} blobs ({word.size(found.bytes)}), {found.leftovers:,} leftover files")
    if found.young_blobs:
        lines.append(
            f"{found.young_blobs:,} more ({word.size(found.young_bytes)}) were put within a day and stay for now"
        )
    if not found.done and (found.blobs or found.leftovers or found.records):
        lines.append("nothing was deleted: add --yes to do it")
    output.emit(found.to_dict(), "\n".join(lines))


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _code(made: Mapping[str, Any]) -> str:
    git = made.get("git") or {}
    commit = f" {git['commit'][:8]}{'+' if git.get('dirty') else ''}" if git.get("commit") else ""
    return f"{made.get('tenon', '')}{commit}"


def _told(found: Mapping[str, Any]) -> Iterator[str]:
    """Tell a difference to a person: what is the same is not told of."""
    before, after = found["before"], found["after"]
    yield harmless(f"{before['name']} ({before['id']}) -> {after['name']} ({after['id']})")
    if found["same"]:
        yield "the rows are the same"
    old, new = found["rows"]
    moved = f", {new - old:+,} ({(new - old) / old:+.2%})" if old and new != old else ""
    yield f"rows         {old:,} -> {new:,}{moved}; {found['shared_rows']:,} stand in row groups that both have"
    sizes = f"{word.size(before['bytes'])} -> {word.size(after['bytes'])}"
    yield f"bytes        {sizes}, of which {word.size(found['shared_bytes'])} are shared"
    for kind in ("quarantined", "repaired"):
        if found[kind][0] != found[kind][1]:
            yield f"{kind:<12} {found[kind][0]:,} -> {found[kind][1]:,}"
    yield from _sections(found)
    shown = found["columns"][:MOST]
    if shown:
        yield ""
        yield table(
            ["column", "moved", "null %", "mean", "median", "distinct", "psi", "what changed"],
            [_row(column) for column in shown],
            cut=88,
        )
    if len(found["columns"]) > MOST:
        yield f"{len(found['columns']) - MOST} more columns changed less: see --json"
    if found["unchanged"]:
        yield f"\n{len(found['unchanged'])} columns did not change: " + harmless(", ".join(found["unchanged"][:MOST]))


def _sections(found: Mapping[str, Any]) -> Iterator[str]:
    schema = found["schema"]
    lines = [f"+ {_type(column)}" for column in schema["added"]]
    lines += [f"- {_type(column)}" for column in schema["removed"]]
    lines += [f"~ {_type(one['before'])} -> {_type(one['after'])}" for one in schema["changed"]]
    yield from _listed("schema", lines)
    yield from _listed("contract", found["contract"])
    said = [
        f"{one['code']} at {one['place']}: {one['before'] or 'nothing'} -> {one['after'] or 'nothing'}"
        for one in found["findings"]
    ]
    yield from _listed("findings", said)


def _listed(title: str, lines: Sequence[str]) -> Iterator[str]:
    if lines:
        yield f"\n{title}"
        yield from (f"  {harmless(line)}" for line in lines)


def _type(column: Mapping[str, Any]) -> str:
    marks = [column["unit"] or "", *(one for one in ("derived", "late") if column[one])]
    return " ".join([column["name"], column["type"], *(mark for mark in marks if mark)])


def _row(column: Mapping[str, Any]) -> list[Any]:
    before, after = column["before"], column["after"]

    def pair(name: str) -> str:
        was, now = (_figure(side.get(name)) for side in (before, after))
        return was if was == now else f"{was} -> {now}"

    said = "; ".join(line for line in column["said"] if not line.startswith(("mean", "distribution")))
    if not said and before.get("top") != after.get("top"):
        said = "top: " + ", ".join(f"{level} {_figure(share)} %" for level, share in after.get("top", [])[:3])
    figures = [pair(name) for name in ("missing_pct", "mean", "p50", "distinct")]
    return [column["column"], f"{column['change']:.2%}", *figures, column["psi"], said]


def _figure(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    return f"{value:,.4g}" if isinstance(value, float) and abs(value) < 1e5 else f"{value:,.0f}"

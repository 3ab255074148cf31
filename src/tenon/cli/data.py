"""`tenon ingest`, `tenon check` and `tenon quarantine`: files in, typed columns or verdicts out; no project needed.

Each is one call of `flow.single`. What was found stands in a summary on stdout, findings and their hints on stderr;
cells that came from somebody's file pass through `output.harmless` on the way.
"""

from __future__ import annotations

import gc
from pathlib import Path

import click

from tenon.cli.output import Output, table, terminal_width
from tenon.cli.shared import json_flag
from tenon.cli.summary import TOLD, summary

# New objects before garbage is looked for: this process does nothing else, and little of what ingest makes is circular.
GARBAGE = 50_000


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", "-o", type=click.Path(file_okay=False, path_type=Path), help="Folder to write to (default: here)."
)
@click.option("--name", default="", help="Base name of what is written (default: the first file's).")
@click.option("--text", is_flag=True, help="Keep every column as text, spelt as in the source.")
@click.option("--csv", "csv", type=click.Path(dir_okay=False, path_type=Path), help="Write clean CSV here instead.")
@click.option(
    "--policy",
    type=click.Choice(["row", "cell"]),
    default="row",
    help="A value that does not fit its column quarantines its row, or only its cell (flagged).",
)
@json_flag
def ingest(
    paths: tuple[Path, ...], out: Path | None, name: str, text: bool, csv: Path | None, policy: str, as_json: bool
) -> None:
    """Read messy PATHS (files, folders, globs) into typed Parquet; nothing is lost."""
    gc.set_threshold(GARBAGE)
    from tenon.flow import single
    from tenon.ingest.quick import keep_memory

    keep_memory()
    output = Output(as_json)
    asked = single.Read(paths=paths, out=out or Path(), name=name, text=text, csv=csv, policy=policy)
    with output:
        read = single.read(asked, output.progress, output.counted)
    assert read.ingested.balance.closes, read.ingested.balance
    body = read.to_dict()
    output.emit(body, lambda: summary(body, terminal_width()))
    output.findings([found for found in body["findings"] if as_json or found["code"] not in TOLD])


@click.command()
@click.argument("data", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--contract",
    "-c",
    "file",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The contract, YAML.",
)
@click.option("--good", type=click.Path(dir_okay=False, path_type=Path), help="Write the good rows here, as Parquet.")
@click.option(
    "--bad", type=click.Path(dir_okay=False, path_type=Path), help="Write the bad rows here, with their rules."
)
@click.option("--junit", type=click.Path(dir_okay=False, path_type=Path), help="Write JUnit XML for CI here.")
@json_flag
def check(
    data: tuple[Path, ...], file: Path, good: Path | None, bad: Path | None, junit: Path | None, as_json: bool
) -> None:
    """Check DATA (files, folders, globs, - for stdin) against a contract; exit 1 when a threshold is passed."""
    from tenon.flow.check import Ask
    from tenon.flow.check import check as run

    output = Output(as_json)
    with output:
        checked = run(Ask(data=data, contract=file, good=good, bad=bad, junit=junit), output.progress)
    counts = checked.verdict.counts.values()
    rows = [[count.rule, count.broken, count.broken_pct, count.threshold_pct, not count.exceeded] for count in counts]
    bad_rows = checked.verdict.bad_rows
    lines = [table(["rule", "bad rows", "%", "allowed %", "passed"], rows)] if rows else []
    lines.append(
        f"\n{', '.join(map(str, data))} {'keeps' if checked.passed else 'breaks'} its contract: "
        f"{checked.verdict.rows - bad_rows:,} good rows, {bad_rows:,} bad, {checked.unread:,} that could not be read"
    )
    unread = checked.verdict.contract.unread
    lines += [f"not checked, the contract says more than can be: {', '.join(unread)}"] if unread else []
    lines += [f"wrote {path}" for path in checked.written]
    output.emit(checked.to_dict(), "\n".join(lines))
    output.findings([finding.to_dict() for finding in checked.findings])
    if not checked.passed:
        raise SystemExit(1)


@click.group()
def quarantine() -> None:
    """Show what was quarantined and why, and read it again."""


@quarantine.command("show")
@click.argument("file", type=click.Path(dir_okay=False, exists=True, path_type=Path))
@click.option("--limit", default=20, show_default=True, help="How many records.")
@json_flag
def quarantine_show(file: Path, limit: int, as_json: bool) -> None:
    """Show the records of a quarantine FILE: where each came from, why, and what would have mended it."""
    from tenon.flow import single

    output = Output(as_json)
    rows = single.quarantined(file, limit)
    names = list(rows[0]) if rows else []
    cells = [list(row.values()) for row in rows]
    output.emit(rows, lambda: table(names, cells, cut=150) if rows else "nothing is quarantined")


@quarantine.command("summary")
@click.argument("file", type=click.Path(dir_okay=False, exists=True, path_type=Path))
@json_flag
def quarantine_summary(file: Path, as_json: bool) -> None:
    """Count the records of a quarantine FILE by reason and column, with an example of each."""
    from tenon.flow import single

    output = Output(as_json)
    rows = single.quarantine_summary(file)
    names = list(rows[0]) if rows else []
    cells = [list(row.values()) for row in rows]
    output.emit(rows, lambda: table(names, cells, cut=150) if rows else "nothing is quarantined")


@quarantine.command("replay")
@click.argument("file", type=click.Path(dir_okay=False, exists=True, path_type=Path))
@click.option(
    "--policy",
    type=click.Choice(["row", "cell"]),
    default="cell",
    show_default=True,
    help="A value that does not fit its column keeps its row waiting, or is emptied and flagged.",
)
@json_flag
def quarantine_replay(file: Path, policy: str, as_json: bool) -> None:
    """Read only the rows of a quarantine FILE again; those that can be read now are written beside the data."""
    from tenon.flow import single

    output = Output(as_json)
    with output:
        done = single.quarantine_replay(file, "cell" if policy == "cell" else "row", output.progress)
    data = {"file": str(done.file or ""), "rows": done.rows, "waiting": done.waiting, "seconds": done.seconds}
    told = f"{done.rows:,} rows could be read now, {done.waiting:,} still wait"
    output.emit(data, f"{told}; wrote {done.file}" if done.file else told)

"""`tenon store`, `tenon doctor` and `tenon completion`: look after the store, the machine and the shell.

The probes of the doctor are in `cli.doctor`, as functions that return values; here they are only shown. A command that
finds something wrong ends with exit code 1, so that a scheduler notices.
"""

from __future__ import annotations

import os
from pathlib import Path

import click

from tenon.cli.output import Output, seconds, table
from tenon.cli.shared import json_flag, opened, project_argument


@click.group()
def store() -> None:
    """Check the store, and delete what nothing refers to."""


@store.command("check")
@project_argument
@json_flag
def store_check(project: Path, as_json: bool) -> None:
    """Read every blob and record back and compare it with the digest that names it; exit 1 when something is wrong."""
    output = Output(as_json)
    with opened(project, output, read_only=True) as work:
        findings = [finding.to_dict() for finding in work.store.check()]
    output.findings(findings)
    wrong = [finding for finding in findings if finding["severity"] == "error"]
    output.emit({"ok": not wrong, "findings": findings}, f"{len(wrong)} faults" if wrong else "the store is whole")
    if wrong:
        raise SystemExit(1)


@store.command("gc")
@project_argument
@json_flag
def store_gc(project: Path, as_json: bool) -> None:
    """Delete blobs that no record refers to."""
    output = Output(as_json)
    with opened(project, output) as work:
        freed = work.store.gc()
    data = {"blobs": freed.blobs, "bytes": freed.size_bytes, "leftovers": freed.leftovers}
    output.emit(
        data, f"deleted {freed.blobs:,} blobs ({freed.size_bytes / 1e6:,.1f} MB), {freed.leftovers:,} leftovers"
    )


@click.command()
@project_argument
@json_flag
def doctor(project: Path, as_json: bool) -> None:
    """Probe this machine as PROJECT would use it, and say how to mend what is wrong; exit 1 when something is."""
    from tenon import config
    from tenon.cli.doctor import probes

    output = Output(as_json)
    found = probes(project, config.load(project, os.environ))
    marks = {True: "ok", False: "FAILED", None: "n/a"}
    rows = [[marks[probe.ok], probe.name, probe.said, seconds(probe.seconds)] for probe in found]
    broken = [probe for probe in found if probe.ok is False]
    lines = [table(["", "probe", "found", "took"], rows, cut=110)]
    lines += [f"\n{probe.name}: {probe.fix}" for probe in broken]
    output.emit([probe.to_dict() for probe in found], "\n".join(lines))
    if broken:
        raise SystemExit(1)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL; to use it: eval "$(tenon completion bash)"."""
    from click.shell_completion import get_completion_class

    from tenon.cli import tenon

    kind = get_completion_class(shell)
    assert kind is not None, shell
    click.echo(kind(tenon, {}, "tenon", "_TENON_COMPLETE").source())

"""`tenon train` and `tenon models`: training, and which version may answer.

Versions are named by their id, the beginning of it, their number or alias.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tenon.cli import change
from tenon.cli.begin import told
from tenon.cli.output import Output, table, usd, when
from tenon.cli.shared import json_flag, model_option, opened, project_argument
from tenon.errors import UsageError, sentence

if TYPE_CHECKING:
    from tenon.flow.work import Launch


@click.command()
@click.argument("project", default=".", metavar="[PROJECT|SCRIPT]")
@click.argument("given", nargs=-1, metavar="[-- ARGS]")
@model_option
@click.option("--again", is_flag=True, help="Train anew though nothing changed.")
@click.option("--nproc", type=click.IntRange(min=1), help="Train in so many processes.")
@click.option("--restarts", type=click.IntRange(min=0), default=3, show_default=True, help="Begin them again so often.")
@click.option("--silence", type=float, default=600.0, show_default=True, help="Seconds without a step that are a hang.")
@click.option("--engine", type=click.Choice(["local", "ray"]), help="Where SCRIPT runs, instead of tenon.toml's.")
@click.option("--gpu", default="", help="The GPU that a step must fit, such as h100-80gb, not the one here.")
@click.option("--batch", type=click.IntRange(min=1), help="Examples in one step of all processes, to ask if it fits.")
@json_flag
@click.pass_context
def train(ctx: click.Context, /, project: str, given: tuple[str, ...], as_json: bool, **flags: Any) -> None:
    """Train PROJECT's model, simplest first, and put it before its gate; or run a SCRIPT of your own.

    SCRIPT is train.py, or a function as train.py:fit or module:fit. With --nproc it runs in several processes, which
    DDP and FSDP join; one that dies or hangs is told, and all go on from the last checkpoint. So does a PROJECT's own
    trainer. One that states its step in the functions of `tenon fit` is begun only when that is sure to fit the GPU.
    """
    from tenon.cli import several

    output = Output(as_json)
    ask = several.Several(
        nproc=flags["nproc"] or 1,
        restarts=flags["restarts"],
        silence_s=flags["silence"],
        engine=flags["engine"] or "",
        gpu=flags["gpu"],
        batch=flags["batch"] or 0,
    )
    if several.is_target(project):
        if not several.seen_through(project, given, ask, output):
            ctx.exit(1)
        return
    if not Path(project).is_dir():
        wanted = "a script or function to run on processes, or a project's folder"
        raise UsageError(sentence(wanted, f"'{project}'", hint="as in: tenon train train.py --nproc 2 -- --lr 0.1"))
    spread = [f"--{name}" for name in ("restarts", "silence", "engine") if _typed(ctx, name)]
    which = several.Which(folder=Path(project), model=flags["model"], spread=["--nproc"] * (ask.nproc > 1) + spread)
    fitting = several.fitting_project(which, given, ask, output)
    if any(not one for one in fitting):
        ctx.exit(1)
    launch = several.launching(ask, output) if which.spread else None
    _trained(Path(project), flags["model"], flags["again"], launch, output)
    several.learn_project(Path(project), fitting)


def _typed(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _trained(project: Path, model: str, again: bool, launch: Launch | None, output: Output) -> None:
    from tenon import flow

    with opened(project, output, again=again, launch=launch) as work:
        outcome = flow.run(work, model=model, upto="version")
    output.findings(outcome.findings, notes=False)
    output.emit(outcome.to_dict(), lambda: told(outcome, project))


# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@click.group()
def models() -> None:
    """List, promote and roll back model versions; audit what served when."""


@models.command("list")
@project_argument
@model_option
@json_flag
def models_list(project: Path, model: str, as_json: bool) -> None:
    """List versions, newest first, with their gate's verdict and alias."""
    from tenon.flow import promote

    output = Output(as_json)
    with opened(project, output, read_only=True) as work:
        found = promote.versions(work, model)
    rows = [
        [
            row["model"],
            row["number"],
            row["id"],
            ", ".join(row["aliases"]) or "–",
            "allowed" if row["gate"]["allowed"] else "refused",
            row["score"],
            row["latency"].get("p99_ms"),
            when(row["at"]),
        ]
        for row in found
    ]
    header = ["model", "no.", "version", "alias", "gate", "test", "p99 ms", "when (UTC)"]
    output.emit(found, lambda: table(header, rows))


@models.command("show")
@click.argument("version")
@project_argument
@model_option
@json_flag
def models_show(version: str, project: Path, model: str, as_json: bool) -> None:
    """Show one VERSION (id, number or alias): its lineage, every check of its gate, and the forms that were tried."""
    from tenon.flow import promote, variant

    output = Output(as_json)
    with opened(project, output, read_only=True) as work:
        record = promote.version(work, model, version)
        tried = variant.of_version(work, record)
        here = variant.here(work, record)
    checks = [["✓" if check["passed"] else "✗", check["name"], check["said"]] for check in record["gate"]["checks"]]
    lines = [
        f"version {record['number']} ({record['id']}) of '{record['model']}', {when(record['at'])} UTC",
        f"  run {record['run']}, features {record['features']}, "
        f"datasets {', '.join(f'{name} {id}' for name, id in record['datasets'].items())}",
        "",
        table(["", "check", "said"], checks),
        *(line for one in tried for line in ("", *_forms(one))),
        "",
        f"answers here as: {here.name}{f' ({here.said})' if here.said else ''}",
    ]
    output.emit({**record, "variants": tried, "form": here.name}, "\n".join(lines))


@models.command("compile")
@click.argument("version")
@project_argument
@model_option
@json_flag
def models_compile(version: str, project: Path, model: str, as_json: bool) -> None:
    """Try smaller and quicker forms of VERSION on this kind of machine, and choose which one answers on it."""
    from tenon.flow import variant

    output = Output(as_json)
    with opened(project, output) as work:
        record, stage = variant.compiled(work, model, version)
    done = "" if stage.done else "; tried before"
    head = f"version {record['number']} ({record['id']}) of '{record['model']}'{done}"
    output.emit(stage.body, "\n".join((head, *_forms(stage.body))))


def _forms(tried: Mapping[str, Any]) -> list[str]:
    """Write the forms of a version that were tried at one place, the one that answers there marked."""
    place = tried["place"]
    head = (
        f"forms on {place['machine']} with ONNX Runtime {place['onnxruntime']}, threads: {place['threads']} "
        f"(key {tried['key']}), on {tried['rows']:,} test rows:"
    )
    rows = [
        [
            "✓" if one["chosen"] else "",
            one["name"],
            f"{one['size_bytes'] / 1e6:.3f}",
            f"{one['p50_ms']:.3f}",
            f"{one['p99_ms']:.3f}",
            f"{one['rows_per_s']:,.0f}",
            usd(one["usd_per_1000"]),
            one["flips"],
            f"{one['gain']['value']:+.1g}" if one["gain"] else "–",
        ]
        for one in tried["variants"]
    ]
    header = ["", "form", "MB", "p50 ms", "p99 ms", "rows/s", "1,000 cost", "flips", tried["metric"]]
    return [head, table(header, rows), *(f"  {one['name']}: {one['said']}" for one in tried["variants"])]


alias_option = click.option("--alias", default="production", show_default=True, help="The alias to move.")
reason_option = click.option("--reason", default="", help="Why, for the audit.")


@models.command("promote")
@click.argument("version")
@project_argument
@model_option
@alias_option
@reason_option
@click.option("--despite-gate", is_flag=True, help="Promote a version its gate refused; the audit records it.")
@json_flag
def models_promote(
    version: str, project: Path, model: str, alias: str, reason: str, despite_gate: bool, as_json: bool
) -> None:
    """Give VERSION (id or number) an alias, when its gate allows."""
    from tenon.flow import promote

    output = Output(as_json)
    with opened(project, output) as work:
        move = promote.Move(model=model, version=version, alias=alias, reason=reason, despite_gate=despite_gate)
        moved = promote.promote(work, move)
    output.emit(
        moved, f"{moved['model']}/{moved['alias']} is now {moved['version']} (was {moved['previous'] or 'nothing'})"
    )


@models.command("rollback")
@project_argument
@model_option
@alias_option
@reason_option
@json_flag
def models_rollback(project: Path, model: str, alias: str, reason: str, as_json: bool) -> None:
    """Give the alias back to the version that had it before."""
    from tenon.flow import promote

    output = Output(as_json)
    with opened(project, output) as work:
        moved = promote.rollback(work, promote.Move(model=model, alias=alias, reason=reason))
    output.emit(moved, f"{moved['model']}/{moved['alias']} is back at {moved['version']} (was {moved['previous']})")


@models.command("audit")
@project_argument
@model_option
@json_flag
def models_audit(project: Path, model: str, as_json: bool) -> None:
    """Tell what served when: every move of an alias, every trial, every start, swap and stop of a service."""
    from tenon.flow import promote

    output = Output(as_json)
    with opened(project, output, read_only=True) as work:
        trail: list[dict[str, Any]] = promote.audit(work, model)
    rows = [[when(row["at"]), row["kind"], row["model"], row["what"], row["version"], row["why"]] for row in trail]
    output.emit(trail, lambda: table(["when (UTC)", "kind", "model", "what", "version", "why"], rows))


for command in change.COMMANDS:
    models.add_command(command)

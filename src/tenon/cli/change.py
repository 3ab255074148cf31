"""`tenon models canary|shadow|trial|stop`: another version on live traffic, and what is known of it.

Each is one call of `flow.trial`; `cli.learn` has them among the commands of `tenon models`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tenon.cli.output import Output, table, when
from tenon.cli.shared import json_flag, model_option, opened, project_argument

reason_option = click.option("--reason", default="", help="Why, for the audit.")
MARKS = {"good": "✓", "bad": "✗", "open": "…"}
BOUNDS = {
    "agreement": "Least share of rows with the same decision (default 0.95).",
    "tolerance": "Without decisions: scores agree within this share of the larger one (default 0.05).",
    "errors_pct": "Failed requests, in points above the other version (default 1).",
    "slow_ms": "A request that takes longer is slow (default 50).",
    "slow_pct": "Slow requests, in points above the other version (default 1).",
}


def bounds_options(command: Any) -> Any:
    """Add an option for each bound."""
    for name, said in reversed(BOUNDS.items()):
        command = click.option(f"--{name.replace('_', '-')}", name, type=float, default=None, help=said)(command)
    return command


@click.command("canary")
@click.argument("version")
@project_argument
@model_option
@click.option("--share", default="5%", show_default=True, help="Of the requests, such as 5% or 0.05.")
@bounds_options
@reason_option
@click.option("--despite-gate", is_flag=True, help="Try a version its gate refused; the audit records it.")
@json_flag
def canary(version: str, project: Path, share: str, as_json: bool, **given: Any) -> None:
    """Let VERSION answer a share of the live requests; it is rolled back by itself when it is worse beyond noise."""
    from tenon.flow import trial

    _begin(version, project, trial.share_of(share), as_json, given)


@click.command("shadow")
@click.argument("version")
@project_argument
@model_option
@bounds_options
@reason_option
@json_flag
def shadow(version: str, project: Path, as_json: bool, **given: Any) -> None:
    """Let VERSION score live requests along, off the answer's path; `tenon models trial` tells the verdict."""
    _begin(version, project, 0.0, as_json, given)


def _begin(version: str, project: Path, share: float, as_json: bool, given: dict[str, Any]) -> None:
    from tenon import serving
    from tenon.flow import promote, trial

    output = Output(as_json)
    move = promote.Move(
        model=given["model"],
        version=version,
        reason=given["reason"],
        despite_gate=given.get("despite_gate", False),
    )
    bounds = serving.Bounds(**{name: given[name] for name in BOUNDS if given[name] is not None})
    with opened(project, output) as work:
        held = trial.begin(work, trial.Try(move=move, share=share, bounds=bounds))
    how = f"answers {100 * share:g} % of the requests of" if share else "scores along with"
    output.emit(held, f"{held['version']} {how} '{held['model']}', beside {held['base']}\nnext: tenon models trial")


@click.command("trial")
@project_argument
@model_option
@json_flag
def show(project: Path, model: str, as_json: bool) -> None:
    """Tell what the newest trial has shown so far: agreement, errors, latency, scores, cost, and the verdict."""
    from tenon.flow import trial

    output = Output(as_json)
    with opened(project, output, read_only=True) as work:
        held = trial.latest(work, model)
    verdict = held["verdict"]
    head = f"{held['trial_kind']} of {held['version']} beside {held['base']}, since {when(held['at'])} UTC"
    share = f", {100 * held['share']:g} % of the requests" if held["share"] else ""
    lines = [head + share, f"{held['state']}{': ' + held['why'] if held['why'] else ''}", ""]
    if verdict:
        rows = [[MARKS[check["answer"]], check["name"], check["said"]] for check in verdict["checks"]]
        lines += [table(["", "check", "said"], rows), "", *_told(verdict["told"]), f"verdict: {verdict['answer']}"]
    else:
        lines.append("nothing seen yet: is `tenon serve` running?")
    output.emit(held, "\n".join(lines))


def _told(told: dict[str, Any]) -> list[str]:
    shown = {name: "–" if value is None else f"{value:.4g}" for name, value in told.items()}
    rows = [
        [name, shown[f"base_{key}"], shown[f"candidate_{key}"]]
        for name, key in (("p50 ms", "p50_ms"), ("p99 ms", "p99_ms"), ("$ for 1,000 rows", "usd_per_1000"))
    ]
    differs = f"scores differ by {shown['difference']} on average ({shown['difference_low']} to "
    differs += f"{shown['difference_high']}), at most by {shown['largest_difference']}; {shown['dropped']} comparisons "
    return [table(["", "in production", "tried"], rows), "", differs + "had no room"]


@click.command("stop")
@project_argument
@model_option
@reason_option
@json_flag
def stop(project: Path, model: str, reason: str, as_json: bool) -> None:
    """End the trial under way; production goes on as it was."""
    from tenon.flow import trial

    output = Output(as_json)
    with opened(project, output) as work:
        held = trial.stop(work, model, reason)
    output.emit(held, f"the {held['trial_kind']} of {held['version']} is stopped")


COMMANDS = (canary, shadow, show, stop)

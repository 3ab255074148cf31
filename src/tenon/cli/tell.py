"""`tenon watch`, `tenon report`, `tenon ui` and `tenon cost`: what is known, told.

Each is one call of `flow.tell`. Windows and costs are laid out here as tables; reports are drawn by `report` and only
named here, but for the text form of one audience, which goes to stdout as it is.
"""

from __future__ import annotations

from pathlib import Path

import click

from tenon.cli.output import Output, table, usd
from tenon.cli.shared import json_flag, model_option, opened, project_argument

AUDIENCES = ("engineer", "manager", "executive")


@click.command()
@project_argument
@model_option
@click.option("--as-of", "as_of", default="", help="Look as somebody would have looked at this moment.")
@click.option("--window", default="", help="Length of a window, such as 7d (default: tenon.toml).")
@click.option("--fail", is_flag=True, help="Exit 1 when a finding is an error, for a scheduler.")
@json_flag
def watch(project: Path, model: str, as_of: str, window: str, fail: bool, as_json: bool) -> None:
    """Look at what PROJECT's service answered: drift, performance as labels mature, latency, errors and cost."""
    from tenon.flow import tell

    output = Output(as_json)
    with opened(project, output) as work:
        watched = tell.watch(work, tell.Look(model=model, as_of=as_of, window=window))
    output.emit(watched, lambda: _windows(watched))
    output.findings(watched["findings"])
    if fail and any(finding["severity"] == "error" for finding in watched["findings"]):
        raise SystemExit(1)


def _windows(watched: dict[str, object]) -> str:
    windows = watched["windows"]
    assert isinstance(windows, list)
    if not windows:
        return "no observations yet: start `tenon serve`, and ask it or `tenon replay` to it"
    metric = next((name for window in windows for name in window["metrics"]), "")
    rows = []
    for window in windows:
        score = window["metrics"].get(metric)
        worst = max(window["drift"].items(), key=lambda item: item[1] or 0.0, default=("", None))
        rows.append(
            [
                str(window["start"])[:10],
                window["rows"],
                f"{100 * window['labelled'] / window['rows']:.0f} %" if window["rows"] else "–",
                f"{score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})" if score else "–",
                f"{worst[0]} {worst[1]:.2f}" if worst[1] is not None else "–",
                window["p50_ms"],
                window["p99_ms"],
                "–" if window.get("goodput") is None else f"{100 * window['goodput']:.1f} %",
                window.get("refused", 0),
                window["errors"],
                usd(window["usd"]),
            ]
        )
    score_name, drift = metric or "score", "most drift (PSI)"
    header = ["from", "rows", "labelled", score_name, drift, "p50 ms", "p99 ms", "in time", "refused", "errors", "cost"]
    return table(header, rows)


@click.command()
@project_argument
@model_option
@click.option("--for", "audience", type=click.Choice(AUDIENCES), help="For whom (default: all three).")
@click.option(
    "--format", "form", type=click.Choice(["html", "text", "json"]), default="html", help="Form of the report."
)
@click.option(
    "--out", "-o", type=click.Path(file_okay=False, path_type=Path), help="Folder (default: PROJECT/reports)."
)
@json_flag
def report(project: Path, model: str, audience: str | None, form: str, out: Path | None, as_json: bool) -> None:
    """Write PROJECT's report for an engineer, a manager or an executive: the same facts, told three ways."""
    from tenon.flow import tell

    output = Output(as_json)
    with opened(project, output) as work:
        told = tell.reports(
            work, tell.Telling(model=model, audiences=(audience,) if audience else AUDIENCES, form=form, out=out)
        )
    if form == "text" and audience and out is None and not as_json:
        click.echo(told[0]["text"])
        return
    rows = [{name: value for name, value in row.items() if name != "text"} for row in told]
    output.emit(rows, "\n".join(f"{row['audience']:<10} {row['path']}" for row in rows))


@click.command()
@project_argument
@click.option("--port", type=int, default=0, help="Port to listen on (default: a free one).")
def ui(project: Path, port: int) -> None:
    """Open the local web page over PROJECT's facts; Ctrl-C ends it."""
    from tenon.flow import tell

    output = Output()
    with opened(project, output, read_only=True) as work:
        tell.ui(work, port, output.say)


@click.command()
@project_argument
@click.option("--by", type=click.Choice(["stage", "kind", "day"]), default="stage", help="What to sum by.")
@json_flag
def cost(project: Path, by: str, as_json: bool) -> None:
    """Say what everything in PROJECT cost: stages, storage, predictions; and what a thousand predictions cost."""
    from tenon.flow import tell

    output = Output(as_json)
    with opened(project, output, read_only=True) as work:
        spent = tell.cost(work, by)
    rows = [[row["name"], row["entries"], usd(row["usd"])] for row in spent["rows"]]
    lines = [
        table(
            [by, "entries", "cost"], [*rows, ["total", sum(row["entries"] for row in spent["rows"]), usd(spent["usd"])]]
        ),
        f"\nstorage: {spent['stored_bytes'] / 1e6:,.1f} MB, {usd(spent['storage_usd_month'])} a month",
    ]
    if spent["predictions"]:
        lines.append(f"predictions: {spent['predictions']:,}, {usd(spent['usd_per_1000'])} for a thousand")
    lines.append(f"prices: {spent['prices']} (tenon.toml)")
    output.emit(spent, "\n".join(lines))

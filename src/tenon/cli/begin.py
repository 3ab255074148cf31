"""`tenon init` and `tenon run`: begin a project, and take it the whole way.

`told` words the end of a run for a person: what was done and what was found unchanged, the gate's checks, the scores
beside the baselines', what it cost, where the reports are and how to serve. `tenon train` ends with the same words.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tenon.cli.output import Output, harmless, priced, seconds, stacked, table, usd
from tenon.cli.shared import json_flag, model_option, opened, project_argument

if TYPE_CHECKING:
    from tenon.flow import Outcome

STAGES = ("ingest", "dataset", "features", "run", "version", "report")


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default=".")
@click.option(
    "--from", "file", type=click.Path(dir_okay=False, exists=True, path_type=Path), help="Begin from your own file."
)
@click.option("--label", default="", help="With --from: what to predict, as SQL, such as 'days_late > 30'.")
@click.option("--time", "time", default="", help="With --from: the column that says when a row happened.")
@json_flag
def init(folder: Path, file: Path | None, label: str, time: str, as_json: bool) -> None:
    """Make a project FOLDER, from your own file or with a small example that runs at once."""
    from tenon.flow import begin

    output = Output(as_json)
    made = begin.init(folder, file, label=label, time=time)
    text = "\n".join(f"wrote {path}" for path in made)
    output.emit({"folder": str(folder), "files": [str(path) for path in made]}, text)
    output.say(f"next: tenon run {shlex.quote(str(folder))}")


@click.command()
@project_argument
@model_option
@click.option("--upto", type=click.Choice(STAGES), default="report", help="Stop after this stage.")
@click.option("--again", is_flag=True, help="Do every stage anew, changed or not.")
@json_flag
def run(project: Path, model: str, upto: str, again: bool, as_json: bool) -> None:
    """Take PROJECT from raw files to a gated model and reports; redo only what changed."""
    from tenon import flow

    output = Output(as_json)
    with opened(project, output, again=again) as work:
        outcome = flow.run(work, model=model, upto=upto)
    output.findings(outcome.findings, notes=False)
    output.emit(outcome.to_dict(), lambda: told(outcome, project))


def told(outcome: Outcome, project: Path) -> str:
    """Tell the end of a run: the stages, what was found, what it cost, where the reports are, how to serve it."""
    rows = [
        [
            stage.name,
            stage.subject,
            "done" if stage.done else "unchanged",
            seconds(stage.seconds),
            usd(stage.usd),
            stage.id,
        ]
        for stage in outcome.stages
    ]
    parts = [table(["stage", "of", "", "took", "cost", "id"], rows)]
    for model in outcome.models:
        lines = [f"\n{model.title}: {model.verdict}"]
        lines += [f"  {'✓' if check['passed'] else '✗'} {check['said']}" for check in model.checks]
        if model.scores:
            lines.append("")
            header, rows = ["on the test period", *model.metrics], [list(row) for row in model.scores]
            lines.append(stacked(*priced(header, rows, model.costs)))
        parts.append("\n".join(lines))
    done = [stage for stage in outcome.stages if stage.done]
    parts.append(
        f"\nThis run took {seconds(outcome.seconds)} and cost {usd(sum(stage.usd for stage in done))}; "
        f"all that is kept cost {usd(sum(stage.usd for stage in outcome.stages))} to make."
    )
    if outcome.reports:
        width = max(len(audience) for audience in outcome.reports)
        lines = [f"  {audience:<{width}}  {path}" for audience, path in outcome.reports.items()]
        parts.append("\n".join(["Reports:", *lines]))
    serving = [model.name for model in outcome.models if model.serving]
    if serving:
        where = shlex.quote(str(project)) + (f" --model {shlex.quote(serving[0])}" if outcome.several else "")
        # Named as it was called, so that the line can be pasted: an environment is not always on the path.
        tenon = "tenon" if shutil.which("tenon") or not sys.argv[0].endswith("tenon") else sys.argv[0]
        parts.append(
            f"Serve it:\n  {tenon} serve {where}\n"
            f"  {tenon} replay {where}    (in another terminal: its test period as live traffic)"
        )
    return harmless("\n".join(parts))

"""`tenon predict`, `tenon serve`, `tenon replay` and `tenon labels`: the model at work.

Each is one call of `flow.live`. The address, the token and the limits of a service come from tenon.toml; options here
override the address for one call only.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from tenon.cli.output import Output, seconds, table, usd
from tenon.cli.shared import json_flag, model_option, opened, project_argument


@click.command()
@click.argument("rows", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--project", "-p", type=click.Path(file_okay=False, path_type=Path), default=".", help="The project's folder."
)
@model_option
@click.option("--version", "version", default="production", show_default=True, help="Version id, number or alias.")
@json_flag
def predict(rows: Path, out: Path, project: Path, model: str, version: str, as_json: bool) -> None:
    """Score the file ROWS into the file OUT (.parquet, .csv or .jsonl): each row with its score and decision."""
    from tenon.flow import live

    output = Output(as_json)
    with opened(project, output) as work:
        done = live.predict(work, live.Prediction(rows=rows, out=out, model=model, version=version))
    output.findings([finding.to_dict() for finding in done.findings])
    output.emit(
        done.to_dict(),
        f"scored {done.rows:,} rows with {done.model}/{done.version} in {seconds(done.seconds)} "
        f"({done.rows / max(done.seconds, 1e-9):,.0f} rows/s, {usd(done.usd)}), {done.refused:,} refused; wrote {out}"
        + (f"\n{done.quarantined:,} rows could not be read and wait in {done.quarantine}" if done.quarantine else ""),
    )


@click.command()
@project_argument
@model_option
@click.option("--host", default="", help="Address to listen on (default: tenon.toml, else 127.0.0.1).")
@click.option("--port", type=int, default=0, help="Port to listen on (default: tenon.toml, else 8321).")
@click.option("--grpc-port", type=int, default=0, help="Port of the gRPC door (default: tenon.toml, else none).")
@click.option("--version", "version", default="production", show_default=True, help="Version id, number or alias.")
@click.option("--as-of", "as_of", default="", help="Know only what was known by this moment, for an honest replay.")
@click.option("--lm", "languages", multiple=True, help="An exported language model, FOLDER or NAME=FOLDER; repeatable.")
@click.option("--stateful", multiple=True, help="A model that keeps a state for each session, NAME=FOLDER; repeatable.")
@json_flag
def serve(project: Path, as_json: bool, **given: Any) -> None:
    """Serve PROJECT's model over HTTP: plain JSON rows, Open Inference Protocol v2, OpenAI for language models.

    PROJECT may also be a folder that a language model was exported to. With --stateful it may be without a model.
    """
    from tenon.flow import language, live

    output = Output(as_json)
    if language.is_alone(project) or (given["stateful"] and not (project / "project.py").exists()):
        where = {name: given[name] for name in ("host", "port", "languages", "stateful")}
        language.serve(language.Alone(folder=project, **where), os.environ, output.say)
        output.emit({"served": True}, "stopped")
        return
    with opened(project, output) as work:
        live.serve(work, live.Serving(**given), output.say)
    output.emit({"served": True}, "stopped; every observation is kept")


@click.command()
@project_argument
@model_option
@click.option("--url", default="", help="The service (default: the project's own address).")
@click.option("--from", "start", default="", help="First moment (default: the test period's first).")
@click.option("--to", "end", default="", help="Moment to stop at (default: the end of the data).")
@click.option("--tick", default="15m", show_default=True, help="How often facts that became known are sent.")
@click.option("--speed", type=float, default=0.0, help="Simulated seconds a second (default: as fast as it answers).")
@json_flag
def replay(project: Path, as_json: bool, **given: Any) -> None:
    """Play PROJECT's recorded rows against the running service as live traffic; outcomes arrive late, as they did."""
    from tenon.flow import live

    output = Output(as_json)
    with opened(project, output, read_only=True) as work:
        done = live.replay(work, live.Replay(**given))
    output.emit(
        done.to_dict(),
        f"{done.predictions:,} predictions and {done.facts:,} facts in {seconds(done.seconds)} "
        f"({done.predictions / max(done.seconds, 1e-9):,.0f} predictions/s), {done.errors:,} errors, "
        f"p50 {done.p50_ms:.1f} ms, p99 {done.p99_ms:.1f} ms\nnext: tenon watch {project}",
    )
    if done.errors:
        raise SystemExit(1)


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@project_argument
@model_option
@json_flag
def labels(file: Path, project: Path, model: str, as_json: bool) -> None:
    """Record true outcomes from FILE: columns `id` and `label` (and `known`), or the model's own source's rows."""
    from tenon.flow import live

    output = Output(as_json)
    with opened(project, output) as work:
        done = live.labels(work, file, model)
    rows = [[done["labels"], done["matched"], done["without"], done["refused"], done["kind"]]]
    output.emit(done, table(["labels kept", "meet an observation", "meet none yet", "refused", "as"], rows))

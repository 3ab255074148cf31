"""`tenon fit`: will a training step fit a GPU that is not here? The verdict first, then where the memory goes.

A folder with a `.tenon` store gives what past runs on that device taught; without one the default margin holds. The
exit code is 1 when the step is not sure to fit, so that a script can stand behind it as behind a gate.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tenon.cli.output import Output, table
from tenon.cli.shared import json_flag

if TYPE_CHECKING:
    from tenon.limits import FitLimits
    from tenon.store import Store
    from tenon.training.memory import StepFit


@click.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path), default=".")
@click.option("--gpu", required=True, help="The GPU, such as h100-80gb; an unknown name lists them.")
@click.option("--batch", type=click.IntRange(min=1), required=True, help="Examples in one step.")
@click.option("--total-gib", type=float, help="The GPU's memory as CUDA reports it, instead of the table's.")
@click.option("--used-gib", type=float, default=0.0, help="What other processes hold on the GPU.")
@click.option("--expandable", is_flag=True, help="Predict with expandable_segments:True.")
@click.option("--plan/--no-plan", default=True, help="Search what would fit when it does not.")
@json_flag
@click.pass_context
def fit(
    ctx: click.Context,
    path: Path,
    gpu: str,
    batch: int,
    total_gib: float | None,
    used_gib: float,
    expandable: bool,
    plan: bool,
    as_json: bool,
) -> None:
    """Predict whether the training step in PATH (train.py, or any file) fits a GPU, without one."""
    from tenon.training.memory import Question, Settings, find, fit_step

    output = Output(as_json)
    device = find(gpu, total_gib=total_gib)
    with remembering(path if path.is_dir() else path.parent) as (store, limits):
        question = Question(
            path=path,
            device=device,
            batch=batch,
            settings=Settings(expandable=expandable),
            used_bytes=int(used_gib * 1024**3),
            limits=limits,
        )
        found = fit_step(question, store=store, plan=plan)
    output.emit(found.to_dict(), lambda: told(found))
    if not found:
        ctx.exit(1)


@contextmanager
def remembering(folder: Path) -> Iterator[tuple[Store | None, FitLimits]]:
    """Give what the store of a folder remembers, when there is one, and the folder's limits."""
    from tenon import config
    from tenon.store import Store

    settings = config.load(folder, os.environ)
    if not settings.store.catalog and not (folder / ".tenon" / "tenon.db").is_file():
        yield None, settings.limits.fit
        return
    with Store.open(folder, config=settings.store, limits=settings.limits.store, read_only=True) as store:
        yield store, settings.limits.fit


def told(found: StepFit) -> str:
    """Write a prediction for a person: verdict, where the memory goes, the highest point, what would fit."""
    from tenon.training.memory.predict import gib

    question, step, at = found.question, found.step, found.step.peak
    parts = [[kind, gib(size), f"{size / max(at.allocated_bytes, 1):.0%}"] for kind, size in at.parts.items() if size]
    parts += [
        ["allocated at the peak", gib(at.allocated_bytes), ""],
        ["fragmentation and cache", gib(at.reserve_bytes), ""],
        ["reserved at the peak", gib(at.reserved_bytes), ""],
        ["margin", gib(found.needed_bytes - at.reserved_bytes), ""],
        ["CUDA context and kernels", gib(question.device.context_bytes), "from a table"],
    ]
    where = f"{at.op} in {at.module or 'the model'}" if at.op else "the model"
    lines = [
        f"{found.verdict}: {found.reason}" if found else found.verdict,
        "",
        f"{question.path}, batch {question.batch:,} on {question.device.name}: "
        f"{step.counts['parameters']:,} parameters, {step.flops / 1e12:,.2f} TFLOP a step",
        table(["memory", "bytes", "share"], parts),
        f"the peak is in the {at.phase} pass, at {where}" if at.phase != "optimizer" else f"the peak is at {where}",
        f"margin: {found.margin.said}",
        *(
            [f"extrapolated from small real steps, because fake tensors cannot run it: {step.extrapolated}"]
            * bool(step.extrapolated)
        ),
        *(f"note: {note}" for note in step.notes),
    ]
    if found.plans:
        rows = [
            [
                "✓" if one.fits else "✗",
                one.said,
                gib(one.need_bytes),
                one.slower,
                "same result" if one.keeps_result else "changes the training",
                "by formula" if one.formula else "run on fake tensors",
            ]
            for one in found.plans
        ]
        lines += ["", table(["fits", "change", "reserved", "time", "result", "how"], rows)]
    if not found:
        lines += ["", found.reason]
    return "\n".join(lines)

"""`tenon train SCRIPT --nproc 2`: a user's own training script or function on several processes, seen through.

What the processes print on stdout goes to stdout, to stderr with `--json`; findings are said as they are made. The
exit code is 1 when the run did not end well. Beats, stacks and last words lie in a folder of their own under the
system's temporary one, which is deleted when all went well at once.

A script that states its step in the four functions of `tenon fit` is asked first whether it fits, the GPU that is here
or the one that is named: what is not sure to fit is refused with its plan and not begun. What a run of one process then
reserved is kept in the store of the script's folder, and says how far to trust the next prediction.

A project's own trainer whose file states its step is asked the same way. It trains in one process: what is meant for
several is refused in words, and so is what a built-in trainer cannot be asked.
"""

from __future__ import annotations

import inspect
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenon.cli import fit
from tenon.cli.output import Output
from tenon.errors import InputError, UsageError, sentence

if TYPE_CHECKING:
    from tenon.finding import Finding
    from tenon.flow.work import Launch
    from tenon.training.memory import StepFit
    from tenon.training.target import Target
    from tenon.training.watchdog import Ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Several:
    """What the flags said: how many processes, how patient, where."""

    nproc: int = 1
    restarts: int = 3
    silence_s: float = 600.0
    engine: str = ""
    gpu: str = ""
    batch: int = 0


def is_target(text: str) -> bool:
    """Tell a script or function from a project's folder."""
    return not Path(text).is_dir() and (text.endswith(".py") or ":" in text)


def seen_through(text: str, given: tuple[str, ...], several: Several, output: Output) -> bool:
    """Run a script or function on several processes when its step fits, tell how it ended, and say whether well."""
    from tenon import config
    from tenon.training.target import Target, noted

    target = Target.of(text, given)
    settings = config.load(Path.cwd(), os.environ)
    found = _fitting(target.place, Path(target.place).parent, several, output)
    if found is not None and not found:
        _refused(found, output)
        return False
    folder = Path(tempfile.mkdtemp(prefix="tenon-launch-"))

    def tell(finding: Finding) -> None:
        output.findings([finding.to_dict()])

    ended = None
    with _stdout(to_stderr=output.json):
        try:
            ended = _run(target, target.command if found is None else target.noting, settings, several, folder, tell)
            if found is not None and several.nproc == 1:
                measured = noted(folder / f"attempt-{ended.attempts - 1}")
                _learn(found, measured, bool(ended), found.question.path.parent)
        finally:
            if ended is not None and ended and ended.attempts == 1:
                shutil.rmtree(folder, ignore_errors=True)
    times = "once" if ended.attempts == 1 else f"{ended.attempts} times"
    how = "ended well" if ended else f"failed with code {ended.code}; see {folder}"
    processes = f"{several.nproc} process{'es' if several.nproc > 1 else ''}"
    output.emit(ended.to_dict(), f"{processes}, begun {times}, {how}")
    return bool(ended)


# ── does it fit ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _fitting(place: str, home: Path, several: Several, output: Output) -> StepFit | None:
    """Judge the step that a file states, for the GPU that is named or here; None where there is nothing to ask.

    `home` is the folder whose store remembers what was reserved there.
    """
    from tenon.training import memory

    file = Path(place)
    usual = memory.stated(file) if place.endswith(".py") else None
    if usual is None:
        if several.gpu or several.batch:
            functions = "a script that states its step in the functions model, optimizer, batch and loss"
            raise UsageError(sentence(functions, f"'{place}'", at="--gpu, --batch", hint="see docs/fit.md"))
        return None
    device = memory.find(several.gpu) if several.gpu else memory.seen()
    if device is None:
        return None
    batch = several.batch or usual
    if not batch:
        if several.gpu:
            hint = "add --batch, the examples of one step, or a default: def batch(size=64)"
            raise UsageError(sentence("a batch to ask about", "none", at=str(file), hint=hint))
        output.say(f"· not asked whether a step fits {device.name}: no --batch, and batch(size) has no default")
        return None
    with fit.remembering(home) as (store, limits):
        question = memory.Question(path=file, device=device, batch=batch, limits=limits)
        try:
            found, way = memory.admitted(question, several.nproc, store=store)
        except InputError as error:
            if several.gpu:
                raise
            # Nobody asked for it: what only a GPU can run (a kernel of one's own) must not keep a run from its GPU.
            output.say(f"· not known whether a step fits {device.name}: {error}")
            return None
    if way:
        output.say(
            f"! {found.verdict} on each of {several.nproc} GPUs, unless the script shards it: {way} fits",
            colour="yellow",
        )
        return None
    if found:
        output.say(f"· fits: {found.reason}")
    return found


def _refused(found: StepFit, output: Output) -> None:
    """Tell of a step that is not sure to fit, and of what would."""
    refused = {"code": 1, "attempts": 0, "findings": [one.to_dict() for one in found.findings]}
    output.emit({**refused, "fit": found.to_dict()}, fit.told(found))


def _learn(found: StepFit, measured: int, well: bool, folder: Path) -> None:
    """Remember what a run reserved; of one that failed only that it was more than was predicted."""
    from tenon import config
    from tenon.store import Store
    from tenon.training import memory

    if not measured or not (well or measured > found.step.peak.reserved_bytes):
        return
    settings = config.load(folder, os.environ)
    with Store.open(folder, config=settings.store, limits=settings.limits.store) as store:
        memory.remember(found, store, measured)


# ── a project's own trainer ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Which:
    """The project that is asked about: its folder, one of its models ("" for all), and flags for several processes."""

    folder: Path
    model: str
    spread: Sequence[str]


def fitting_project(which: Which, given: Sequence[str], several: Several, output: Output) -> list[StepFit]:
    """Judge the steps that a project's own trainers state, when asked; what is not sure to fit comes last, and is told.

    UsageError for flags that mean nothing to a trainer.
    """
    if given:
        hint = "a project's trainer is given its data and its run: write what it needs into project.py"
        raise UsageError(sentence("no words for a project", f"'{' '.join(given)}'", at=str(which.folder), hint=hint))
    about_step = [flag for flag, asked in (("--gpu", several.gpu), ("--batch", several.batch)) if asked]
    if not which.spread and not about_step:
        return []
    from tenon import config
    from tenon.flow.work import declared
    from tenon.training.study import takes_ranks

    engine = several.engine or config.load(which.folder, os.environ).engine.kind
    found: list[StepFit] = []
    for model in declared(which.folder, which.model):
        trainer = model.train
        if isinstance(trainer, str):
            got = f"the built-in '{trainer}' of model '{model.name}', which asks for its memory and its cores itself"
            flags = ", ".join((*which.spread, *about_step))
            raise UsageError(sentence("a PyTorch trainer of your own", got, at=flags, hint=f"leave out {flags}"))
        if several.nproc > 1 and not takes_ranks(trainer):
            got = f"the function '{model.trainer_name}' of model '{model.name}', which trains in one process"
            hint = "give it the parameter: def train(data, run, ranks); see docs/distributed.md"
            raise UsageError(sentence("a trainer that takes ranks", got, at="--nproc", hint=hint))
        if which.spread and engine == "ray":
            hint = "say --engine local, or write its loop as a script: tenon train train.py --engine ray"
            raise UsageError(sentence("a project's trainer on this machine", "engine 'ray'", at="--engine", hint=hint))
        one = _fitting(inspect.getsourcefile(trainer) or "", which.folder, several, output)
        if one is not None:
            found.append(one)
            if not one:
                _refused(one, output)
                break
    return found


def learn_project(folder: Path, found: Sequence[StepFit]) -> None:
    """Remember what the training of one model in this process reserved on the GPU, where it was asked about."""
    if len(found) == 1 and "torch" in sys.modules:
        from tenon.training.memory import reserved

        _learn(found[0], reserved() or 0, True, folder)


def launching(several: Several, output: Output) -> Launch:
    """Return what runs a project's own trainer on processes of this machine, and tells what becomes of them."""

    def tell(finding: Finding) -> None:
        output.end()
        output.say(f"! {finding.said}", colour="yellow")  # with the run's other findings it is told in full at the end

    def launched(command: Sequence[str], folder: Path) -> Ended:
        with _stdout(to_stderr=True):
            return _here(command, several, folder, tell)

    return launched


# ── running ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _run(target: Target, command: list[str], settings: Any, several: Several, folder: Path, tell: Any) -> Ended:
    if (several.engine or settings.engine.kind) == "ray":
        from tenon.training import cluster

        return cluster.run(
            target,
            nproc=several.nproc,
            folder=folder,
            silence_s=several.silence_s,
            restarts=several.restarts,
            address=settings.engine.ray_address,
            tell=tell,
        )
    return _here(command, several, folder, tell)


def _here(command: Sequence[str], several: Several, folder: Path, tell: Callable[[Finding], None]) -> Ended:
    from tenon.training.launch import launch

    return launch(
        command,
        nproc=several.nproc,
        folder=folder,
        silence_s=several.silence_s,
        restarts=several.restarts,
        tell=tell,
    )


@contextmanager
def _stdout(*, to_stderr: bool) -> Iterator[None]:
    """Lend the processes our stderr for their stdout, so that with --json nothing but JSON is on ours."""
    if not to_stderr:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)

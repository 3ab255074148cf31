"""A project's own trainer in several processes of this machine, whose guard takes each step on all of them as one.

`train` has the processes begun, by whatever `work.launch` begins them with. The first of them is the run: it trains the
baselines and then, with the others, the model, which it measures, compiles and records as one process alone does. The
others wait until it comes to the trainer, read the same rows from the store, train beside it, and end. When one of them
dies all are begun again: baselines are trained anew, and the trainer goes on from its checkpoint, if it keeps any.

The others wait for a file and not in a collective, which would give up after some time: baselines may take hours.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tenon import training
from tenon.errors import BudgetError, TenonError, TrainingError, sentence
from tenon.finding import Finding
from tenon.flow import learn
from tenon.flow.work import Stage, Work
from tenon.project import Model
from tenon.store import Store
from tenon.training.watchdog import FOLDER

BEGUN = "begun"  # the file that says that the first process has come to the trainer
POLL_S = 0.05


def train(work: Work, declared: Model, matrix: Stage, id: str) -> dict[str, Any]:
    """Train in the processes that `work.launch` begins; returns the run's record, as `learn.here` does.

    What became of the processes is found there, too. Raises what the run was ended by when they fail for good.
    """
    assert work.launch is not None
    folder = Path(tempfile.mkdtemp(prefix="tenon-launch-"))
    made = folder / "made.json"
    work.progress(0, learn.MODELS, "training")
    words = [str(work.project.root), declared.name, matrix.id, id, str(made)]
    ended = work.launch([sys.executable, "-m", "tenon.flow.spread", *words], folder)
    if not ended:
        raise _failure(work.store.get("run", id) or {}, f"{ended.findings[-1].said} See {folder}")
    body = json.loads(made.read_text("utf-8"))
    shutil.rmtree(folder, ignore_errors=True)
    return {**body, "findings": [*body["findings"], *(_survived(one, id).to_dict() for one in ended.findings)]}


def _survived(found: Finding, id: str) -> Finding:
    """Return what befell a process as a finding of the run: it was begun again, so it speaks against no model."""
    return replace(found, severity="warning", place=found.place.replace("run/", f"{id}/", 1))


def _failure(run: Mapping[str, Any], said: str) -> TenonError:
    """Return what the run says it was ended by, or that its processes failed."""
    error = run.get("error") or {}
    kind = BudgetError if error.get("type") == "BudgetError" else TrainingError
    return kind(error.get("message") or sentence("a training that comes to its end", said))


# ── one of the processes ─────────────────────────────────────────────────────────────────────────────────────────────


def one_of_several(words: Sequence[str], environ: Mapping[str, str]) -> None:
    """Be the run, or train beside it, as `environ` says; `words` are those of `train`."""
    folder, name, features, id, made = words
    first, size = environ["RANK"] == "0", int(environ["WORLD_SIZE"])
    work = Work.open(Path(folder), environ, read_only=not first)
    try:
        declared, body = work.model(name), work.store.get("features", features)
        assert body is not None, features
        matrix = Stage(name="features", subject=name, id=features, done=False, seconds=0.0, usd=0.0, body=body)
        if first:
            record = learn.here(work, declared, matrix, id, join=lambda: _joined(environ), processes=size)
            Path(made).write_text(json.dumps(record), "utf-8")
        else:
            while not Path(environ[FOLDER], BEGUN).exists():  # when the first ends before, the launcher ends this one
                time.sleep(POLL_S)
            _beside(work, declared, learn.rows_of(work, declared, matrix), id, environ)
    finally:
        work.store.close()


def _beside(work: Work, declared: Model, data: training.Data, id: str, environ: Mapping[str, str]) -> None:
    """Train with the others; what this process logs is kept nowhere, and the first decides for all."""
    assert not isinstance(declared.train, str)
    with (
        tempfile.TemporaryDirectory(prefix="tenon-rank-") as apart,
        Store.open(Path(apart)) as store,
        training.Run.start(store, id, declared.name) as run,
    ):
        run.guard = training.Guard(prices=work.config.prices)
        training.accompany(data, declared.train, run, lambda: _joined(environ))


@contextmanager
def _joined(environ: Mapping[str, str]) -> Iterator[training.Ranks]:
    """Join the other processes; afterwards nobody waits for steps of this one."""
    Path(environ[FOLDER], BEGUN).touch()
    with training.Ranks.of(environ) as ranks:
        yield ranks
    if ranks.beat is not None:
        ranks.beat.close()
        ranks.beat.path.unlink(missing_ok=True)


if __name__ == "__main__":
    try:
        one_of_several(sys.argv[1:], os.environ)
    except TenonError as error:
        sys.exit(f"{error}")

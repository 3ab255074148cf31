"""What every stage works with, and the memory of stages: a stage is done once for what it is made of.

A stage is named by the hash of everything that decides its result: its inputs' names, the declarations it reads, the
version of its own code. `once` looks that name up; when the stage is there with all its blobs, it is not done again.
Otherwise the stage runs, its blobs are in the store before its record is, and record, stage and cost are committed
together: killed at any instant, the store holds the stage or it does not. A process that dies leaves no lock behind;
two that do the same stage at once write the same bytes under the same name.

A stage that is found is marked as used, at most once an hour: what was used within a day is never tidied away (`tidy`).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tenon import config as configuration
from tenon.config import Config
from tenon.errors import MissingError, sentence
from tenon.ledger import Meter, total
from tenon.project import Model, Project, load
from tenon.store import Store

if TYPE_CHECKING:
    from tenon.training.watchdog import Ended

USED_S = 3600.0  # a stage is marked as used again after this long

Progress = Callable[[float, float, str], None]
Launch = Callable[[Sequence[str], Path], "Ended"]  # runs a command in several processes, which meet in a folder


def quiet(_done: float, _total: float, _said: str) -> None:
    """Show no progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A project with the store, configuration, clock and progress that its stages work with.

    With `launch` a trainer of one's own trains in the processes that it begins.
    """

    project: Project
    store: Store
    config: Config
    progress: Progress = quiet
    clock: Callable[[], float] = time.time
    again: bool = False
    launch: Launch | None = None

    @staticmethod
    def open(
        folder: Path,
        environ: Mapping[str, str],
        *,
        progress: Progress = quiet,
        again: bool = False,
        read_only: bool = False,
        launch: Launch | None = None,
    ) -> Work:
        """Load the project and open its store; the caller closes `work.store`."""
        project = load(folder)
        config = configuration.load(folder, environ)
        store = Store.open(folder, config.store, config.limits.store, read_only=read_only)
        return Work(project=project, store=store, config=config, progress=progress, again=again, launch=launch)

    def model(self, name: str = "") -> Model:
        """Return the model of that name, or the only one."""
        return self.project.model(name)


def declared(folder: Path, model: str = "") -> Sequence[Model]:
    """Return the models that a folder's project declares, or the one of that name; no store is opened."""
    project = load(folder)
    return [project.model(model)] if model else project.models


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage as it went: what it is named, whether it was done now or found, and what it took."""

    name: str
    subject: str
    id: str
    done: bool
    seconds: float
    usd: float
    body: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the stage as plain data, without its record."""
        return {
            "name": self.name,
            "subject": self.subject,
            "id": self.id,
            "done": self.done,
            "seconds": round(self.seconds, 3),
            "usd": self.usd,
        }


def digest(made_of: Any) -> str:
    """Name a thing by what made it: half a SHA-256 of its plain data in a fixed order (a whole one names a blob)."""
    return hashlib.sha256(msgspec.json.encode(made_of, order="sorted")).hexdigest()[:32]


def once(
    work: Work,
    name: str,
    subject: str,
    made_of: Mapping[str, Any],
    make: Callable[[str], Mapping[str, Any]],
    *,
    settle: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
) -> Stage:
    """Return the stage named by `made_of`: found when it was done before, else made by `make(id)` and committed.

    `make` puts its blobs into the store and returns the record's body; it must not write records of its own. `name` is
    the record's kind. `settle` completes the body inside the transaction that commits it. With `work.again` the stage
    is made anew.
    """
    key = digest({"stage": name, "subject": subject, **made_of})
    short = key[:12]
    if not work.again and (found := _found(work, name, key)):
        stage, body = found
        return Stage(
            name=name, subject=subject, id=short, done=False, seconds=stage["seconds"], usd=stage["usd"], body=body
        )
    started = time.perf_counter()
    with Meter() as meter:
        body = {**make(short), "id": short, "at": work.clock()}
    seconds = time.perf_counter() - started
    entries = meter.usage().entries(f"{name}/{subject}", work.config.prices, at=work.clock(), note=short)
    cost = total(entries)
    body = {"seconds": seconds, **body, "usd": cost}
    with work.store.atomic():
        body = dict(settle(body))
        work.store.put(name, short, body)
        record = {
            "id": key,
            "name": name,
            "subject": subject,
            "outputs": {name: short},
            "blobs": sorted(blobs_of(body)),
        }
        work.store.put("stage", key, {**record, "seconds": seconds, "usd": cost, "at": work.clock()})
        work.store.charge(*entries)
    return Stage(name=name, subject=subject, id=short, done=True, seconds=seconds, usd=cost, body=body)


def _found(work: Work, name: str, key: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return the record of a stage and of what it made, when both are there with all their blobs."""
    stage, body = work.store.get("stage", key), work.store.get(name, key[:12])
    now = work.clock()
    if stage is not None and body is not None and now - stage.get("used", stage["at"]) > USED_S:
        # Looked up again where nobody else writes: it may be tidied away at this moment.
        with work.store.atomic():
            stage, body = work.store.get("stage", key), work.store.get(name, key[:12])
            if stage is not None and body is not None:
                work.store.put("stage", key, {**stage, "used": now})
    if stage is None or body is None or work.store.blobs.absent(stage["blobs"]):
        return None
    return stage, body


def blobs_of(body: Any) -> set[str]:
    """Return every blob digest a record refers to, however deep."""
    if isinstance(body, str):
        return {body} if len(body) == 64 and all(letter in "0123456789abcdef" for letter in body) else set()
    if isinstance(body, Mapping):
        return set().union(*(blobs_of(value) for value in body.values()))
    if isinstance(body, (list, tuple)):
        return set().union(*(blobs_of(value) for value in body))
    return set()


def file_digest(work: Work, path: Path) -> str:
    """Name a file by its bytes (160 bits of SHA-256); remembered by path, size and time, so a second look is free."""
    stat = path.stat()
    name = digest([str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino])
    known = work.store.get("file", name)
    if known is not None:
        return str(known["content"])
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()[:40]  # a whole one would name a blob
    after = path.stat()
    if (after.st_size, after.st_mtime_ns) == (stat.st_size, stat.st_mtime_ns):
        work.store.put("file", name, {"path": str(path), "content": content, "bytes": stat.st_size})
    return content


def newest(work: Work, kind: str, what: str, **equals: Any) -> dict[str, Any]:
    """Return the newest record of a kind, or say in words that there is none yet."""
    found = work.store.find(kind, limit=1, **equals)
    if not found:
        raise MissingError(sentence(what, "none yet", at=str(work.store.root), hint="run `tenon run` first"))
    return found[0]

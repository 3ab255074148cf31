"""Checkpoints: whole or not there, never overwritten by a worse one, and readable in fifteen years.

A checkpoint is a folder, `step-0000001200`, with `tensors.safetensors` (every tensor, in an open format that holds no
code) and `state.json` (everything else, and the size and SHA-256 of the tensors). It is written beside, in a folder
that begins with `.`, each file is synced, and the folder is renamed into place: a process killed at any instant leaves
the checkpoint whole or leaves what was there before. What a killed writer left half done is cleared by the next one.

What is kept is a policy (`Keep`): the newest `last`, the `best` by loss, and every `every`-th step for good. A
checkpoint that the guard suspects (a loss that is jumping) is written under the name `suspect-`, is never loaded
unasked, and takes the place of no good one. When the disk is full the oldest that the policy could spare go first, then
StoreError is raised in words, and what was there stays.

`load` returns the newest good one. One that is damaged is passed over for the one before, with a finding that says what
is wrong with it, and is set aside under the name `damaged-`; those of later steps than a run saves, because it went
back, under `later-`. One folder has one writer: a lock, held by the process, refuses a second; processes that it forks
let go of the lock, so that it ends with the run. Of several ranks the first is the writer (`shards`). Rejected: one
file with pickled state (runs code when opened), and overwriting `latest`.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import operator
import os
import shutil
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tenon.errors import CorruptError, InputError, MissingError, StoreError, UsageError, missing_extra, sentence
from tenon.finding import Finding

TENSORS = "tensors.safetensors"
STATE = "state.json"
VERSION = 2  # what is read; a checkpoint of one process is written as 1, of several ranks as 2
SPARE_BYTES = 1024 * 1024  # beyond the tensors, for the JSON and the file system


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Which checkpoints stay: the newest `last`, the `best` by loss, and one every `every` steps for good (0: none)."""

    last: int = 2
    best: int = 1
    every: int = 0

    def __post_init__(self) -> None:
        if self.last < 1 or self.best < 0 or self.every < 0:
            got = f"last={self.last}, best={self.best}, every={self.every}"
            raise UsageError(sentence("last of 1 or more, best and every of 0 or more", got, at="Keep"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A checkpoint as read and verified."""

    step: int
    tensors: Mapping[str, Any]
    state: Mapping[str, Any]
    loss: float | None
    path: Path
    ranks: Sequence[Mapping[str, Any]] = ()  # of several ranks: what each wrote (`shards`)


@dataclass(slots=True, weakref_slot=True)
class Checkpoints:
    """The checkpoints of one run in one folder; see the module's docstring. `findings` holds what was told."""

    folder: Path
    keep: Keep = field(default_factory=Keep)
    clock: Callable[[], float] = time.time
    findings: list[Finding] = field(default_factory=list)
    _lock: int | None = None

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def save(
        self,
        step: int,
        tensors: Mapping[str, Any],
        state: Mapping[str, Any],
        *,
        loss: float | None = None,
        suspect: bool = False,
    ) -> Path:
        """Write a checkpoint durably, then drop what the policy no longer keeps; returns its folder.

        `tensors` are PyTorch tensors and `state` is plain JSON data. A loss that is no number makes it suspect.
        StoreError when the disk is full or refuses, with everything that was kept before still there.
        """
        if loss is not None and not math.isfinite(loss):
            loss, suspect = None, True
        with self.beside(size_bytes(tensors)) as beside:
            written = self.write(beside / TENSORS, tensors)
            body = {"version": 1, "step": step, "loss": loss, "state": state, "tensors": written}
            return self.seal(beside, body, suspect=suspect)

    def write(self, file: Path, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Write tensors into a file, durably; returns its size, digest and count."""
        dense = {name: _alone(one.detach()) for name, one in tensors.items()}
        safetensors = _safetensors()
        try:
            safetensors.torch.save_file(dense, str(file))
            _sync(file)
        except (OSError, safetensors.SafetensorError) as error:  # safetensors wraps what the system says
            raise self._refused(error, file) from error
        return {"bytes": file.stat().st_size, "sha256": digest(file), "count": len(tensors)}

    def seal(self, beside: Path, body: dict[str, Any], *, suspect: bool) -> Path:
        """Write the state of what was written beside, give it its name, and drop what the policy no longer keeps."""
        step = _whole(body["step"])
        body = {**body, "step": step}
        place = self.folder / f"{'suspect' if suspect else 'step'}-{step:010}"
        if place.exists() and suspect:
            shutil.rmtree(place)
        text = json.dumps({**body, "at": self.clock()}, allow_nan=False)
        sealed = f'{{"sha256": "{hashlib.sha256(text.encode()).hexdigest()}", "body": {text}}}'
        (beside / STATE).write_text(sealed, "utf-8")
        _sync(beside / STATE)
        _sync(beside)
        if not suspect:
            self._leave_behind(step)
        if place.exists():  # the same step again, after a resume: the new one takes its place only when whole
            old = self.folder / f".old-{place.name}"
            place.rename(old)
            beside.rename(place)
            shutil.rmtree(old)
        else:
            beside.rename(place)
        _sync(self.folder)
        self._prune()
        return place

    @contextmanager
    def beside(self, needed: int) -> Iterator[Path]:
        """Give a folder to write `needed` bytes in; whatever happens, nothing half done stays under its real name."""
        if not self.folder.is_dir():
            self.close()  # somebody deleted it, and the lock with it: the run goes on and keeps what comes now
        self.claim()
        beside = self.folder / f".writing-{os.getpid()}"
        try:
            self._make_room(needed + SPARE_BYTES)
            beside.mkdir(exist_ok=True)
            yield beside
        except OSError as error:
            raise self._refused(error, beside) from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def _refused(self, error: Exception, place: Path) -> StoreError:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        newest = [f"step {step}" for step in self.steps()[-1:]] or ["none"]
        hint = f"the newest whole checkpoint is {newest[0]}; free space or name another folder"
        got = "a full disk" if full else f"'{error}'"
        return StoreError(sentence("room for a checkpoint", got, at=str(place), hint=hint))

    def _make_room(self, needed: int) -> None:
        """Let go of what the policy could spare, oldest first, while the disk has less than `needed` left."""
        spare = sorted(self.folder.glob("later-*"))
        spare += [self.path(step) for step in self.steps() if step not in self._newest(1) and step not in self._best()]
        while shutil.disk_usage(self.folder).free < needed and spare:
            self._drop(spare.pop(0))
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise self._refused(OSError(errno.ENOSPC, f"{free:,} bytes free, {needed:,} needed"), self.folder)

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def steps(self) -> list[int]:
        """Return the steps of the good checkpoints that are there, oldest first."""
        return sorted(int(one.name[5:]) for one in self.folder.glob("step-*") if one.name[5:].isdecimal())

    def path(self, step: int) -> Path:
        """Return the folder of the good checkpoint of a step."""
        return self.folder / f"step-{step:010}"

    def load(self, step: int | None = None, *, device: str = "cpu") -> Loaded | None:
        """Read the newest good checkpoint, or the one of `step`; None when there is none at all.

        Every byte is verified. Without `step`, a damaged one is set aside with a finding and the one before is read;
        CorruptError when all are damaged. With `step`, MissingError or CorruptError.
        """
        if step is not None:
            if not self.path(step).is_dir():
                known = ", ".join(map(str, self.steps())) or "none"
                raise MissingError(sentence(f"the checkpoint of step {step}", "none", hint=f"there are: {known}"))
            return self._read(self.path(step), device)
        steps = self.steps()
        for one in reversed(steps):
            try:
                return self._read(self.path(one), device)
            except CorruptError as error:
                self.set_aside(one, str(error))
        if steps:
            raise self.none_left(len(steps))
        return None

    def none_left(self, count: int) -> CorruptError:
        """Return the error that says that all checkpoints were damaged."""
        hint = "look at the disk; the folders named damaged- hold what is left"
        return CorruptError(sentence("one whole checkpoint", f"{count} damaged", at=str(self.folder), hint=hint))

    def _read(self, place: Path, device: str) -> Loaded:
        body = self.body(place)
        verify(place / TENSORS, body["tensors"])
        for one in body.get("ranks", ())[1:]:
            verify(place / one["file"], one)
        # What several ranks wrote is read part by part, by whoever needs it.
        tensors = {} if "ranks" in body else _safetensors().torch.load_file(str(place / TENSORS), device=device)
        ranks = body.get("ranks", ())
        return Loaded(
            step=body["step"], tensors=tensors, state=body["state"], loss=body["loss"], path=place, ranks=ranks
        )

    def body(self, place: Path) -> dict[str, Any]:
        """Read the state of a checkpoint; CorruptError when it is not what was written, InputError for a later kind."""
        try:
            sealed = json.loads((place / STATE).read_text("utf-8"))
            body = sealed["body"]
            whole = hashlib.sha256(json.dumps(body, allow_nan=False).encode()).hexdigest() == sealed["sha256"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptError(sentence("the state of a checkpoint", repr(error), at=str(place / STATE))) from error
        if not whole:
            raise CorruptError(sentence("the state that was written", "another", at=str(place / STATE)))
        if body["version"] > VERSION:
            hint = "open it with the release of tenon that wrote it"
            raise InputError(
                sentence(f"a checkpoint of version {VERSION}", f"{body['version']}", at=str(place), hint=hint)
            )
        return dict(body)

    def set_aside(self, step: int, said: str) -> None:
        """Rename a damaged checkpoint so that it is not tried again, and tell it."""
        try:
            aside = self._aside(step, "damaged")
        except OSError:
            aside = self.path(step)  # a folder that cannot be written can still be read
        finding = Finding(
            code="training/checkpoint-damaged",
            severity="warning",
            place=str(aside),
            said=f"The checkpoint of step {step} is damaged and was passed over: {said}.",
            hint="The run goes on from the one before. Look at the disk, and at what else writes into this folder.",
            numbers={"step": float(step)},
        )
        self.findings.append(finding)

    def _leave_behind(self, step: int) -> None:
        """Rename the checkpoints of later steps: the run went back before them, and must not go on from them."""
        later = [one for one in self.steps() if one > step]
        for one in later:
            self._aside(one, "later")
        if later:
            steps = ", ".join(map(str, later))
            finding = Finding(
                code="training/resume-differs",
                severity="info",
                place=f"run/{step}",
                said=f"The run went back to step {step}; the checkpoints of later steps ({steps}) are set aside.",
                hint="They are kept under names that begin with later-, until the disk is full; delete or rename them.",
                numbers={"step": float(step), "later": float(len(later))},
            )
            self.findings.append(finding)

    def _aside(self, step: int, word: str) -> Path:
        """Give the checkpoint of a step a name under which it is not found, instead of any that has it."""
        aside = self.folder / f"{word}-{step:010}"
        shutil.rmtree(aside, ignore_errors=True)
        return self.path(step).rename(aside)

    # ── what is kept ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _newest(self, count: int) -> list[int]:
        return self.steps()[-count:]

    def _best(self) -> list[int]:
        """Return the steps of the best checkpoints by loss, best first; those without a loss are no candidates."""
        found = []
        for step in self.steps():
            try:
                loss = json.loads((self.path(step) / STATE).read_text("utf-8"))["body"]["loss"]
            except (OSError, ValueError, KeyError):
                continue
            if loss is not None:
                found.append((loss, step))
        return [step for _, step in sorted(found)[: self.keep.best]]

    def _prune(self) -> None:
        kept = {*self._newest(self.keep.last), *self._best()}
        for step in self.steps():
            if step not in kept and not (self.keep.every and step % self.keep.every == 0):
                self._drop(self.path(step))
        for old in sorted(self.folder.glob("suspect-*"))[:-1]:
            self._drop(old)

    def _drop(self, place: Path) -> None:
        """Take a checkpoint away so that no half of it is ever found under its name."""
        going = self.folder / f".old-{place.name}"
        shutil.rmtree(going, ignore_errors=True)
        place.rename(going)
        shutil.rmtree(going, ignore_errors=True)

    def claim(self) -> None:
        """Take the folder's lock for this process, once, and clear what a killed writer left behind."""
        if self._lock is not None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreError(sentence("a folder for checkpoints", f"'{error}'", at=str(self.folder))) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            hint = "give each run a folder of its own, or end or close() what holds it"
            raise StoreError(sentence("one writer", "another one", at=str(self.folder), hint=hint)) from error
        self._lock = lock
        # A forked loader worker would go on holding the lock of a run that was killed.
        mine = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _let_go(mine()))
        for old in self.folder.glob(".old-step-*"):  # killed between the two renames of a replaced step
            if not (self.folder / old.name[5:]).exists():
                old.rename(self.folder / old.name[5:])
        for left in (*self.folder.glob(".writing-*"), *self.folder.glob(".old-*")):
            shutil.rmtree(left, ignore_errors=True)

    def close(self) -> None:
        """Let another process write."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _whole(step: Any) -> int:
    """Return a step as the number that a checkpoint is found by; UsageError for what is none."""
    try:
        whole = operator.index(step)
    except TypeError:
        whole = -1
    if whole < 0:
        raise UsageError(sentence("a step that is a whole number of 0 or more", repr(step), at="a checkpoint"))
    return whole


def _let_go(kept: Checkpoints | None) -> None:
    if kept is not None:
        kept.close()


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise missing_extra("safetensors", "torch", "write checkpoints") from error
    return safetensors


def _alone(tensor: Any) -> Any:
    """Return a tensor that shares its memory with no other; safetensors writes no views into larger ones."""
    whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone(memory_format=_torch().contiguous_format)


def _torch() -> Any:
    import torch

    return torch


def size_bytes(tensors: Mapping[str, Any]) -> int:
    """Return how many bytes tensors take."""
    return sum(one.numel() * one.element_size() for one in tensors.values())


def verify(file: Path, written: Mapping[str, Any]) -> None:
    """Raise CorruptError unless a file of tensors is what was written, byte for byte."""
    size = file.stat().st_size if file.is_file() else 0
    if size != written["bytes"]:
        raise CorruptError(sentence(f"{written['bytes']:,} bytes of tensors", f"{size:,}", at=str(file)))
    if digest(file) != written["sha256"]:
        raise CorruptError(sentence("the tensors that were written", "other bytes", at=str(file)))


def digest(file: Path) -> str:
    """Return the SHA-256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""The way through ingest: find the inputs, learn a plan, read every range, vote, and join what was read. `ingest(job)`.

Everything in the making lies in one folder beside the result (`.NAME.ingest`): the plan, and for each range its part
and its account. Killed and started again, ingest finds the same plan and reads only the ranges that have no account
yet; the result is the same to the byte, because parts depend on nothing but the plan and the input. The folder goes
when the result is in place. One ingest at a time may write a result; a second is told so.

An input that changes while it is read (length or time of change) fails the job, with the finished parts kept for
nothing: they are keyed by what the input was. A full disk is told in words; what was finished stays.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from tenon.errors import InputError, StoreError, sentence
from tenon.ingest import columnar, finish, unit
from tenon.ingest import plan as planning
from tenon.ingest.charset import Charset, detect
from tenon.ingest.finish import Range
from tenon.ingest.job import Ingested, Job, Progress, silent
from tenon.ingest.joined import Joined
from tenon.ingest.plan import FilePlan, Plan
from tenon.ingest.stream import STDIN, Input, View, blocks, files_of, inputs_of, refuse, segment, transcoded
from tenon.ingest.typed import Facts

VERSION = 1
PASSES = 5  # the vote only widens; more passes would mean that it does not
TIMES = 20  # a piece in work takes up to about so many times its size
AT_ONCE = 3  # pieces that are in work at once within the memory allowed, on any machine
AHEAD = 2  # ranges given out to each thread or worker before the first of them is taken back
OS_ERROR = re.compile(r"\(os error (\d+)\)")
CUT = "the compression ends early"
FUNCTION = "tenon.ingest.unit:read"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """An input with its head decoded: what the plan is learnt from."""

    input: Input
    charset: Charset
    head: bytes
    whole: bool
    cut: str = ""

    @property
    def plain(self) -> bool:
        """Whether ranges can be read from the file as it lies."""
        return not self.input.codec and not self.charset.wide


def ingest(job: Job, progress: Progress = silent) -> Ingested:
    """Read every input of the job into typed Parquet under `job.out`; rows that cannot be read go to quarantine.

    Writes `NAME.parquet` (or numbered files when it is large), `NAME.quarantine.parquet`, `NAME.repairs.parquet` and
    `NAME.summary.json`. Raises InputError when an input is no rows of text, a declared column is missing, or an input
    changes meanwhile; StoreError when the disk is full. Memory does not grow with the input.
    """
    begun = time.perf_counter()
    paths = files_of(tuple(job.paths))
    inputs = inputs_of(paths)
    name = job.name or ("stdin" if paths[0] == STDIN else paths[0].name.split(".")[0])
    with _disk(job.out):
        job.out.mkdir(parents=True, exist_ok=True)
        with _only(job.out / f".{name}.ingest") as work:
            sources = [_open(one, work, number, job) for number, one in enumerate(inputs)]
            plan = _plan(sources, job, work)
            key = _key(sources, plan, job)
            _keep(work, key)
            for _ in range(PASSES):
                joined = Joined(work, len(plan.outputs))
                ranges, facts = _pass(plan, sources, joined, job, progress)
                voted = planning.vote(plan, [one.told for one in ranges], facts)
                if voted == plan and not any(one.told["bailed"] for one in ranges):
                    break
                plan = voted
            _unchanged(inputs)
            about = [_about(one, work / f"spool-{number}.cut") for number, one in enumerate(sources)]
            done = finish.finish(job, name, plan, ranges, facts, about, joined)
        shutil.rmtree(work, ignore_errors=True)
    return replace(done, seconds=time.perf_counter() - begun)


# ── inputs ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _open(source: Input, work: Path, number: int, job: Job) -> _Source:
    """Read the head of an input, decompressed and in UTF-8 if it was wide."""
    if source.codec == "stdin":
        source = _kept(source, work / f"stdin-{number}", job)
    if source.codec == "parquet":
        return _Source(input=source, charset=Charset(), head=b"", whole=True)
    raw, cut = bytearray(), ""
    try:
        for block in blocks(source, job.limits):
            raw += block
            if len(raw) > job.limits.sample_bytes:
                break
    except EOFError as error:
        cut = str(error) or CUT
    head = bytes(raw)
    if source.codec:
        refuse(head[:512], source.label)
    charset = detect(head[: job.limits.sample_bytes])
    whole = len(head) <= job.limits.sample_bytes
    if charset.wide:
        head = b"".join(transcoded(iter((head,)), charset.name, charset.mark))
    return _Source(input=source, charset=charset, head=head[: job.limits.sample_bytes], whole=whole, cut=cut)


def _kept(source: Input, path: Path, job: Job) -> Input:
    """Write standard input to a file, which can be read from the middle."""
    size = 0
    with path.open("wb") as out:
        for block in blocks(source, job.limits):
            size += out.write(block)
    (found,) = inputs_of([path])
    return replace(found, label=source.label, size=size)


def _about(source: _Source, note: Path) -> dict[str, Any]:
    """Tell of an input; the note says that its compression was cut further on than its head."""
    cut = source.cut or (note.read_text("utf-8") if note.exists() else "")
    return {"label": source.input.label, "codec": source.input.codec, "cut": cut, "odd": source.charset.odd}


def _unchanged(inputs: Sequence[Input]) -> None:
    """Raise when an input is not what it was at the start."""
    for one in inputs:
        if one.codec == "stdin":
            continue
        try:
            about = one.path.stat()
        except OSError as error:
            raise InputError(sentence("the file until the end", str(error.strerror), at=one.label)) from error
        if (about.st_size, about.st_mtime_ns) != (one.size, one.changed_ns):
            hint = "start again when nothing writes to it"
            raise InputError(
                sentence("a file that rests", "one that changed while it was read", at=one.label, hint=hint)
            )


# ── the plan and its key ─────────────────────────────────────────────────────────────────────────────────────────────


def _plan(sources: Sequence[_Source], job: Job, work: Path) -> Plan:
    files = []
    for source in sources:
        if source.input.codec == "parquet":
            files.append(columnar.plan_of(source.input))
            continue
        view = View(path=source.input.path, size=source.input.size) if source.plain else None
        files.append(planning.learn(source.input.label, source.head, source.whole, view, source.charset, job))
    return planning.settle(files, job)


def _key(sources: Sequence[_Source], plan: Plan, job: Job) -> str:
    """Return the digest of everything the parts depend on."""
    body = [
        VERSION,
        [one.input.key for one in sources],
        plan.to_dict(),
        job.limits.chunk_bytes,
        job.limits.memory_bytes,
    ]
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _keep(work: Path, key: str) -> None:
    """Keep finished parts of the same job, and clear away those of any other."""
    note = work / "key"
    if not note.exists() or note.read_text("ascii") != key:
        for old in work.iterdir():
            if old.is_dir():
                shutil.rmtree(old)
        note.write_text(key, "ascii")


@contextmanager
def _only(work: Path) -> Iterator[Path]:
    """Hold the folder of a result in the making; a second holder is an error."""
    work.mkdir(exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            hint = "wait for it, or give another name"
            raise StoreError(
                sentence("to be the only one writing here", "another ingest", at=str(work), hint=hint)
            ) from error
        try:
            yield work
        finally:
            # What failed before anything was read leaves nothing behind; finished parts stay for the next start.
            if not any(work.glob("parts-*/*.json")):
                shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _disk(out: Path) -> Iterator[None]:
    """Tell failures of the disk in words."""
    try:
        try:
            yield
        except pl.exceptions.PolarsError as error:
            # Polars tells some failures of the disk in its own words, with the system's number in them.
            if (found := OS_ERROR.search(str(error))) is None:
                raise
            raise OSError(int(found[1]), os.strerror(int(found[1]))) from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "make room and start again: finished parts are kept" if full else "check the folder and its permissions"
        got = "a full disk" if full else error.strerror or str(error)
        raise StoreError(sentence("to write the result", got, at=str(out), hint=hint)) from error


# ── reading all ranges ───────────────────────────────────────────────────────────────────────────────────────────────


def _pass(
    plan: Plan, sources: Sequence[_Source], joined: Joined, job: Job, progress: Progress
) -> tuple[list[Range], list[Facts]]:
    """Read every range of every input under one plan, and join their parts; ranges already read are taken as they are.

    What they found out about each output is added up at once: a table of many columns has many ranges.
    """
    work, bailed = joined.work, False
    digest = hashlib.sha256(json.dumps(plan.to_dict(), sort_keys=True).encode()).hexdigest()[:12]
    folder = work / f"parts-{digest}"
    folder.mkdir(exist_ok=True)
    path = folder / "plan.json"
    if not path.exists():
        temporary = folder / "plan.json.new"
        temporary.write_text(json.dumps(plan.to_dict()), "utf-8")
        temporary.replace(path)
    total = sum(one.input.size for one in sources)
    before = rows = 0
    out: list[Range] = []
    facts = [Facts() for _ in plan.outputs]
    missing = planning.words_for_missing(plan)
    for number, source in enumerate(sources):
        file = plan.files[number]
        first_line = _first_line(source, file)
        jobs = _jobs(file, number, source, folder, work, job)
        for job_, told in _run(jobs, job):
            for fact, words, found in zip(facts, missing, told["columns"], strict=True):
                more = Facts.from_dict(found)
                more.words = Counter({word: count for word, count in more.words.items() if word in words})
                fact.add(more)
            known = {name: value for name, value in told.items() if name != "columns"}
            known |= {"file": number, "first_line": first_line}
            one = Range(file=number, out=Path(job_["out"]), told=known, size=job_["size"])
            out.append(one)
            bailed = bailed or told["bailed"]
            if told["rows"] and not bailed:  # else there will be another pass
                joined.add(one.companion(".parquet"))
            share = min(1.0, told["end"] / max(1, source.input.size if source.plain else told["end"]))
            rows += told["rows"]
            job.counted(rows)
            progress(before + share * source.input.size, total, f"reading {Path(source.input.label).name}")
            if told["stop"] >= 0:
                break
        # Not when the last range is given out: workers still read from the spool then.
        shutil.rmtree(work / f"spool-{number}", ignore_errors=True)
        before += source.input.size
    return out, facts


def _first_line(source: _Source, file: FilePlan) -> int:
    """Count the lines before the first row."""
    before = source.head[: file.begin]
    return before.count(file.dialect.newline)


def _chunk(job: Job) -> int:
    """Return how many bytes are in one piece: the same on every machine, because the result is cut by it."""
    return min(job.limits.chunk_bytes, max(job.limits.memory_bytes // (TIMES * AT_ONCE), 1 << 16))


def _threads(job: Job) -> int:
    """Return how many ranges are read at once here: one more than cores, because each waits for a disk now and then."""
    within = job.limits.memory_bytes // (TIMES * _chunk(job))
    return max(2, min(within, (os.cpu_count() or 1) + 1))


def _jobs(file: FilePlan, number: int, source: _Source, folder: Path, work: Path, job: Job) -> Iterator[dict[str, Any]]:
    """Yield the ranges of one input as plain data; what has no middle is decoded a few segments ahead of them."""
    chunk = _chunk(job)
    step = chunk if not job.ranges else max(1, -(-max(source.input.size, 1) // job.ranges))
    base = {
        "plan": str(folder / "plan.json"),
        "file": number,
        "chunk_bytes": chunk,
        "compiled": job.compiled,
    }

    def one(begin: int, end: int, view: View) -> dict[str, Any]:
        name = f"{number:04d}-{begin:016d}"
        return {
            **base,
            "view": view.to_dict(),
            "begin": begin,
            "end": end,
            "out": str(folder / name),
            "size": view.size,
        }

    if file.format == "parquet":
        view = View(path=source.input.path, size=source.input.size)
        yield from columnar.jobs(file, one, source.input, view)
        return
    if source.plain:
        view = View(path=source.input.path, size=source.input.size)
        begin, last = file.begin, view.size if file.stop < 0 else file.stop
        while begin < last or begin == file.begin:
            end = min(begin + step, last)
            yield one(begin, end, view)
            begin = end
            if begin >= last:
                return
        return
    yield from _spooled(file, source, work / f"spool-{number}", step, one, job)


def _to_the_cut(stream: Iterator[bytes], note: Path) -> Iterator[bytes]:
    """Yield what can be decompressed; that the input is cut is kept in a note, for the end of the ingest to tell."""
    try:
        yield from stream
    except EOFError as error:
        note.write_text(str(error) or CUT, "utf-8")


def _spooled(file: FilePlan, source: _Source, folder: Path, step: int, one: Any, job: Job) -> Iterator[dict[str, Any]]:
    """Yield ranges of an input that is decoded as it is read; segments are deleted when they are far behind."""
    folder.mkdir(exist_ok=True)
    note = folder.with_name(f"{folder.name}.cut")
    note.unlink(missing_ok=True)
    stream = _to_the_cut(blocks(source.input, job.limits), note)
    if source.charset.wide:
        stream = transcoded(stream, source.charset.name, source.charset.mark)
    size, ended, begin = 0, False, file.begin
    near = job.limits.row_bytes + unit.NEAR
    ahead = 2 * near + job.limits.chunk_bytes
    segments = _Segments(folder, max(step, 1 << 20))
    kept = 2 * AHEAD * (max(1, job.engine.workers) if job.engine is not None else _threads(job))
    begun: deque[int] = deque(maxlen=kept)
    try:
        while not ended or begin < size:
            end, border = begin + step, -1
            while border < 0:
                while not ended and size < end + ahead:
                    block = next(stream, b"")
                    ended = not block
                    size += len(block)
                    segments.add(block)
                segments.flush()
                view = View(path=folder, size=size, step=segments.step)
                # Borders are found here: a worker cannot know whether what is decoded so far is all there is.
                border = unit.border(view, file, min(end, size), job.limits.row_bytes)
                if not ended and border + near >= size:
                    border, ahead = -1, 2 * ahead
            # Notes below the table are known only where the whole input was looked at: all of it is decoded then.
            border = border if file.stop < 0 else min(border, file.stop)
            yield {**one(begin, border, view), "exact": True}
            begin = border
            if begin == file.stop:
                return
            begun.append(begin)
            segments.drop(begun[0] // segments.step if len(begun) == kept else 0)
            if ended and begin >= size:
                return
    finally:
        segments.close()


class _Segments:
    """A spool being written: bytes in, files of a fixed size out."""

    __slots__ = ("_dropped", "_folder", "_number", "_stream", "_written", "step")

    def __init__(self, folder: Path, step: int) -> None:
        self._folder, self.step = folder, step
        self._number = self._written = self._dropped = 0
        self._stream = segment(folder, 0).open("wb")

    def add(self, block: bytes) -> None:
        """Append bytes, going on to the next segment where one is full."""
        while block:
            room = self.step - self._written
            self._written += self._stream.write(block[:room])
            block = block[room:]
            if self._written == self.step:
                self._stream.close()
                self._number, self._written = self._number + 1, 0
                self._stream = segment(self._folder, self._number).open("wb")

    def flush(self) -> None:
        """Make everything so far readable."""
        self._stream.flush()

    def drop(self, before: int) -> None:
        """Delete the segments before one."""
        while self._dropped < before:
            segment(self._folder, self._dropped).unlink(missing_ok=True)
            self._dropped += 1

    def close(self) -> None:
        """Close the segment being written."""
        self._stream.close()


def _run(jobs: Iterator[dict[str, Any]], job: Job) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Do jobs on the engine, or on a few threads here, in order, a bounded number ahead."""
    if job.engine is not None:
        # Decoding ahead of the workers is bounded, so that the spool is.
        while window := list(islice(jobs, AHEAD * max(1, job.engine.workers))):
            yield from zip(window, job.engine.map(FUNCTION, window), strict=True)
        return
    first = next(jobs, None)
    second = next(jobs, None)
    if first is None:
        return
    if second is None:
        yield first, unit.read(first)
        return
    waiting: list[tuple[dict[str, Any], Future[dict[str, Any]]]] = []
    threads = _threads(job)
    with ThreadPoolExecutor(threads, thread_name_prefix="tenon-ingest") as pool:
        try:
            for one in _chained(first, second, jobs):
                waiting.append((one, pool.submit(unit.read, one)))
                if len(waiting) >= AHEAD * threads:
                    done, future = waiting.pop(0)
                    yield done, future.result()
            for done, future in waiting:
                yield done, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def _chained(first: dict[str, Any], second: dict[str, Any], rest: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield first
    yield second
    yield from rest

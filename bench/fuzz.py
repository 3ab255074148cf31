"""Ingest under fire: seeded hostile inputs, and for each of them every promise that ingest makes.

    python bench/fuzz.py --count 100000 --seed 1 [--seconds 600] [--workers 2] [--keep FOLDER]
    python bench/fuzz.py --file FOLDER/abc.csv --ranges 5 --row-bytes 64        # a kept input again

Held against every input (made by `hostile.py`): it ends, with a result or an error in words, within a bound of
processor time; the account of bytes closes and covers the input; quarantined bytes are those of the source where they
are said to be, none twice; one range and several, with the kernel and without, give the same rows, quarantine, repairs
and account; what is shown to a person drives no terminal; quarantined rows read again are neither more nor fewer.
Inputs go through in children of this process, so one that kills its process is known.

An input that breaks a promise is made as small as it stays broken, kept as a file in `--keep`, and named with the
command that shows it again. Exit 1 when there was one.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import multiprocessing.connection
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("POLARS_MAX_THREADS", "1")  # inputs are small: threads would only wait for each other

import hostile
import polars as pl
from hostile import Case

from tenon.cli.output import harmless, table
from tenon.errors import TenonError
from tenon.ingest import Ingested, Job, ingest
from tenon.ingest.quarantine import replay, show, summary
from tenon.limits import IngestLimits

BOUND_S = 10.0  # processor seconds for one input, a few kilobytes
SLOW_S = 1.0  # an input that takes longer is told
STUCK_S = 90.0  # a child that begins no other input for so long is killed
BLOCK = 500  # inputs a child does before it tells how far it is
DRIVES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Hung(BaseException):
    """Raised by the clock in the middle of an input that takes too long; no `except Exception` may stop it."""


@dataclass(slots=True)
class Told:
    """What a run came to."""

    count: int = 0
    read: int = 0
    refused: int = 0
    rows: int = 0
    quarantined: int = 0
    repaired: int = 0
    faults: list[tuple[str, Case]] = field(default_factory=list)
    slow: list[tuple[float, str]] = field(default_factory=list)


# ── the promises ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Outcome:
    """One ingest of an input: its result, or the error in words."""

    done: Ingested | None
    error: str = ""

    def frame(self, path: Path | None) -> pl.DataFrame:
        """Read one of the files of the result."""
        return pl.read_parquet(path) if path else pl.DataFrame()

    @property
    def rows(self) -> pl.DataFrame:
        """Return the rows of the result."""
        return (
            pl.concat([pl.read_parquet(file) for file in self.done.files])
            if self.done and self.done.files
            else pl.DataFrame()
        )


def attempt(path: Path, out: Path, case: Case, **options: Any) -> Outcome:
    """Ingest an input; only errors of tenon's own are an answer."""
    limits = IngestLimits(row_bytes=case.row_bytes, chunk_bytes=options.pop("chunk_bytes", 1 << 20))
    try:
        return Outcome(ingest(Job(paths=(path,), out=out, name="x", policy=case.policy, limits=limits, **options)))  # type: ignore[arg-type]
    except TenonError as error:
        return Outcome(None, str(error))


def check(case: Case, folder: Path) -> tuple[str, Outcome]:
    """Return the promise that an input breaks ("" when it keeps all), and what came of it."""
    path = folder / f"x{case.suffix}"
    path.write_bytes(case.data)
    one = attempt(path, folder / "one", case)
    fault = _words(one) if one.done is None else _kept(one, one.done, case, path)
    if fault:
        return fault, one
    if not case.ranges:
        return "", one
    chunk = max(16, len(case.data) // case.ranges)
    # An even number of ranges is read without the kernel, so that both ways are held together as well.
    compiled = case.ranges % 2 == 1
    many = attempt(path, folder / "many", case, ranges=case.ranges, chunk_bytes=chunk, compiled=compiled)
    return _same(one, many) or (_again(one.done, folder) if one.done and one.done.quarantine else ""), one


def _words(outcome: Outcome) -> str:
    said = outcome.error
    if "accounted for" in said or "please report" in said:
        return f"account: {said}"
    if not said.startswith("expected ") and "expected" not in said:
        return f"words: {said[:200]}"
    return "words: an error that drives a terminal" if DRIVES.search(harmless(said)) else ""


def _kept(one: Outcome, done: Ingested, case: Case, path: Path) -> str:
    """Hold a result against its own account and against the source."""
    balance = done.balance
    if not balance.closes or balance.bytes != done.bytes:
        return "account: does not close"
    plain = path.suffix in (".csv", ".jsonl") and not case.data.startswith(
        (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"PK", b"PAR1")
    )
    wide = any(str(about["encoding"]).startswith(("utf-16", "utf-32")) for about in done.dialects.values())
    source = case.data if plain and not wide else None
    if source is not None and balance.bytes != len(source):
        return f"account: of {len(source)} bytes {balance.bytes} were read"
    rows = one.rows
    if rows.height != done.rows:
        return f"rows: {done.rows} said, {rows.height} written"
    waiting = one.frame(done.quarantine)
    if waiting.height != done.quarantined:
        return f"quarantine: {done.quarantined} said, {waiting.height} written"
    if waiting.height and (waiting["offset"] >= 0).all():
        fault = _places(waiting, source, balance.quarantine_bytes, len(done.dialects))
        if fault:
            return fault
    repairs = one.frame(done.repairs)
    if repairs.height and (repairs["row"].max() >= done.rows or repairs["row"].min() < 0):  # type: ignore[operator]
        return "repairs: of a row that is not there"
    return _shown(done)


def _places(waiting: pl.DataFrame, source: bytes | None, size: int, files: int) -> str:
    raws, offsets, lines = waiting["raw"].to_list(), waiting["offset"].to_list(), waiting["line"].to_list()
    if sum(map(len, raws)) != size:
        return f"quarantine: {size} bytes said, {sum(map(len, raws))} kept"
    if files > 1 or source is None:
        return ""
    last = 0
    for raw, offset, line in zip(raws, offsets, lines, strict=True):
        if offset < last:
            return f"quarantine: byte {offset} twice, or out of order"
        last = offset + len(raw)
        if source[offset:last] != raw:
            return f"quarantine: other bytes than the source has at {offset}"
        if b"\r" not in source and line != source.count(b"\n", 0, offset) + 1:
            return f"quarantine: line {line} said of line {source.count(bytes((10,)), 0, offset) + 1}"
    return ""


def _shown(done: Ingested) -> str:
    """Look at everything a person is shown, as the commands show it."""
    told = [harmless(part) for one in done.findings for part in (one.said, one.place, one.hint)]
    told.append(table(["column", "type", "examples"], [[c.name, c.type, ", ".join(c.examples)] for c in done.columns]))
    if done.quarantine:
        rows = [*show(done.quarantine, 5), *summary(done.quarantine)]
        told += [table(["raw", "fix", "column"], [[row["raw"], row["fix"], row["column"]] for row in rows])]
    bad = next((part for part in told if DRIVES.search(part)), "")
    return f"shown: {bad[:80]!r}" if bad else ""


def _same(one: Outcome, many: Outcome) -> str:
    """Hold the result of many ranges against that of one."""
    if one.done is None or many.done is None:
        return (
            ""
            if one.error == many.error
            else f"ranges: one said {one.error[:120] or 'a result'!r}, many {many.error[:120] or 'a result'!r}"
        )
    if not one.rows.equals(many.rows) or one.rows.schema != many.rows.schema:
        return f"ranges: rows differ, {one.done.rows} and {many.done.rows}"
    for what in ("quarantine", "repairs"):
        if not one.frame(getattr(one.done, what)).equals(many.frame(getattr(many.done, what))):
            return f"ranges: {what} differs"
    if one.done.balance.to_dict() != many.done.balance.to_dict():
        return f"ranges: accounts differ, {one.done.balance.to_dict()} and {many.done.balance.to_dict()}"
    return ""


def _again(done: Ingested, folder: Path) -> str:
    """Read the quarantine again."""
    before = done.quarantined
    try:
        again = replay(Job(paths=(), out=folder / "one", name="x"))
    except TenonError as error:
        return f"replay: {error}"
    if again.rows + again.waiting != before:
        return f"replay: {before} rows waited, {again.rows} could be read and {again.waiting} wait"
    return ""


# ── one input, bounded and minimised ─────────────────────────────────────────────────────────────────────────────────


@contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Raise Hung when the block takes more processor time of this process, threads included."""

    def ring(number: int, frame: Any) -> None:
        raise Hung

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def judge(case: Case, folder: Path) -> tuple[str, Outcome]:
    """Return the promise that an input breaks, crash and hang among them, as a line that names its kind first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with bounded(BOUND_S):
            return check(case, folder)
    except Hung:
        return f"hang: more than {BOUND_S:.0f} s", Outcome(None)
    except Exception as error:
        last = [one for one in traceback.extract_tb(error.__traceback__) if "tenon" in one.filename]
        where = f"{Path(last[-1].filename).name}:{last[-1].lineno}" if last else "?"
        return f"crash: {type(error).__name__} in {where}: {str(error)[:200]}", Outcome(None)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"crash: {type(error).__name__}: {str(error)[:200]}", Outcome(None)


def kind_of(fault: str) -> str:
    """Return what makes two faults the same one: the kind, and for a crash its place."""
    if fault.startswith("crash"):
        return fault.partition(": ")[2].partition(": ")[0]
    return re.sub(r"\d+", "9", fault)[:40]


def smaller(case: Case, fault: str, folder: Path, seconds: float = 10.0) -> Case:
    """Take pieces out of an input for as long as it breaks the same promise."""
    until, kind = time.process_time() + seconds, kind_of(fault)
    size = max(1, len(case.data) // 2)
    while size:
        at = 0
        while at < len(case.data) and time.process_time() < until:
            less = replace(case, data=case.data[:at] + case.data[at + size :])
            if kind_of(judge(less, folder)[0]) == kind:
                case = less
            else:
                at += size
        size = min(size // 2, max(1, len(case.data) // 2)) if size > 1 else 0
    return case


def keep(case: Case, fault: str, folder: Path) -> str:
    """Save an input and return the command that shows it again."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hashlib.sha256(case.data).hexdigest()[:12]}{case.suffix}"
    path.write_bytes(case.data)
    command = (
        f"python bench/fuzz.py --file {path} --ranges {case.ranges} --row-bytes {case.row_bytes} --policy {case.policy}"
    )
    path.with_name(path.name + ".txt").write_text(f"{fault}\n{case.born}\n{command}\n", "utf-8")
    return command


# ── many inputs ──────────────────────────────────────────────────────────────────────────────────────────────────────


def block(seed: int, first: int, count: int, folder: Path, mark: Path, once: bool = False) -> Told:
    """Do `count` inputs from `first` on; `mark` says which one is being read, should the process die.

    Read `once`, an input is held against its own account and source only: five times as many in the same time.
    """
    told = Told()
    for number in range(first, first + count):
        case = hostile.make(seed, number)
        case = replace(case, ranges=0) if once else case
        mark.write_text(str(number), "ascii")
        begun = time.process_time()
        fault, outcome = judge(case, folder)
        spent = time.process_time() - begun
        told.count += 1
        if spent > SLOW_S:
            told.slow.append((spent, case.born))
        if fault:
            told.faults.append((fault, case))
        if outcome.done is None:
            told.refused += 1
            continue
        told.read += 1
        told.rows += outcome.done.rows
        told.quarantined += outcome.done.quarantined
        told.repaired += outcome.done.repaired
    return told


def _child(seed: int, first: int, count: int, folder: str, once: bool, pipe: Any) -> None:
    pipe.send(block(seed, first, count, Path(folder), Path(folder + ".mark"), once))
    pipe.close()


def run(
    seed: int, count: int, *, workers: int, seconds: float, tell: Callable[[str], None], kept: Path, once: bool = False
) -> Told:
    """Do many inputs in children; returns what all of them came to."""
    whole, kinds, begun = Told(), Counter[str](), time.monotonic()
    room = Path(tempfile.mkdtemp(prefix="tenon-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    waiting = [(first, min(BLOCK, count - first)) for first in range(0, count, BLOCK)]
    busy: dict[Any, tuple[Any, int, int, str]] = {}
    context = multiprocessing.get_context("spawn")  # Polars does not survive a fork
    try:
        while waiting or busy:
            late = time.monotonic() - begun > seconds
            while waiting and len(busy) < workers and not late:
                first, size = waiting.pop(0)
                ours, theirs = context.Pipe(duplex=False)
                folder = str(room / str(first))
                child = context.Process(target=_child, args=(seed, first, size, folder, once, theirs))
                child.start()
                theirs.close()
                busy[ours] = (child, first, size, folder)
            if late and not busy:
                break
            for child, _, _, folder in busy.values():
                mark = Path(folder + ".mark")
                # A thread inside a compiled pattern hears no alarm: the whole child is killed, and its input told.
                if mark.exists() and time.time() - mark.stat().st_mtime > STUCK_S:
                    child.kill()
            for ours in multiprocessing.connection.wait(list(busy), 5.0):
                child, first, size, folder = busy.pop(ours)
                try:
                    told = ours.recv()
                except EOFError:
                    child.join()
                    dead = int(Path(folder + ".mark").read_text("ascii"))
                    case = hostile.make(seed, dead)
                    told = Told(count=dead - first + 1, faults=[(f"crash: the process died ({child.exitcode})", case)])
                    waiting.insert(0, (dead + 1, first + size - dead - 1))
                child.join()
                shutil.rmtree(folder, ignore_errors=True)
                _add(whole, told, kinds, room / "small", kept, tell)
                spent = time.monotonic() - begun
                tell(f"{whole.count:,} inputs, {spent:.0f} s, {whole.count / spent:.0f}/s, {len(kinds)} faults")
    finally:
        for child, *_ in busy.values():
            child.terminate()
            child.join()
        shutil.rmtree(room, ignore_errors=True)
    return whole


def _add(whole: Told, told: Told, kinds: Counter[str], folder: Path, kept: Path, tell: Callable[[str], None]) -> None:
    for name in ("count", "read", "refused", "rows", "quarantined", "repaired"):
        setattr(whole, name, getattr(whole, name) + getattr(told, name))
    whole.slow = sorted([*whole.slow, *told.slow], reverse=True)[:5]
    for fault, case in told.faults:
        kind = kind_of(fault)
        kinds[kind] += 1
        if kinds[kind] > 1:
            continue
        if "died" not in fault:
            case = smaller(case, fault, folder)
            fault = judge(case, folder)[0]
        whole.faults.append((fault, case))
        tell(f"✗ {fault}\n    {case.born}, {len(case.data)} bytes: {case.data[:120]!r}\n    {keep(case, fault, kept)}")


def main() -> None:
    """Fuzz, and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2_000, help="how many inputs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3_600.0, help="give out no more after so long")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--keep", type=Path, default=Path(tempfile.gettempdir()) / "tenon-fuzz", help="where broken inputs go"
    )
    parser.add_argument("--once", action="store_true", help="read each input once, not in ranges and both ways as well")
    parser.add_argument("--file", type=Path, help="read one kept input again")
    parser.add_argument("--ranges", type=int, default=3)
    parser.add_argument("--row-bytes", type=int, default=4096)
    parser.add_argument("--policy", default="row")
    args = parser.parse_args()
    if args.file:
        suffix = "".join(args.file.suffixes)
        case = Case(args.file.read_bytes(), suffix, args.ranges, args.row_bytes, args.policy, str(args.file))
        with tempfile.TemporaryDirectory(prefix="tenon-fuzz-") as folder:
            fault, _ = judge(case, Path(folder) / "x")
        print(fault or "keeps every promise")
        sys.exit(bool(fault))
    begun = time.monotonic()
    told = run(
        args.seed,
        args.count,
        workers=args.workers,
        seconds=args.seconds,
        tell=lambda said: print(said, flush=True),
        kept=args.keep,
        once=args.once,
    )
    spent = time.monotonic() - begun
    print(f"\n{told.count:,} inputs in {spent:.0f} s: {told.read:,} read, {told.refused:,} refused in words;", end=" ")
    print(f"{told.rows:,} rows, {told.quarantined:,} quarantined, {told.repaired:,} repaired;", end=" ")
    print(f"{len(told.faults)} kinds of fault")
    for seconds, born in told.slow:
        print(f"slow: {seconds:.1f} s of processor time, {born}")
    sys.exit(bool(told.faults))


if __name__ == "__main__":
    main()

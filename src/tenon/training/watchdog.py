"""A watchdog outside the training process: after a silence it says where every rank stands, then begins again.

    ended = watchdog.watch([sys.executable, "train.py"], folder=Path("watch"), silence_s=600, restarts=3)

and in `train.py`, once in each rank: ``guard.beat = Beat.of(os.environ)``. From then on every `guard.step` writes rank,
step and time into a few bytes of shared memory (a mapped file, half a microsecond), which outlive the process. When one
rank has been silent for `silence_s`, each is sent SIGUSR1, at which Python's own `faulthandler` writes the stacks of
all its threads; that works while the interpreter is stuck in C code, as in a collective that never returns. The stacks
say which ranks wait in which collective, from where, and which never reached it; a rank that stands in none is the one
to look at.

Then the whole process group is ended and the command is run again, at most `restarts` times; it goes on from its last
checkpoint by itself (`resume`). A command that ends with an error is begun again the same way. Rejected: a thread
inside the process (the interpreter it needs is what hangs) and an external tracer (needs rights a container seldom
gives). Ranks that are begun by `Ranks.of` also say what their flight recorders hold (`collectives`), which knows of the
collectives that DDP begins inside `backward`; `launch` begins ranks itself, with that switched on.
"""

from __future__ import annotations

import faulthandler
import mmap
import os
import re
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tenon.errors import UsageError, sentence
from tenon.finding import Finding
from tenon.training import collectives

FOLDER = "TENON_WATCH_FOLDER"
ATTEMPT = "TENON_WATCH_ATTEMPT"
BEAT = struct.Struct("<qdq")  # pid, Unix seconds, step
POLL_S = 0.2
STACKS_S = 3.0  # the longest wait for stacks
END_S = 5.0  # between asking a process to end and ending it
STACK_CHARS = 20_000
FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<name>\S+)')
COLLECTIVE = "distributed_c10d.py"
AGREEMENT = ("tenon/training/agree.py", "add_up")  # the guard's own, through shared memory
WRAPPERS = {"wrapper", "wait", "inner"}


class Beat:
    """What a rank tells the watchdog: called with the step, it writes it and the time where the watchdog looks."""

    __slots__ = ("_map", "_stacks", "path")

    def __init__(self, folder: Path, rank: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"rank-{rank}.beat"
        with self.path.open("w+b") as file:
            file.truncate(BEAT.size)
            self._map = mmap.mmap(file.fileno(), BEAT.size)
        self._stacks = (folder / f"rank-{rank}.stacks").open("w", encoding="utf-8")
        faulthandler.register(signal.SIGUSR1, file=self._stacks, all_threads=True)
        self(-1)

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Beat | None:
        """Return the beat of this process (`RANK` says which), or None when no watchdog watches."""
        folder = environ.get(FOLDER)
        return cls(Path(folder), int(environ.get("RANK", "0"))) if folder else None

    def __call__(self, step: int) -> None:
        """Say that the rank lives and has come to `step`."""
        # Copied over the last one, whose time is seen until then: `pack_into` would clear it first, and a watchdog that
        # reads in between would see a silence since 1970.
        self._map[:] = BEAT.pack(os.getpid(), time.time(), step)

    def close(self) -> None:
        """Stop listening for the watchdog's signal."""
        faulthandler.unregister(signal.SIGUSR1)
        self._stacks.close()
        self._map.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """What one rank last said, and where its stack stands."""

    rank: int
    pid: int
    at: float
    step: int
    stack: str = ""

    @property
    def frames(self) -> list[tuple[str, int, str]]:
        """Return the frames of the thread that trains, innermost first, as (file, line, function)."""
        threads = [part for part in re.split(r"\n\n|(?=(?:Current )?[Tt]hread 0x)", self.stack) if "File" in part]
        # Ray runs what trains in a thread beside the main one.
        marks = ("tenon/training/target.py", "in <module>")
        trains = next((part for mark in marks for part in threads if mark in part), threads[-1] if threads else "")
        return [(found["file"], int(found["line"]), found["name"]) for found in FRAME.finditer(trains)]

    @property
    def collective(self) -> str:
        """Return the collective that the rank waits in, "" for none."""
        if any(file.endswith(AGREEMENT[0]) and name == AGREEMENT[1] for file, _, name in self.frames):
            return "the guard's agreement"
        names = [name for file, _, name in self.frames if file.endswith(COLLECTIVE)]
        return next((name for name in reversed(names) if not name.startswith("_") and name not in WRAPPERS), "")

    @property
    def place(self) -> str:
        """Return where the rank's own code stands: the innermost frame outside of installed packages and Python."""
        frames = [frame for frame in self.frames if not {"site-packages", "lib", "<frozen"} & set(Path(frame[0]).parts)]
        if not frames:
            return "an unknown place"
        file, line, name = frames[0]
        return f"{name} ({Path(file).name}:{line})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a watched command ended: its last exit code, how often it was begun, and what was found on the way."""

    code: int
    attempts: int
    findings: tuple[Finding, ...]

    def __bool__(self) -> bool:
        return self.code == 0

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        told = [one.to_dict() for one in self.findings]
        return {"code": self.code, "attempts": self.attempts, "findings": told}


def watch(
    command: Sequence[str],
    *,
    folder: Path,
    silence_s: float = 600.0,
    start_s: float = 1_200.0,
    restarts: int = 3,
    tell: Callable[[Finding], None] = lambda finding: None,
) -> Ended:
    """Run a command until it succeeds or has been begun `restarts` + 1 times; ends it when a rank falls silent.

    `silence_s` must be longer than the longest step, evaluation and checkpoint together; before its first step a rank
    has `start_s`. Stacks are kept in `folder`. Each finding is told when it is made.
    """
    if not command or not silence_s > 0 or restarts < 0:
        got = f"{list(command)}, silence_s={silence_s}, restarts={restarts}"
        raise UsageError(sentence("a command, a silence above 0 and restarts of 0 or more", got, at="watchdog.watch"))
    findings: list[Finding] = []

    def say(finding: Finding) -> None:
        findings.append(finding)
        tell(finding)

    code = 0
    for attempt in range(restarts + 1):
        if attempt:
            say(again(attempt, restarts, code))
        here = folder / f"attempt-{attempt}"
        code = _attempt(command, here, attempt, (silence_s, start_s), say)
        if code == 0:
            break
    return Ended(code=code, attempts=attempt + 1, findings=tuple(findings))


def _attempt(
    command: Sequence[str], folder: Path, attempt: int, patience: tuple[float, float], say: Callable[[Finding], None]
) -> int:
    """Run the command once; return its exit code, or minus the signal that ended it."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("rank-*"):
        old.unlink()
    environ = {**os.environ, FOLDER: str(folder), ATTEMPT: str(attempt)}
    began = time.time()
    process = subprocess.Popen(list(command), env=environ, start_new_session=True)
    try:
        while process.poll() is None:
            time.sleep(POLL_S)
            ranks = read(folder)
            silence_s, start_s = patience
            late = [one for one in ranks if time.time() - one.at > (silence_s if one.step >= 0 else start_s)]
            if late or (not ranks and time.time() - began > start_s):
                say(seen_hanging(folder, ranks))
                break
    finally:
        end(process)
    return process.returncode if process.returncode is not None else -signal.SIGKILL


def read(folder: Path) -> list[Rank]:
    """Return what each rank last said, in order."""
    found = []
    for path in folder.glob("rank-*.beat"):
        body = path.read_bytes()
        if len(body) == BEAT.size:
            pid, at, step = BEAT.unpack(body)
            found.append(Rank(rank=int(path.stem.removeprefix("rank-")), pid=pid, at=at, step=step))
    return sorted((one for one in found if one.pid and one.at), key=lambda one: one.rank)


def living(folder: Path, rank: int) -> bool:
    """Tell whether a rank of this machine has not ended, as far as its beat tells."""
    with suppress(OSError, struct.error):
        pid, _, _ = BEAT.unpack((folder / f"rank-{rank}.beat").read_bytes())
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True


def seen_hanging(folder: Path, ranks: Sequence[Rank]) -> Finding:
    """Have every rank write its stacks and collectives, and say which rank stands where."""
    never, behind = collectives.compare(collectives.ask(folder, [one.rank for one in ranks]))
    return hang(_stacks(folder, ranks), time.time(), never=never, behind=behind)


def _stacks(folder: Path, ranks: Sequence[Rank]) -> list[Rank]:
    """Have every rank write its stacks, and read them; one that does not is left without."""
    for one in ranks:
        try:
            os.kill(one.pid, signal.SIGUSR1)
        except OSError:
            continue  # it has ended
    end, sizes = time.monotonic() + STACKS_S, [-1]
    while time.monotonic() < end:
        now = [(folder / f"rank-{one.rank}.stacks").stat().st_size for one in ranks]
        if all(now) and now == sizes:
            break
        sizes = now
        time.sleep(POLL_S)
    return [replace(one, stack=stack_of(folder, one.rank)) for one in ranks]


def stack_of(folder: Path, rank: int) -> str:
    """Return the stacks that a rank has written last."""
    return (folder / f"rank-{rank}.stacks").read_text("utf-8", errors="replace")[-STACK_CHARS:]


def hang(ranks: Sequence[Rank], now: float, *, never: str = "", behind: Sequence[int] = ()) -> Finding:
    """Say which rank stands where, and which never reached the collective that the others wait in.

    `never` says the latter, and `behind` who it is, where flight recorders tell; else the stacks are read for it.
    """
    if not ranks:
        said, hint = "No rank has said anything since the start.", "Look at the command's own output."
        return Finding(code="training/hang", severity="error", place="run", said=said, hint=hint)
    waiting = [one for one in ranks if one.collective]
    missing = [one for one in ranks if not one.collective]
    silent = max(now - one.at for one in ranks)
    parts = [f"No step for {silent:.0f} s."]
    if never:
        parts.append(never)
        missing = [one for one in ranks if one.rank in behind]
    elif waiting and missing:
        names = sorted({one.collective for one in waiting})
        others = f"{_ranks(waiting)} {'wait' if len(waiting) > 1 else 'waits'}"
        parts.append(f"{_ranks(missing).capitalize()} never reached {' or '.join(names)}, in which {others}.")
    elif waiting and len({(one.collective, one.place) for one in waiting}) > 1:
        parts.append("The ranks wait in different collectives, so that none can end.")
    parts += [
        f"Rank {one.rank} stands after step {one.step} in {f'{one.collective} at ' * bool(one.collective)}{one.place}."
        for one in ranks
    ]
    look = (missing or list(ranks))[0]
    hint = f"Look at {look.place} of rank {look.rank}; the stacks are in {look.rank}'s file beside the beats."
    numbers = {"silent_s": silent, "ranks": float(len(ranks)), "rank": float(look.rank), "step": float(look.step)}
    return Finding(
        code="training/hang",
        severity="error",
        place=f"run/{look.step}",
        said=" ".join(parts),
        hint=hint,
        numbers=numbers,
    )


def _ranks(ranks: Sequence[Rank]) -> str:
    names = ", ".join(str(one.rank) for one in ranks)
    return f"rank{'s' if len(ranks) > 1 else ''} {names}" if len(ranks) < 9 else f"{len(ranks)} ranks"


def again(attempt: int, restarts: int, code: int) -> Finding:
    """Say that a run is begun again."""
    often = f"{attempt} of at most {restarts}"
    return Finding(
        code="training/restarted",
        severity="warning",
        place=f"run/attempt-{attempt}",
        said=f"The run ended with code {code} and is begun again from its last checkpoint, {often}.",
        hint="Look at why it ended; a run that ends at the same step each time will do so again.",
        numbers={"attempt": float(attempt), "code": float(code)},
    )


def end(process: subprocess.Popen[Any]) -> None:
    """End the command and all it has begun: ask first, then do not ask."""
    for kind, patience in ((signal.SIGTERM, END_S), (signal.SIGKILL, END_S)):
        try:
            os.killpg(process.pid, kind)
        except OSError:
            break  # all have ended
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
    process.poll()

"""One command on several processes of this machine, watched from outside, begun again from the last checkpoint.

    ended = launch(["python", "train.py"], nproc=2, folder=Path("watch"), restarts=3)

Each process has the variables that torchrun sets (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR ...), so that a script
written for one runs under the other. What ours adds to it: a rank that dies is told by name, with its signal or exit
code and its last words; a hang is seen, with the stacks and collectives of every rank; what earlier attempts cost is
told to the next one; and nothing outlives the launcher. Rejected: torchrun's agent, which sees no hang of gloo, does
not tell who died first, and leaves its workers behind when it is killed itself.

When one rank fails, the others are ended and all begin again, at most `restarts` times, each from the last checkpoint
(`resume`). Not begun again is what would only fail again: a run that its guard refused, and a command that ended with
an error before any step. Ranks meet in a file when they use `Ranks.of`; for others a port is held until they take it,
so that two launches at once cannot be given the same. A watcher process kills all ranks when the launcher is gone.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tenon import engine, ledger
from tenon.errors import UsageError, sentence
from tenon.finding import Finding
from tenon.training import watchdog
from tenon.training.ranks import SPENT, STORE, refusal
from tenon.training.watchdog import ATTEMPT, FOLDER, POLL_S, Ended

LAST_LINES = 200  # of what a rank wrote on stderr, kept for its last words
WORDS_CHARS = 300
EARLY_S = 60.0  # a script that never says where it is, and fails within them, has failed at its start
MOST = 1_024  # processes on one machine
OTHERS_S = 2.0  # for the other ranks to end by themselves, once one has
RECORDED = "200"  # collectives that PyTorch's flight recorder keeps
LOOPBACK = Path("/sys/class/net/lo")

# Kills the process groups it was told of, and whatever else was begun in their folder, once its own input ends.
WATCHER = """
import os, signal, sys
groups, mark = set(), os.fsencode(sys.argv[1])
for line in sys.stdin:
    (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
def kill(how, pid):
    try: how(pid, signal.SIGKILL)
    except OSError: pass
for group in groups: kill(os.killpg, group)
for name in os.listdir("/proc") if groups and os.path.isdir("/proc/self") else ():
    if name.isdigit():
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                if mark in file.read().split(b"\\0"): kill(os.kill, int(name))
        except OSError: pass
"""


@dataclass(slots=True)
class _Rank:
    """One process of an attempt, what it said last, and when it ended."""

    rank: int
    process: subprocess.Popen[bytes]
    said: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES))
    ended: float = 0.0
    cpu_s: float = 0.0

    @property
    def words(self) -> str:
        """Return the last line that says something."""
        line = next((line.strip() for line in reversed(self.said) if line.strip()), "")
        return line[:WORDS_CHARS]

    @property
    def how(self) -> str:
        """Say how it ended."""
        code = self.process.returncode
        if code is None or code >= 0:
            return f"ended with exit code {code}"
        name = signal.Signals(-code).name
        return f"was killed by {name}" + ", as the kernel does when memory runs out" * (name == "SIGKILL")


def launch(
    command: Sequence[str],
    *,
    nproc: int,
    folder: Path,
    silence_s: float = 600.0,
    start_s: float = 1_200.0,
    restarts: int = 3,
    tell: Callable[[Finding], None] = lambda finding: None,
) -> Ended:
    """Run a command in `nproc` processes until all succeed, or `restarts` times again; each finding is told when made.

    `silence_s` must be longer than the longest step, evaluation and checkpoint together; before its first step a rank
    has `start_s`. Ranks without a guard are not watched for hangs. Beats, stacks and last words are kept in `folder`.
    """
    if not command or not 1 <= nproc <= MOST or not silence_s > 0 or restarts < 0:
        got = f"{list(command)}, nproc={nproc}, silence_s={silence_s}, restarts={restarts}"
        wanted = f"a command, nproc from 1 to {MOST:,}, a silence above 0 and restarts of 0 or more"
        raise UsageError(sentence(wanted, got, at="launch"))
    findings: list[Finding] = []

    def say(finding: Finding) -> None:
        findings.append(finding)
        tell(finding)

    spent, attempt, code = (0.0, 0.0), 0, 0
    for attempt in range(restarts + 1):
        if attempt:
            say(watchdog.again(attempt, restarts, code))
        one = _Attempt(command, nproc, folder.resolve() / f"attempt-{attempt}", attempt)
        code = one.run(spent, silence_s, start_s, say)
        spent = (spent[0] + one.lived_s, spent[1] + one.cpu_s)
        if code == 0:
            return Ended(code=0, attempts=attempt + 1, findings=tuple(findings))
        if (why := one.hopeless(code)) and attempt < restarts:
            say(given_up(attempt + 1, code, why))
            break
    else:
        if restarts:
            say(given_up(attempt + 1, code, f"it may be begun again {restarts} times at most"))
    return Ended(code=code, attempts=attempt + 1, findings=tuple(findings))


class _Attempt:
    """One try: its processes and what comes of them."""

    __slots__ = ("_attempt", "_command", "_folder", "_hung", "_nproc", "_ranks", "lived_s")

    def __init__(self, command: Sequence[str], nproc: int, folder: Path, attempt: int) -> None:
        self._command, self._nproc, self._folder, self._attempt = command, nproc, folder, attempt
        self._ranks: list[_Rank] = []
        self._hung = False
        self.lived_s = 0.0

    @property
    def cpu_s(self) -> float:
        """Return the processor time of all ranks, as last seen."""
        return sum(one.cpu_s for one in self._ranks)

    def hopeless(self, code: int) -> str:
        """Say why the same would only happen again, "" when it might not."""
        if refused := refusal(self._folder):
            return refused
        beats = watchdog.read(self._folder)
        begun = any(one.step >= 0 for one in beats) or (not beats and self.lived_s > EARLY_S)
        return "" if begun or self._hung or code < 0 else "it failed before its first step"

    def run(self, spent: tuple[float, float], silence_s: float, start_s: float, say: Callable[[Finding], None]) -> int:
        """Begin all ranks and see them through; returns 0, or the code (minus the signal) of the one that failed."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        began = time.monotonic()
        watcher = _watcher(self._folder)
        try:
            with _held_port() as port:
                for rank in range(self._nproc):
                    self._ranks.append(_begin(self._command, self._environ(rank, port.getsockname()[1], spent), rank))
                    _tell(watcher, f"+{self._ranks[-1].process.pid}")
                return self._see_through(silence_s, start_s, say)
        finally:
            self.lived_s = time.monotonic() - began
            for one in self._ranks:
                watchdog.end(one.process)
                _tell(watcher, f"-{one.process.pid}")
            if watcher.stdin is not None:
                with suppress(OSError):
                    watcher.stdin.close()
            watcher.wait()

    def _see_through(self, silence_s: float, start_s: float, say: Callable[[Finding], None]) -> int:
        while any(one.process.poll() is None for one in self._ranks):
            for one in self._ranks:
                one.cpu_s = max(one.cpu_s, ledger.cpu_of(one.process.pid))
            if any(one.process.poll() not in (None, 0) for one in self._ranks):
                break
            time.sleep(POLL_S)
            living = {one.rank for one in self._ranks if one.process.poll() is None}
            beats = [one for one in watchdog.read(self._folder) if one.rank in living]
            now = time.time()
            late = [one for one in beats if now - one.at > (silence_s if one.step >= 0 else start_s)]
            if late:  # a script that never says where it is cannot be told from one that is at work
                self._hung = True
                say(watchdog.seen_hanging(self._folder, beats))
                return -signal.SIGKILL
        end = time.monotonic() + OTHERS_S
        while any(one.process.poll() is None for one in self._ranks) and time.monotonic() < end:
            time.sleep(0.02)
        failed = [one for one in self._ranks if one.process.poll() not in (None, 0)]
        if not failed:
            return 0
        # Of those that failed, one that was killed did not do so because of another; then the one that ended first.
        first = min(failed, key=lambda one: (one.process.returncode >= 0, one.ended or float("inf")))
        say(self._died(first, failed))
        return first.process.returncode

    def _died(self, first: _Rank, failed: Sequence[_Rank]) -> Finding:
        """Say which rank died of what."""
        for one in failed:
            (self._folder / f"rank-{one.rank}.stderr").write_text("".join(one.said), "utf-8")
        steps = {one.rank: one.step for one in watchdog.read(self._folder)}
        step = steps.get(first.rank, -1)
        others = [one.rank for one in failed if one is not first]
        said = (
            f"Rank {first.rank} of {self._nproc} {first.how}, {f'after step {step}' if step >= 0 else 'before a step'}."
        )
        if first.words:
            said += f" Its last words: {first.words}"
        if left := [one.rank for one in self._ranks if one.process.returncode == 0 and one.ended < first.ended]:
            said += f"; rank{'s' if len(left) > 1 else ''} {', '.join(map(str, left[:8]))} had ended well before"
        if others:
            said += f" Then rank{'s' if len(others) > 1 else ''} {', '.join(map(str, others[:8]))} ended too."
        code = first.process.returncode
        return Finding(
            code="training/rank-died",
            severity="error",
            place=f"run/attempt-{self._attempt}",
            said=said,
            hint=f"Its stderr ends in {self._folder / f'rank-{first.rank}.stderr'}.",
            numbers={"rank": float(first.rank), "code": float(code), "step": float(step)},
        )

    def _environ(self, rank: int, port: int, spent: tuple[float, float]) -> dict[str, str]:
        threads = str(max(engine.cores() // self._nproc, 1))
        usual = {"OMP_NUM_THREADS": threads, "TORCH_FR_BUFFER_SIZE": RECORDED}
        if LOOPBACK.exists():
            usual["GLOO_SOCKET_IFNAME"] = "lo"  # nobody else's network has a part in it
        ours = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": self._nproc,
            "LOCAL_WORLD_SIZE": self._nproc,
            "GROUP_RANK": 0,
            "GROUP_WORLD_SIZE": 1,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "TORCHELASTIC_RESTART_COUNT": self._attempt,
            FOLDER: self._folder,
            ATTEMPT: self._attempt,
            STORE: self._folder / "meet",
            SPENT: f"{spent[0]:.3f} {spent[1]:.3f}",
        }
        return {**usual, **os.environ, **{name: str(value) for name, value in ours.items()}}


# ── processes ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _begin(command: Sequence[str], environ: Mapping[str, str], rank: int) -> _Rank:
    """Start one rank, in a session of its own, with threads that pass its stderr on and note its end."""
    process = subprocess.Popen(
        list(command), env=environ, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    one = _Rank(rank=rank, process=process)
    assert process.stderr is not None
    threading.Thread(target=_pass_on, args=(process.stderr, one), daemon=True).start()
    threading.Thread(target=_note_end, args=(one,), daemon=True).start()
    return one


def _pass_on(stderr: IO[bytes], one: _Rank) -> None:
    """Write a rank's stderr to ours, line by line, with its number in front; keep the last lines."""
    prefix = f"[{one.rank}] " if one.rank else ""
    with stderr, suppress(OSError, ValueError):
        for line in stderr:
            text = line.decode("utf-8", errors="replace")
            one.said.append(text if text.endswith("\n") else text + "\n")
            sys.stderr.write(prefix + text)
            sys.stderr.flush()


def _note_end(one: _Rank) -> None:
    one.process.wait()
    one.ended = time.monotonic()


def _watcher(folder: Path) -> subprocess.Popen[bytes]:
    """Start the process that kills all ranks when this one is gone, however it went."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", WATCHER, f"{FOLDER}={folder}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _tell(watcher: subprocess.Popen[bytes], word: str) -> None:
    if watcher.stdin is not None:
        with suppress(OSError):
            watcher.stdin.write(f"{word}\n".encode())
            watcher.stdin.flush()


def _held_port() -> socket.socket:
    """Return a socket that holds a free port without listening: rank 0 may take it, no other launch is given it."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held


def given_up(attempts: int, code: int, why: str) -> Finding:
    """Say that a run that failed is not begun again, and why."""
    return Finding(
        code="training/gave-up",
        severity="error",
        place=f"run/attempt-{attempts - 1}",
        said=f"The run was begun {attempts} time{'s' if attempts > 1 else ''}, failed, and is not begun again: {why}.",
        hint="Look at the finding before this one; the last checkpoint is kept, and the same command goes on from it.",
        numbers={"attempts": float(attempts), "code": float(code)},
    )

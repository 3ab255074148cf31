"""A fleet starts, stops and lists replicas. `LocalFleet` runs them as processes of this machine.

    class Machines(Protocol):
        async def start(self) -> Machine            # ready to answer
        async def stop(self, name: str) -> None     # SIGTERM, then SIGKILL when it does not drain
        def list(self) -> Sequence[Machine]

A cluster is another implementation of the same three. The command of a local replica is given with `{port}` where its
port belongs; it is ready when its address says so on one of the paths a gateway probes.

Who is whose is not written down, it is marked: every process carries the fleet's name in its environment, so that
there is no instant at which a kill leaves one that nobody knows. With a `state` file the name is that file's, a
gateway that comes back finds its replicas with their caches and takes them over, and a lock on the file keeps a
second gateway away. If none comes back, a warden (`warden`) ends them after a while; without a `state` file, at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import IO, Any, Protocol

import psutil

from tenon.errors import StoreError, UsageError, sentence
from tenon.serving.replica import Remote, is_ready
from tenon.serving.warden import MARK, end_all, marked, takes

POLL_S = 0.1
LOCK_S = 2.0
ROOM = 1.1  # a replica may need so much of what the largest running one holds
SAID_BYTES = 2_000  # of a log, looked at for its last line


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One replica of a fleet: what it is called, where it answers, how long it took to be ready."""

    name: str
    url: str
    start_s: float


class Machines(Protocol):
    """What scaling asks of whoever runs machines."""

    async def start(self) -> Machine:
        """Start one more replica and return when it is ready; a TenonError says why there is none."""
        ...

    async def stop(self, name: str) -> None:
        """Stop a replica after it has finished what it has begun."""
        ...

    def list(self) -> Sequence[Machine]:
        """Return the replicas that run."""
        ...


class LocalFleet:
    """Replicas as processes of this machine; everything started or taken over is stopped by `close`.

    `start_s` bounds a start, `drain_s` a stop. `orphan_s` is how long replicas outlive a gateway that was killed.
    `token`, when given, is what their session doors open for (`TENON_SERVE__FLEET_TOKEN`).
    """

    def __init__(
        self, command: str, *, start_s: float = 120.0, drain_s: float = 15.0, state: Path | None = None,
        orphan_s: float = 60.0, token: str = "",
    ) -> None:  # fmt: skip
        if "{port}" not in command:
            hint = "such as 'tenon serve . --port {port}'"
            raise UsageError(sentence("a command with {port} in it", f"'{command}'", at="fleet", hint=hint))
        self.command = command
        self.start_s = start_s
        self.drain_s = drain_s
        self.orphan_s = orphan_s if state is not None else 0.0
        self.token = token
        self.state = state
        self._name = hashlib.sha256(str(state.resolve()).encode()).hexdigest()[:16] if state else secrets.token_hex(8)
        self._running: dict[str, tuple[Machine, psutil.Process]] = {}
        self._ports: set[int] = set()  # of those that are being started
        self._lock: IO[bytes] | None = None
        self._warden: subprocess.Popen[bytes] | None = None

    def adopt(self) -> Sequence[Machine]:
        """Take over the replicas of a gateway that was killed; UsageError when another one has them."""
        self._guard()
        for port, process in marked(self._name).items():
            name = f"127.0.0.1:{port}"
            if name not in self._running:
                self._running[name] = (Machine(name=name, url=f"http://{name}", start_s=0.0), process)
        return self.list()

    async def start(self) -> Machine:
        """Start one more replica and return when it is ready; UsageError when it ends or is not ready in time."""
        self._guard()
        self._admit()
        port = _free_port(self._ports)
        self._ports.add(port)
        began = monotonic()
        machine = Machine(name=f"127.0.0.1:{port}", url=f"http://127.0.0.1:{port}", start_s=0.0)
        remote = Remote(machine.url)
        process: Any = None
        try:
            process = await asyncio.to_thread(self._spawn, port)
            while not await is_ready(remote):
                if not _alive(process):
                    got = f"an end with {process.wait(0)}{self._last_words(port)}"
                    raise UsageError(sentence("a replica that answers", got, at=self.command))
                if monotonic() - began > self.start_s:
                    got = f"none within {self.start_s:g} s{self._last_words(port)}"
                    raise UsageError(sentence("a replica that is ready", got, at=self.command))
                await asyncio.sleep(POLL_S)
        except BaseException:  # the edge of a start: whatever ended it, no process is left behind
            self._ports.discard(port)
            if process is not None:
                await _end(process, 0.0)
            if not (self._running or self._ports):
                await self._dismiss()
            raise
        finally:
            self._ports.discard(port)
            await remote.close()
        machine = Machine(name=machine.name, url=machine.url, start_s=monotonic() - began)
        self._running[machine.name] = (machine, process)
        return machine

    async def stop(self, name: str) -> None:
        """Stop a replica: it may drain for `drain_s`, then it is killed."""
        found = self._running.pop(name, None)
        if found is not None:
            await _end(found[1], self.drain_s)
            if not (self._running or self._ports):
                await self._dismiss()

    def list(self) -> Sequence[Machine]:
        """Return the replicas that run; one that has ended by itself is not among them."""
        self._running = {name: both for name, both in self._running.items() if _alive(both[1])}
        return [machine for machine, _ in self._running.values()]

    async def close(self) -> None:
        """Stop everything that was started or taken over here, and let the state file go."""
        await asyncio.gather(*(self.stop(name) for name in tuple(self._running)))
        await self._dismiss()
        self.release()

    def release(self) -> None:
        """Let the state file go, for another gateway to take."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    async def _dismiss(self) -> None:
        """Let the warden go: nothing runs that could be left behind."""
        warden, self._warden = self._warden, None
        if warden is not None and warden.stdin is not None:
            try:
                warden.stdin.write(b"done\n")
                warden.stdin.close()
            except BrokenPipeError:
                pass
            await asyncio.to_thread(warden.wait)

    # ── processes ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _guard(self) -> None:
        """Hold the fleet's lock, and have a warden that outlives us; once."""
        if self._warden is not None and self._warden.poll() is None:
            return
        lock = str(self.state) if self.state is not None else ""
        if self.state is not None and self._lock is None:
            self._lock = _locked(self.state)
        words = [self._name, str(self.orphan_s), str(self.drain_s), lock, str(os.getpid())]
        words = [sys.executable, "-m", "tenon.serving.warden", *words]
        self._warden = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True)

    def _admit(self) -> None:
        """Refuse to start what this machine has no memory for, going by the largest that runs."""
        sizes = [_resident(process) for _, process in self._running.values()]
        free = psutil.virtual_memory().available
        if sizes and max(sizes) * ROOM > free:
            got = f"{free / 1e9:.1f} GB, and a replica holds {max(sizes) / 1e9:.1f} GB"
            raise UsageError(sentence("memory for one more replica", got, at="this machine", hint="it is tried again"))

    def _spawn(self, port: int) -> psutil.Popen:
        words = [word.replace("{port}", str(port)) for word in shlex.split(self.command)]
        env = {**os.environ, MARK: f"{self._name}:{port}"}
        if self.token:
            env["TENON_SERVE__FLEET_TOKEN"] = self.token
        path = self._log(port)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        said = path.open("wb") if path is not None else None
        try:
            return psutil.Popen(
                words, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=env, start_new_session=True
            )
        except OSError as error:
            got = error.strerror or str(error)
            raise UsageError(sentence("a command that starts", got, at=words[0])) from error
        finally:
            if said is not None:
                said.close()

    def _log(self, port: int) -> Path | None:
        return self.state.with_name("replicas") / f"{port}.log" if self.state is not None else None

    def _last_words(self, port: int) -> str:
        """Return the last line that a replica wrote, for the error that tells of its end."""
        path = self._log(port)
        if path is None:
            return ""
        try:
            with path.open("rb") as file:
                file.seek(max(path.stat().st_size - SAID_BYTES, 0))
                lines = file.read().decode("utf-8", "replace").strip().splitlines()
        except OSError:
            return ""
        last = re.sub(r"\x1b\[[0-9;]*m|[\x00-\x1f\x7f]", "", lines[-1])[:200] if lines else ""
        return f", and '{last}'" if last else ""


def _locked(path: Path) -> IO[bytes]:
    """Take the fleet's lock and write who has it; a warden holds it for moments, a gateway for its life."""
    until = monotonic() + LOCK_S
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab", buffering=0)
        while not takes(file):
            if monotonic() > until:
                file.close()
                got, hint = "it held by another gateway", "stop that one, or give another --state"
                raise UsageError(sentence("a fleet of its own", got, at=str(path), hint=hint))
            sleep(POLL_S)
        file.truncate(0)
        file.write(str(os.getpid()).encode())
    except OSError as error:
        raise StoreError(sentence("a file for the fleet", str(error), at=str(path))) from error
    return file


async def _end(process: psutil.Process, drain_s: float) -> None:
    """End a process: asked first, then made to, with whatever it has started."""
    await asyncio.to_thread(end_all, [process], drain_s)


def _alive(process: psutil.Process) -> bool:
    """Say whether a process runs; one that has ended and waits to be reaped does not."""
    if isinstance(process, psutil.Popen):
        return process.poll() is None
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _free_port(taken: set[int]) -> int:
    while True:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port: int = sock.getsockname()[1]
        if port not in taken:
            return port

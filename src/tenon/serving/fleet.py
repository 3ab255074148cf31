"""A fleet starts, stops and lists replicas. `LocalFleet` runs them as processes of this machine.

    class Machines(Protocol):
        async def start(self) -> Machine            # ready to answer
        async def stop(self, name: str) -> None     # SIGTERM, then SIGKILL when it does not drain
        def list(self) -> Sequence[Machine]

A cluster is another implementation of the same three. The command of a local replica is given with `{port}` where its
port belongs; it is ready when its address says so on one of the paths a gateway probes.
"""

from __future__ import annotations

import asyncio
import shlex
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

from tenon.errors import UsageError, sentence
from tenon.serving.gateway import is_ready
from tenon.serving.replica import Remote

POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One replica of a fleet: what it is called, where it answers, how long it took to be ready."""

    name: str
    url: str
    start_s: float


class Machines(Protocol):
    """What scaling asks of whoever runs machines."""

    async def start(self) -> Machine:
        """Start one more replica and return when it is ready."""
        ...

    async def stop(self, name: str) -> None:
        """Stop a replica after it has finished what it has begun."""
        ...

    def list(self) -> Sequence[Machine]:
        """Return the replicas that run."""
        ...


class LocalFleet:
    """Replicas as processes of this machine; everything started is stopped by `close`."""

    def __init__(self, command: str, *, start_s: float = 120.0, drain_s: float = 15.0) -> None:
        if "{port}" not in command:
            hint = "such as 'tenon serve . --port {port}'"
            raise UsageError(sentence("a command with {port} in it", f"'{command}'", at="fleet", hint=hint))
        self.command = command
        self.start_s = start_s
        self.drain_s = drain_s
        self._running: dict[str, tuple[Machine, asyncio.subprocess.Process]] = {}

    async def start(self) -> Machine:
        """Start one more replica and return when it is ready; UsageError when it ends or is not ready in time."""
        port = _free_port()
        began = monotonic()
        words = [word.replace("{port}", str(port)) for word in shlex.split(self.command)]
        try:
            process = await asyncio.create_subprocess_exec(*words, stdin=asyncio.subprocess.DEVNULL)
        except OSError as error:
            got = error.strerror or str(error)
            raise UsageError(sentence("a command that starts", got, at=words[0])) from error
        url = f"http://127.0.0.1:{port}"
        remote = Remote(url)
        try:
            while not await is_ready(remote):
                if process.returncode is not None:
                    got = f"an end with {process.returncode}"
                    raise UsageError(sentence("a replica that answers", got, at=self.command))
                if monotonic() - began > self.start_s:
                    got = f"none within {self.start_s:g} s"
                    raise UsageError(sentence("a replica that is ready", got, at=self.command))
                await asyncio.sleep(POLL_S)
        except BaseException:  # the edge of a start: whatever ended it, no process is left behind
            await _end(process, 0.0)
            raise
        finally:
            await remote.close()
        machine = Machine(name=f"127.0.0.1:{port}", url=url, start_s=monotonic() - began)
        self._running[machine.name] = (machine, process)
        return machine

    async def stop(self, name: str) -> None:
        """Stop a replica: it may drain for `drain_s`, then it is killed."""
        found = self._running.pop(name, None)
        if found is not None:
            await _end(found[1], self.drain_s)

    def list(self) -> Sequence[Machine]:
        """Return the replicas that run; one that has ended by itself is not among them."""
        self._running = {name: both for name, both in self._running.items() if both[1].returncode is None}
        return [machine for machine, _ in self._running.values()]

    async def close(self) -> None:
        """Stop everything that was started here."""
        await asyncio.gather(*(self.stop(name) for name in tuple(self._running)))


async def _end(process: asyncio.subprocess.Process, drain_s: float) -> None:
    """End a process: asked first, then made to."""
    ways: list[tuple[Callable[[], None], float | None]] = [(process.terminate, drain_s), (process.kill, None)]
    for way, wait_s in ways:
        if process.returncode is not None:
            return
        try:
            way()
        except ProcessLookupError:
            pass
        try:
            async with asyncio.timeout(wait_s):
                await process.wait()
        except TimeoutError:
            continue


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port

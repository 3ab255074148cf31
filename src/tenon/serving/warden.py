"""The warden ends a fleet's replicas when their gateway was killed and none came back for them.

    python -m tenon.serving.warden NAME ORPHAN_S DRAIN_S LOCK GATEWAY

It is a process of its own that does nothing but wait for the end of its standard input: a gateway that stops says so
first, one that is killed says nothing. Then it waits `orphan_s` for another gateway to take the fleet's lock, which
means that the replicas have been taken over; otherwise it takes the lock itself and ends every process that carries the
fleet's mark in its environment. Who holds the lock has its process id in it: a gateway that dies lets go of its pipe a
moment before its lock, and would be taken for another one. It imports little, because it is there all the time.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import psutil

MARK = "TENON_FLEET"  # in the environment of a replica: the fleet's name and the port
POLL_S = 0.2


def marked(name: str) -> dict[int, psutil.Process]:
    """Return the processes of a fleet by port: of each replica the first, not what it has started."""
    found: dict[int, list[psutil.Process]] = {}
    for process in psutil.process_iter():
        try:
            fleet, _, port = process.environ().get(MARK, "").partition(":")
            if fleet == name and port.isdigit() and process.status() != psutil.STATUS_ZOMBIE:
                found.setdefault(int(port), []).append(process)
        except (psutil.Error, OSError):
            continue
    return {port: min(each, key=lambda one: (one.create_time(), one.pid)) for port, each in found.items()}


def end_all(processes: Sequence[psutil.Process], drain_s: float) -> None:
    """End processes and what they have started: asked first, after `drain_s` made to; returns when they are gone."""
    left = [*processes]
    for process in processes:
        try:
            left += process.children(recursive=True)
            if drain_s > 0:
                process.terminate()
        except psutil.Error:
            continue
    if drain_s > 0:
        psutil.wait_procs(processes, timeout=drain_s)
    for process in left:
        try:
            process.kill()
        except psutil.Error:
            continue
    psutil.wait_procs(left, timeout=5.0)


def watch(name: str, orphan_s: float, drain_s: float, lock: Path | None, gateway: str) -> None:
    """Wait for the end of a gateway (its process id), then for another gateway, then end the fleet."""
    if sys.stdin.buffer.readline() == b"done\n":
        return
    until = time.monotonic() + orphan_s
    with lock.open("ab") if lock is not None else Path(os.devnull).open("rb") as held:
        while lock is not None:
            if takes(held):
                if time.monotonic() >= until:
                    break
                fcntl.flock(held, fcntl.LOCK_UN)
            elif lock.read_text("utf-8") != gateway:
                return  # another gateway has it: the replicas are that one's
            time.sleep(POLL_S)
        end_all(list(marked(name).values()), drain_s)


def takes(held: IO[bytes]) -> bool:
    """Take the lock of an open file, and say whether it could be had."""
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    watched, orphan, drain, lock_path, watching = sys.argv[1:]
    watch(watched, float(orphan), float(drain), Path(lock_path) if lock_path else None, watching)

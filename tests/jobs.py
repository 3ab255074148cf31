"""What tests of the engine have workers do: each imports this module by its name, from the path it is told."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tenon.errors import InputError, sentence

Job = dict[str, Any]
PLACE = Path(__file__).parent


def double(job: Job) -> Job:
    return {"n": job["n"] * 2, "pid": os.getpid(), "job": job}


def slow_first(job: Job) -> Job:
    time.sleep(0.3 if job["n"] == 0 else 0.0)
    return job


def chatter(job: Job) -> Job:
    print("this goes to", sys.stdout.name, flush=True)  # noqa: T201
    os.write(1, b"and so does this" + os.linesep.encode())
    return {"read": sys.stdin.read()}


def refuse(job: Job) -> Job:
    if job["n"] == 2:
        raise InputError(sentence("a small number", "2", at="here"))
    return job


def break_down(job: Job) -> Job:
    return {"n": 1 / job["n"]}


def die(job: Job) -> Job:
    if job["n"] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return job


def die_once(job: Job) -> Job:
    mark = Path(job["mark"])
    if job["n"] == 1 and not mark.exists():
        mark.touch()
        os._exit(3)
    return {"n": job["n"]}


def no_dict(job: Job) -> Any:
    return [1]


def large(job: Job) -> Job:
    return {"bytes": b"x" * job["n"]}


def begun(job: Job) -> Job:
    Path(job["folder"], str(job["n"])).touch()
    time.sleep(job.get("seconds", 0))
    return job


def threads(job: Job) -> Job:
    return {"threads": os.environ["OMP_NUM_THREADS"]}


def pid_then_wait(job: Job) -> Job:
    Path(job["file"]).write_text(str(os.getpid()))
    time.sleep(60)
    return {}

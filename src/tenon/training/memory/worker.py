"""Runs steps in a process of its own and answers with traces: one line of JSON asked, one line answered.

The process is thrown away afterwards, because it changes PyTorch (see `emulate`) and imports the user's code. What the
user's code prints goes to stderr; the channel is kept apart. It is started by `predict` as ``python -m
tenon.training.memory.worker`` and never sees a GPU (CUDA_VISIBLE_DEVICES is empty). The first line says the file, the
device and whether tensors are fake; every further line asks for one run: the batch, the change, how many steps. An
answer is a trace with counts, or the fault in words with its place.

A fault under fake tensors is not told apart into what they cannot do and what is wrong in the user's code: whoever
asked tries real tensors next, which fail too where the code is wrong. With real tensors the process may take what the
machine has left and no more, so that a model too large ends with an error and not with the machine.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
import warnings
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from tenon.errors import TenonError
from tenon.training.memory.device import Device
from tenon.training.memory.step import Change, Job, Parts, load, run


def main() -> None:
    """Answer requests from stdin until it ends."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # prints of the user's code are talk
    warnings.simplefilter("ignore")
    hello = json.loads(sys.stdin.readline())
    try:
        asked = _Asked(hello)
    except Exception as error:  # noqa: BLE001 - the edge to the user's file: whatever it raises is told
        _answer(channel, _fault(error, hello["path"]))
        return
    _answer(channel, {"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = asked.run(request)
        except Exception as error:  # noqa: BLE001 - the edge to the user's model: whatever it raises is told
            answer = _fault(error, hello["path"])
        _answer(channel, answer)
        gc.collect()


class _Asked:
    """The user's file, loaded under the simulated device."""

    def __init__(self, hello: dict[str, Any]) -> None:
        from tenon.training.memory import emulate

        self.device = Device(**{**hello["device"], "capability": tuple(hello["device"]["capability"])})
        self.fake = bool(hello["fake"])
        self.keep = emulate.install(self.device, fake=self.fake)
        if not self.fake:
            _bounded()
        with emulate.here():
            self.parts: Parts = load(Path(hello["path"]))

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run one step as asked and return its trace."""
        from tenon.training.memory import emulate
        from tenon.training.memory.record import Recorder

        recorder = Recorder(self.device, self.fake)
        fakes = import_module("torch._subclasses.fake_tensor")
        mode = fakes.FakeTensorMode(allow_non_fake_inputs=True) if self.fake else None
        job = Job(
            parts=self.parts,
            change=Change(**request["change"]),
            batch=int(request["batch"]),
            recorder=recorder,
            mode=mode,
            steps=int(request["steps"]),
        )
        with emulate.here():
            counts = run(job)
        return {"trace": recorder.trace().to_dict(), "counts": counts}


def _bounded() -> None:
    """Let this process take no more memory than the machine has left, where the system can hold it to that."""
    import psutil

    try:
        import resource
    except ImportError:
        return  # Windows
    left = int(psutil.virtual_memory().available * 0.9) + int(psutil.Process().memory_info().rss)
    resource.setrlimit(resource.RLIMIT_DATA, (left, left))


def _fault(error: Exception, path: str) -> dict[str, Any]:
    """Say what went wrong and where in the user's file."""
    folder = str(Path(path).parent)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(folder)]
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else path
    text = str(error).strip().splitlines()
    said = str(error) if isinstance(error, TenonError) else f"{type(error).__name__}: {text[0] if text else ''}"
    return {"fault": said, "where": where, "ours": isinstance(error, TenonError)}


def _answer(channel: IO[str], body: dict[str, Any]) -> None:
    channel.write(json.dumps(body, separators=(",", ":")) + "\n")
    channel.flush()


if __name__ == "__main__":
    main()

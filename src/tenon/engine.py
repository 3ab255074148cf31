"""Where heavy work runs: on this machine, or on a Ray cluster; the same call.

    with engine.open(config.engine) as workers:
        for result in workers.map("tenon.ingest.part:read", [{"path": ..., "start": 0}, ...]):
            ...

A job is plain data (a dict of what JSON or msgpack can say), a function is named ``module:function`` and takes and
returns such a dict; results come in the order of the jobs, a bounded number ahead. Nothing is pickled: what cannot be
said as data cannot cross, and so a job can be logged, repeated, and run by another language.

`Local` runs ``python -m tenon.engine`` as often as there are workers and speaks over pipes: four bytes of length,
then msgpack. A worker that dies (killed for memory, a crash in compiled code) is replaced and its job tried again a
bounded number of times, then told in words with the signal. A worker whose parent dies ends at once: it reads its pipe
in a thread and sees the end of it. With one worker the job runs in this process, through the same encoding and the same
wording of errors, so that what works with one works with many.

An error comes back as (type name, message, traceback). Errors of tenon keep their class; any other becomes a TenonError
that names it and carries the traceback as a note. Rejected: multiprocessing (pickles, and forks a process that has
threads), concurrent.futures (a dead worker breaks the whole pool).

`cores` and `memory_bytes` say what this process may really use: the affinity mask, and the limits of its control group,
which a container sets and `os.cpu_count()` does not see.
"""

from __future__ import annotations

import importlib
import math
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import msgspec

from tenon import errors
from tenon.config import EngineConfig
from tenon.errors import ConfigError, TenonError, UsageError, missing_extra, sentence
from tenon.limits import EngineLimits

Progress = Callable[[float, float, str], None]
Job = Mapping[str, Any]

LENGTH = struct.Struct(">I")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS")
END_S = 5.0  # how long a worker may take to end when asked


def quiet(done: float, total: float, said: str) -> None:
    """Tell nobody: the progress that is used when none is asked for."""


def open(config: EngineConfig | None = None, limits: EngineLimits | None = None) -> Local | Ray:
    """Open the engine that the configuration names; close it with `with`."""
    config, limits = config or EngineConfig(), limits or EngineLimits()
    if config.kind == "local":
        return Local(config.workers, limits=limits)
    if config.kind == "ray":
        return Ray(config.ray_address, limits=limits)
    raise ConfigError(sentence("'local' or 'ray'", f"'{config.kind}'", at="engine.kind"))


# ── what this process may use ────────────────────────────────────────────────────────────────────────────────────────


def cores(root: Path = Path("/")) -> int:
    """Return how many cores this process may use: its affinity, and its control group's quota rounded up."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    for quota in _quotas(root):
        count = min(count, max(math.ceil(quota), 1))
    return count


def memory_bytes(root: Path = Path("/")) -> int:
    """Return how much memory this process may use: of the machine, its control group, and its own address space."""
    bounds = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        bounds.append(soft)
    for text in _settings(root, "", "memory.max") + _settings(root, "memory", "memory.limit_in_bytes"):
        with suppress(ValueError):  # "max": no limit
            bounds.append(int(text))
    return min(bounds)


def _quotas(root: Path) -> Iterator[float]:
    """Yield the processor quotas, in cores, of the control groups this process is in."""
    for text in _settings(root, "", "cpu.max"):
        quota, _, period = text.partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            yield int(quota) / int(period)
    quotas, periods = _settings(root, "cpu", "cpu.cfs_quota_us"), _settings(root, "cpu", "cpu.cfs_period_us")
    for quota, period in zip(quotas, periods, strict=False):
        if quota.isdigit() and period.isdigit() and int(period):  # a quota of -1 is none
            yield int(quota) / int(period)


def _settings(root: Path, controller: str, name: str) -> list[str]:
    """Read a file of this process's control group and of every group above it; version 2 has the controller ""."""
    try:
        lines = (root / "proc/self/cgroup").read_text("ascii").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        mounts = ("sys/fs/cgroup", "sys/fs/cgroup/unified") if not controller else (f"sys/fs/cgroup/{controllers}",)
        for mount in mounts:
            group = root / mount / path.strip("/")
            for folder in [group, *group.parents]:
                with suppress(OSError):
                    found.append((folder / name).read_text("ascii").strip())
                if folder == root / mount:
                    break
    return found


# ── this machine ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Local:
    """Workers on this machine, started when first needed and kept for the next `map`."""

    __slots__ = ("_idle", "_limits", "_lock", "workers")

    def __init__(self, workers: int = 0, *, limits: EngineLimits | None = None) -> None:
        if workers < 0:
            raise UsageError(sentence("0 workers (as many as cores) or more", str(workers), at="engine.workers"))
        self.workers = workers or cores()
        self._limits = limits or EngineLimits()
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()

    def map(self, function: str, jobs: Sequence[Job], *, progress: Progress = quiet) -> Iterator[dict[str, Any]]:
        """Yield the function's result for every job, in order; jobs run ahead of the taker by a bounded number."""
        _named(function)
        if self.workers == 1 or len(jobs) <= 1:
            return self._here(function, jobs, progress)
        return self._spread(function, jobs, progress)

    def close(self) -> None:
        """End the workers."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _here(self, function: str, jobs: Sequence[Job], progress: Progress) -> Iterator[dict[str, Any]]:
        for number, job in enumerate(jobs):
            answer = _perform(_message(function, job, number, self._limits))
            yield _result(answer, function, number)
            progress(number + 1, len(jobs), function)

    def _spread(self, function: str, jobs: Sequence[Job], progress: Progress) -> Iterator[dict[str, Any]]:
        board = _Board(len(jobs), ahead=self.workers * self._limits.ahead)
        threads = [
            threading.Thread(target=self._serve, args=(board, function, jobs), name="tenon-engine", daemon=True)
            for _ in range(min(self.workers, len(jobs)))
        ]
        for thread in threads:
            thread.start()
        try:
            for number in range(len(jobs)):
                yield _result(board.take(number), function, number)
                progress(number + 1, len(jobs), function)
        finally:
            # Also when the taker stops early: what is still at work is ended, not left to run for nobody.
            board.stop()
            for thread in threads:
                thread.join()

    def _serve(self, board: _Board, function: str, jobs: Sequence[Job]) -> None:
        """Give jobs to one worker until there are none left, and replace it when it dies."""
        worker: _Worker | None = None
        try:
            while (number := board.next()) is not None:
                try:
                    message = _message(function, jobs[number], number, self._limits)
                except TenonError as error:
                    board.put(number, error)
                    continue
                died: list[str] = []
                while True:
                    worker = worker or self._hire()
                    board.at_work(worker)
                    answer = worker.ask(message)
                    board.at_rest(worker)
                    if isinstance(answer, bytes):
                        board.put(number, answer)
                        break
                    worker = None
                    died.append(answer)
                    if board.stopped:
                        return
                    if len(died) > self._limits.retries:
                        board.put(number, _died(function, number, died))
                        break
        except BaseException as error:  # noqa: BLE001 - the edge of a thread: whoever takes the results must hear of it
            board.fail(error)
        finally:
            if worker is not None:
                self._release(worker)

    def _hire(self) -> _Worker:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return _Worker(threads=max(cores() // self.workers, 1))

    def _release(self, worker: _Worker) -> None:
        with self._lock:
            if worker.alive and len(self._idle) < self.workers:
                self._idle.append(worker)
                return
        worker.end()


class _Board:
    """Which jobs are given out and which answers are in; the bound on how far jobs run ahead of the taker."""

    __slots__ = ("_ahead", "_answers", "_busy", "_change", "_count", "_error", "_given", "_taken", "stopped")

    def __init__(self, count: int, *, ahead: int) -> None:
        self._count = count
        self._ahead = ahead
        self._given = 0
        self._taken = 0
        self._answers: dict[int, bytes | TenonError] = {}
        self._busy: set[_Worker] = set()
        self._error: BaseException | None = None
        self._change = threading.Condition()
        self.stopped = False

    def next(self) -> int | None:
        """Return the number of the next job, when the taker is near enough; None when there is none."""
        with self._change:
            while not self.stopped and self._given < self._count and self._given >= self._taken + self._ahead:
                self._change.wait()
            if self.stopped or self._given >= self._count:
                return None
            self._given += 1
            return self._given - 1

    def put(self, number: int, answer: bytes | TenonError) -> None:
        with self._change:
            self._answers[number] = answer
            self._change.notify_all()

    def take(self, number: int) -> bytes | TenonError:
        with self._change:
            while number not in self._answers:
                if self._error is not None:
                    raise self._error
                self._change.wait()
            self._taken = number + 1
            self._change.notify_all()
            return self._answers.pop(number)

    def fail(self, error: BaseException) -> None:
        with self._change:
            self._error = error
            self._change.notify_all()

    def at_work(self, worker: _Worker) -> None:
        with self._change:
            self._busy.add(worker)
            if self.stopped:
                worker.kill()

    def at_rest(self, worker: _Worker) -> None:
        with self._change:
            self._busy.discard(worker)

    def stop(self) -> None:
        """Give out nothing more, and kill what is at work."""
        with self._change:
            self.stopped = True
            for worker in self._busy:
                worker.kill()
            self._change.notify_all()


class _Worker:
    """A process that performs one job at a time."""

    __slots__ = ("_process",)

    def __init__(self, *, threads: int) -> None:
        place = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
        # Each worker takes its share of the cores: libraries that each start a thread per core would fight.
        shares = {name: os.environ.get(name, str(threads)) for name in THREADS}
        self._process: subprocess.Popen[bytes] = subprocess.Popen(
            [sys.executable, "-m", "tenon.engine"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **shares, "PYTHONPATH": place},
        )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, message: bytes) -> bytes | str:
        """Return the answer to a job, or how the worker died."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            _send(stdin, message)
            answer = _receive(stdout)
        except (OSError, ValueError):
            answer = None
        if answer is not None:
            return answer
        self.kill()
        code = self._process.wait()
        self._shut()
        if code >= 0:
            return f"exit code {code}"
        name = signal.Signals(-code).name
        return f"{name}, as the kernel does when memory runs out" if name == "SIGKILL" else name

    def kill(self) -> None:
        with suppress(OSError):
            self._process.kill()

    def end(self) -> None:
        """Close the pipe, which ends an idle worker, and make sure of it."""
        self._shut()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()

    def _shut(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


# ── a cluster ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Ray:
    """Workers of a Ray cluster; an empty address starts one on this machine for as long as the engine is open.

    tenon and the code of the jobs must be installed on the cluster's machines: only names and data are sent.
    """

    __slots__ = ("_limits", "_ours", "_perform", "_ray", "nodes", "workers")

    def __init__(self, address: str = "", *, limits: EngineLimits | None = None) -> None:
        self._limits = limits or EngineLimits()
        try:
            import ray
        except ImportError as error:
            raise missing_extra("ray", "ray", "run work on a cluster") from error
        self._ray: Any = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            place = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
            setting: dict[str, Any] = {"runtime_env": {"env_vars": {"PYTHONPATH": place}}} if not address else {}
            start = {"address": address} if address else {"num_cpus": cores(), "include_dashboard": False}
            try:
                ray.init(log_to_driver=False, configure_logging=False, **start, **setting)
            except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
                hint = "check engine.ray_address, and that the cluster runs the same Ray and Python"
                said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise ConfigError(
                    sentence("a Ray cluster", f"'{said}'", at=address or "this machine", hint=hint)
                ) from error
        self.workers = max(int(self._ray.cluster_resources().get("CPU", 1)), 1)
        self.nodes = sum(one["Alive"] for one in self._ray.nodes())
        self._perform = ray.remote(_perform).options(max_retries=self._limits.retries, num_cpus=1)

    def map(self, function: str, jobs: Sequence[Job], *, progress: Progress = quiet) -> Iterator[dict[str, Any]]:
        """Yield the function's result for every job, in order; jobs run ahead of the taker by a bounded number."""
        _named(function)
        return self._spread(function, jobs, progress)

    def close(self) -> None:
        """Leave the cluster, and end it when we have started it."""
        if self._ours and self._ray.is_initialized():
            self._ray.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _spread(self, function: str, jobs: Sequence[Job], progress: Progress) -> Iterator[dict[str, Any]]:
        window = self.workers * self._limits.ahead
        waiting: list[Any] = []
        try:
            for number in range(len(jobs)):
                while len(waiting) < window and number + len(waiting) < len(jobs):
                    at = number + len(waiting)
                    waiting.append(self._perform.remote(_message(function, jobs[at], at, self._limits)))
                try:
                    answer: bytes | TenonError = self._ray.get(waiting.pop(0))
                except self._ray.exceptions.RayError as error:
                    said = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
                    answer = _died(function, number, [said] * (self._limits.retries + 1))
                yield _result(answer, function, number)
                progress(number + 1, len(jobs), function)
        finally:
            for reference in waiting:
                self._ray.cancel(reference, force=True)


# ── jobs and answers ─────────────────────────────────────────────────────────────────────────────────────────────────


def _named(function: str) -> None:
    module, _, name = function.partition(":")
    if not module or not name.isidentifier():
        raise UsageError(sentence("module:function", f"'{function}'", at="engine.map"))


def _message(function: str, job: Job, number: int, limits: EngineLimits) -> bytes:
    """Write a job as bytes."""
    try:
        message = msgspec.msgpack.encode([function, job, limits.message_bytes])
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UsageError(sentence("a job of plain data", f"'{error}'", at=f"{function} job {number}")) from error
    if len(message) > limits.message_bytes:
        wanted = f"a job of at most {limits.message_bytes:,} bytes"
        hint = "give a path or a blob's digest instead of the data"
        raise UsageError(sentence(wanted, f"{len(message):,}", at=f"{function} job {number}", hint=hint))
    return message


def _perform(message: bytes) -> bytes:
    """Do one job: bytes in, bytes out; an error is an answer as well."""
    try:
        function, job, most = msgspec.msgpack.decode(message)
        module, _, name = function.partition(":")
        result = getattr(importlib.import_module(module), name)(job)
        answer = msgspec.msgpack.encode(["ok", result])
        if len(answer) <= most:
            return answer
        hint = "write it to a file or a blob and return its name"
        told = [
            "UsageError",
            sentence(f"a result of at most {most:,} bytes", f"{len(answer):,}", at=function, hint=hint),
        ]
        return msgspec.msgpack.encode(["error", *told, ""])
    except Exception as error:  # noqa: BLE001 - the edge of a worker: every error goes back as data
        told = [type(error).__name__, str(error), traceback.format_exc()]
        return msgspec.msgpack.encode(["error", *told])


def _result(answer: bytes | TenonError, function: str, number: int) -> dict[str, Any]:
    """Read an answer: the result, or raise what the job raised."""
    if isinstance(answer, TenonError):
        raise answer
    kind, *rest = msgspec.msgpack.decode(answer)
    if kind == "ok":
        if not isinstance(rest[0], dict):
            got = type(rest[0]).__name__
            raise UsageError(sentence("a dict from the function", got, at=f"{function} job {number}"))
        return rest[0]
    name, message, trace = rest
    ours = getattr(errors, name, None)
    if isinstance(ours, type) and issubclass(ours, TenonError):
        error = ours(message)
    else:
        error = TenonError(sentence("the job to end well", f"{name}: {message}", at=f"{function} job {number}"))
    if trace:
        error.add_note(trace)
    raise error


def _died(function: str, number: int, how: Sequence[str]) -> TenonError:
    times = f"{len(how)} workers that died ({', '.join(dict.fromkeys(how))})"
    hint = "make the jobs smaller, or set engine.workers lower so that each has more memory"
    return TenonError(sentence("the job to end", times, at=f"{function} job {number}", hint=hint))


def _send(pipe: IO[bytes], message: bytes) -> None:
    pipe.write(LENGTH.pack(len(message)) + message)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes | None:
    """Read one message; None at the end of the pipe. Both ends are ours: its size was bounded when it was sent."""
    head = pipe.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    body = pipe.read(length)
    return body if len(body) == length else None


def serve() -> None:
    """Be a worker: perform jobs from standard input until it ends, answering on what was standard output."""
    jobs = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    # What a job prints must not end up between the answers.
    os.dup2(2, 1)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    waiting: list[bytes] = []
    arrived = threading.Semaphore(0)

    def read() -> None:
        while (message := _receive(jobs)) is not None:
            waiting.append(message)
            arrived.release()
        os._exit(0)  # the parent has ended or has no more work: whatever is running is for nobody

    threading.Thread(target=read, daemon=True).start()
    while True:
        arrived.acquire()
        _send(answers, _perform(waiting.pop()))


if __name__ == "__main__":
    serve()

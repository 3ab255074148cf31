"""The same training script or function on the workers of a Ray cluster, by Ray Train; begun again when a worker dies.

    ended = run(Target.of("train.py:fit", ["folder=/shared/run"]), nproc=2, folder=Path("/shared/watch"))

Ray Train starts the workers, opens the process group and, when a worker dies, begins all of them again, at most
`restarts` times; `Ranks.of` joins the group that is there, so that guard, run and checkpoints are the same as under
`launch`. Checkpoints are ours and not Ray's (which keeps whatever folder it is handed, pickled or not): each attempt
goes on from the newest good one in a folder that all workers see. Failures are noted in `folder` where they are seen,
in Ray's controller, and come back as the same findings.

A run that its guard refused ends without being begun again. A worker's watchdog is a process beside it, on its own
machine (`BESIDE`): after a silence it has the worker write its stacks and collectives into `folder`, says so there, and
ends it, whereupon Ray begins again. Hanging ranks fall silent together, so none of these needs word from another, and
the driver only reads what they wrote. Rejected: a thread in the worker, for the interpreter it needs may be what hangs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from tenon import engine
from tenon.errors import MissingError, TrainingError, UsageError, missing_extra, sentence
from tenon.finding import Finding
from tenon.training import collectives, watchdog
from tenon.training.launch import RECORDED, given_up
from tenon.training.ranks import REFUSED, refusal
from tenon.training.target import Target
from tenon.training.together import REFUSAL
from tenon.training.watchdog import ATTEMPT, FOLDER, POLL_S, Ended

FAILURES = "failures.jsonl"
PATIENCE = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
START_S = 600.0  # Ray's own 60 s are short for importing PyTorch where others are at work
RECLAIMED = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
WORKER = re.compile(r"health check failed.*?hostname='(?P<host>[^']+)'.*?pid=(?P<pid>\d+)")  # how Ray Train words it

# Ends a worker that was silent for too long, when it has written its stacks and collectives; ends with the worker.
BESIDE = """
import os, signal, struct, sys, time
pid, place, silence, start = int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
while os.getppid() == pid:
    time.sleep(0.2)
    try:
        with open(place + ".beat", "rb") as file: said, at, step = struct.unpack("<qdq", file.read())
    except (OSError, struct.error): continue
    if not said or time.time() - at < (silence if step >= 0 else start): continue
    try:
        os.kill(pid, signal.SIGUSR1)
        pipe = os.open(place + ".ask", os.O_WRONLY | os.O_NONBLOCK)
        os.write(pipe, b"?")
    except OSError: pass
    time.sleep(3)
    with open(place + ".writing", "w") as file: file.write(f"{pid} {at} {step} {time.time()}")
    os.rename(place + ".writing", place + ".late")
    time.sleep(5)
    os.kill(pid, signal.SIGKILL)
"""


def run(
    target: Target,
    *,
    nproc: int,
    folder: Path,
    silence_s: float = 600.0,
    start_s: float = 1_200.0,
    restarts: int = 3,
    address: str = "",
    tell: Callable[[Finding], None] = lambda finding: None,
) -> Ended:
    """Run a target in `nproc` workers of the cluster at `address` ("" starts one here), restarts bounded.

    `folder` must be one that the driver and all workers see. A rank with a guard that takes no step for `silence_s` is
    ended, `start_s` before its first. Findings are told when they are made. MissingError without what Ray Train needs.
    """
    if nproc < 1 or restarts < 0 or not silence_s > 0:
        got = f"nproc={nproc}, restarts={restarts}, silence_s={silence_s}"
        wanted = "nproc of 1 or more, restarts of 0 or more and a silence above 0"
        raise UsageError(sentence(wanted, got, at="cluster.run"))
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for old in (FAILURES, REFUSED):
        (folder / old).unlink(missing_ok=True)
    for attempt in folder.glob("attempt-*"):
        shutil.rmtree(attempt)
    findings: list[Finding] = []

    def say(finding: Finding) -> None:
        findings.append(finding)
        tell(finding)

    with engine.Ray(address) as cluster:
        trainer = _trainer(target, nproc, folder, restarts, (silence_s, start_s))
        if cluster.workers < nproc:
            hint = "give the cluster more cores, or take fewer processes"
            wanted = f"{nproc} cores for workers"
            raise MissingError(
                sentence(wanted, f"a cluster of {cluster.workers}", at=address or "this machine", hint=hint)
            )
        failed = ""
        try:
            with _setting(alone=cluster.nodes == 1), _followed(folder, nproc, restarts, say):
                trainer.fit()
        except Exception as error:  # noqa: BLE001 - the edge to Ray Train: it ends with errors of several libraries
            failed = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    failures = len(_lines(folder / FAILURES))
    refused = refusal(folder)
    if refused or failed:
        say(given_up(failures + 1 if refused else max(failures, 1), 1, refused or failed))
    return Ended(code=1 if failed or refused else 0, attempts=failures + (not failed), findings=tuple(findings))


@contextmanager
def _setting(*, alone: bool) -> Iterator[None]:
    """Have Ray wait longer for workers on a busy machine; it takes the word from the driver's environment.

    Where there is one machine `alone`, no other could go on when it is reclaimed: nothing needs to look out for that.
    """
    ours = {PATIENCE: str(START_S), **({RECLAIMED: "0"} if alone else {})}
    new = [name for name in ours if name not in os.environ]
    os.environ.update({name: ours[name] for name in new})
    try:
        yield
    finally:
        for name in new:
            del os.environ[name]


def _trainer(target: Target, nproc: int, folder: Path, restarts: int, patience: tuple[float, float]) -> Any:
    try:
        train: Any = import_module("ray.train")
        ray_torch: Any = import_module("ray.train.torch")
    except ImportError as error:
        raise missing_extra("ray[train]", "ray", "train on a cluster") from error

    class Noted(train.UserCallback):  # type: ignore[misc]
        """Called by Ray Train in its controller; writes down which worker failed of what."""

        def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
            note(str(folder), {rank: str(error) for rank, error in worker_exceptions.items()})

    ray: Any = import_module("ray")
    gpus = ray.cluster_resources().get("GPU", 0) >= nproc
    return ray_torch.TorchTrainer(
        begin,
        train_loop_config={
            "place": target.place,
            "function": target.function,
            "given": list(target.given),
            "folder": str(folder),
            "patience": list(patience),
        },
        scaling_config=train.ScalingConfig(num_workers=nproc, use_gpu=bool(gpus)),
        torch_config=ray_torch.TorchConfig(backend=None if gpus else "gloo"),
        run_config=train.RunConfig(
            name="tenon",
            storage_path=str(folder / "ray"),
            failure_config=train.FailureConfig(max_failures=restarts),
            callbacks=[Noted()],
            worker_runtime_env={"env_vars": {"TORCH_FR_BUFFER_SIZE": RECORDED}},
        ),
    )


def begin(job: dict[str, Any]) -> None:
    """Be one worker: run the target as one of the ranks whose group Ray Train has opened."""
    from ray import train

    folder, rank = Path(job["folder"]), train.get_context().get_world_rank()
    attempt = len(_lines(folder / FAILURES))  # noted before Ray begins again, so that it is the same on all ranks
    here = folder / f"attempt-{attempt}"
    here.mkdir(exist_ok=True)
    os.environ.update({ATTEMPT: str(attempt), FOLDER: str(here), "RANK": str(rank)})
    target = Target(place=job["place"], function=job["function"], given=tuple(job["given"]))
    words = [str(os.getpid()), str(here / f"rank-{rank}"), *map(str, job["patience"])]
    beside = subprocess.Popen([sys.executable, "-I", "-S", "-c", BESIDE, *words], stdin=subprocess.DEVNULL)
    try:
        target.call(os.environ)
    except TrainingError as error:
        if REFUSAL not in getattr(error, "__notes__", ()):
            raise
        if rank == 0:
            (folder / REFUSED).write_text(json.dumps({"said": str(error)}), "utf-8")
    finally:
        beside.kill()
        beside.wait()


def note(folder: str, failed: Mapping[int, str]) -> None:
    """Write down which ranks failed, and of what, for the driver to tell."""
    with Path(folder, FAILURES).open("a", encoding="utf-8") as file:
        file.write(json.dumps({str(rank): said for rank, said in failed.items()}) + "\n")


@contextmanager
def _followed(folder: Path, nproc: int, restarts: int, say: Callable[[Finding], None]) -> Iterator[None]:
    """Tell of each failure, and of each restart, as Ray's controller notes it."""
    done = threading.Event()

    def follow() -> None:
        told, last = 0, False
        while not last:
            last = done.wait(POLL_S)  # then one more look
            failures = _lines(folder / FAILURES)
            for attempt in range(told, len(failures)):
                hung = _hung(folder / f"attempt-{attempt}")
                say(hung or _died(attempt, nproc, json.loads(failures[attempt])))
                if attempt < restarts:
                    say(watchdog.again(attempt + 1, restarts, -signal.SIGKILL if hung else 1))
            told = len(failures)

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _hung(folder: Path) -> Finding | None:
    """Say where each rank of an attempt stood when it was ended for its silence; None when none was."""
    ranks, now = [], 0.0
    for file in sorted(folder.glob("rank-*.late")):
        rank = int(file.stem.removeprefix("rank-"))
        pid, at, step, then = map(float, file.read_text("ascii").split())
        now = max(now, then)
        with suppress(OSError):
            stack = watchdog.stack_of(folder, rank)
            ranks.append(watchdog.Rank(rank=rank, pid=int(pid), at=at, step=int(step), stack=stack))
    if not ranks:
        return None
    never, behind = collectives.compare(collectives.answers(folder, [one.rank for one in ranks]))
    return watchdog.hang(ranks, now, never=never, behind=behind)


def _died(attempt: int, nproc: int, ranks: Mapping[str, str]) -> Finding:
    """Say which workers failed of what; one that died comes before those that only missed it."""
    order = sorted(ranks, key=lambda rank: ("health check failed" not in ranks[rank], int(rank)))
    first = order[0] if order else "0"
    said = " ".join(ranks.get(first, "").split())[:300]
    process = WORKER.search(said)
    if process is not None:
        said = f"its process {process['pid']} on {process['host']} died or was killed"
    others = f" Then rank{'s' * (len(order) > 2)} {', '.join(order[1:9])} ended too." if len(order) > 1 else ""
    return Finding(
        code="training/rank-died",
        severity="error",
        place=f"run/attempt-{attempt}",
        said=f"Rank {first} of {nproc} ended: {said}.{others}",
        hint="Ray's own logs of the session hold what the worker wrote.",
        numbers={"rank": float(first), "attempt": float(attempt)},
    )


def _lines(file: Path) -> list[str]:
    return file.read_text("utf-8").splitlines() if file.is_file() else []

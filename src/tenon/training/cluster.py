"""The same training script or function on the workers of a Ray cluster, by Ray Train; begun again when a worker dies.

    ended = run(Target.of("train.py:fit", ["folder=/shared/run"]), nproc=2, folder=Path("/shared/watch"))

Ray Train starts the workers, opens the process group and, when a worker dies, begins all of them again, at most
`restarts` times; `Ranks.of` joins the group that is there, so that guard, run and checkpoints are the same as under
`launch`. Checkpoints are ours and not Ray's (which keeps whatever folder it is handed, pickled or not): each attempt
goes on from the newest good one in a folder that all workers see. Failures are noted in `folder` where they are seen,
in Ray's controller, and come back as the same findings.

A run that its guard refused ends without being begun again. Not seen here is a hang: it ends when the group's own
timeout does.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from tenon import engine
from tenon.errors import MissingError, TrainingError, UsageError, missing_extra, sentence
from tenon.finding import Finding
from tenon.training import watchdog
from tenon.training.launch import given_up
from tenon.training.ranks import REFUSED, refusal
from tenon.training.target import Target
from tenon.training.together import REFUSAL
from tenon.training.watchdog import ATTEMPT, Ended

FAILURES = "failures.jsonl"
STARTS = "starts"
PATIENCE = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
START_S = 600.0  # Ray's own 60 s are short for importing PyTorch where others are at work
WORKER = re.compile(r"health check failed.*?hostname='(?P<host>[^']+)'.*?pid=(?P<pid>\d+)")  # how Ray Train words it


def run(
    target: Target,
    *,
    nproc: int,
    folder: Path,
    restarts: int = 3,
    address: str = "",
    tell: Callable[[Finding], None] = lambda finding: None,
) -> Ended:
    """Run a target in `nproc` workers of the cluster at `address` ("" starts one here), restarts bounded.

    `folder` must be one that the driver and all workers see. MissingError without what Ray Train needs.
    """
    if nproc < 1 or restarts < 0:
        got = f"nproc={nproc}, restarts={restarts}"
        raise UsageError(sentence("nproc of 1 or more and restarts of 0 or more", got, at="cluster.run"))
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for old in (FAILURES, STARTS, REFUSED):
        (folder / old).unlink(missing_ok=True)
    with engine.Ray(address) as cluster:
        trainer = _trainer(target, nproc, folder, restarts)
        if cluster.workers < nproc:
            hint = "give the cluster more cores, or take fewer processes"
            wanted = f"{nproc} cores for workers"
            raise MissingError(
                sentence(wanted, f"a cluster of {cluster.workers}", at=address or "this machine", hint=hint)
            )
        failed = ""
        try:
            with _patience():
                trainer.fit()
        except Exception as error:  # noqa: BLE001 - the edge to Ray Train: it ends with errors of several libraries
            failed = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    return _ended(folder, nproc, restarts, failed, tell)


@contextmanager
def _patience() -> Iterator[None]:
    """Have Ray wait longer for workers on a busy machine; it takes the word from the driver's environment."""
    kept = os.environ.get(PATIENCE)
    os.environ.setdefault(PATIENCE, str(START_S))
    try:
        yield
    finally:
        if kept is None:
            del os.environ[PATIENCE]


def _trainer(target: Target, nproc: int, folder: Path, restarts: int) -> Any:
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
        },
        scaling_config=train.ScalingConfig(num_workers=nproc, use_gpu=bool(gpus)),
        torch_config=ray_torch.TorchConfig(backend=None if gpus else "gloo"),
        run_config=train.RunConfig(
            name="tenon",
            storage_path=str(folder / "ray"),
            failure_config=train.FailureConfig(max_failures=restarts),
            callbacks=[Noted()],
        ),
    )


def begin(job: dict[str, Any]) -> None:
    """Be one worker: run the target as one of the ranks whose group Ray Train has opened."""
    from ray import train

    folder, context = Path(job["folder"]), train.get_context()
    attempt = len(_lines(folder / STARTS))
    if context.get_world_rank() == 0:
        with (folder / STARTS).open("a", encoding="utf-8") as file:
            file.write(f"{time.time()}\n")
    environ = {**os.environ, ATTEMPT: str(attempt)}
    target = Target(place=job["place"], function=job["function"], given=tuple(job["given"]))
    try:
        target.call(environ)
    except TrainingError as error:
        if REFUSAL not in getattr(error, "__notes__", ()):
            raise
        if context.get_world_rank() == 0:
            (folder / REFUSED).write_text(json.dumps({"said": str(error)}), "utf-8")


def note(folder: str, failed: Mapping[int, str]) -> None:
    """Write down which ranks failed, and of what, for the driver to tell."""
    with Path(folder, FAILURES).open("a", encoding="utf-8") as file:
        file.write(json.dumps({str(rank): said for rank, said in failed.items()}) + "\n")


def _ended(folder: Path, nproc: int, restarts: int, failed: str, tell: Callable[[Finding], None]) -> Ended:
    """Say what came of it: each failure, each restart, and how it ended."""
    findings: list[Finding] = []
    failures = [json.loads(line) for line in _lines(folder / FAILURES)]
    for attempt, ranks in enumerate(failures):
        findings.append(_died(attempt, nproc, ranks))
        if attempt < restarts and (attempt + 1 < len(failures) or not failed):
            findings.append(watchdog.again(attempt + 1, restarts, 1))
    refused = refusal(folder)
    if refused:
        findings.append(given_up(len(failures) + 1, 1, refused))
    elif failed:
        findings.append(given_up(max(len(failures), 1), 1, failed))
    for one in findings:
        tell(one)
    return Ended(code=1 if failed or refused else 0, attempts=len(failures) + (not failed), findings=tuple(findings))


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

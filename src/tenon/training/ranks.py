"""Several processes that train one model: who is which, and the few words by which they agree.

    with Ranks.of(os.environ) as ranks:          # one of several under a launcher, torchrun or Ray Train; else alone
        model = DistributedDataParallel(net)     # or fully_shard(net)
        guard = Guard(ranks=ranks).watch(model, optimizer)

`of` takes the process group that is there, or begins one: from a file when tenon launched the process (no port is
opened for meeting), else by the variables that torchrun sets. Agreement has a group of its own, on the processor: a
few numbers a step, added up by one small all-reduce, whatever device and backend the model has; among ranks that
tenon launched, which share a machine, through shared memory (`agree`), in a tenth of the time. Each rank says where it
stands, so that ranks that have lost step are told so instead of adding up what does not belong together.

Texts (a finding, a sentence of blame) cross as bytes and only when there is one. Nothing is pickled, which is why the
object collectives of PyTorch are not used. A group of one costs nothing: every answer is its own.
"""

from __future__ import annotations

import datetime
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tenon.errors import TrainingError, sentence
from tenon.ledger import Usage
from tenon.training import collectives
from tenon.training.agree import Agreement
from tenon.training.watch_torch import torch_or_missing
from tenon.training.watchdog import FOLDER, Beat, living

STORE = "TENON_LAUNCH_STORE"  # the file in which the ranks of a launch meet
SPENT = "TENON_LAUNCH_SPENT"  # seconds on the clock and of processors that earlier attempts used
REFUSED = "refused.json"  # what a run says that would only fail again
STEP, HELD_OUT, TOLD, SAVE, READ = 1, 2, 3, 4, 5  # kinds of agreement
LOSS, GRADIENT, NEWS = 1, 2, 4  # what a rank flags
KINDS = {
    STEP: "",
    HELD_OUT: "the held-out loss of ",
    TOLD: "the loss of ",
    SAVE: "the checkpoint of ",
    READ: "reading ",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What one rank says at a step."""

    kind: int = STEP
    step: int = 0
    loss: float | None = None
    square: float = 0.0  # of the norm of this rank's gradients
    wrong: int = 0  # LOSS or GRADIENT when that is no number
    news: bool = False  # it has findings to tell
    stop: bool = False  # heard of the first rank only
    save: bool = False  # heard of the first rank only
    count: bool = False  # heard of the first rank only
    own_s: float = 0.0  # what a step takes this rank besides waiting for others; 0 for not known
    cpu_s: float = 0.0
    peak_bytes: int = 0
    gpus: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What all ranks said together; the same on every rank."""

    loss: float | None
    square: float
    wrong: tuple[int, ...]  # ranks whose loss or gradient is no number
    in_loss: bool  # it was a loss
    news: tuple[int, ...]  # ranks that have findings to tell
    stop: bool
    save: bool
    count: bool
    own_s: tuple[float, ...]  # of each rank
    cpu_s: float
    peak_bytes: int
    gpus: int


class Ranks:
    """This process among those that train with it; see the module's docstring. `close` ends a group that it began."""

    __slots__ = (
        "_began",
        "_folder",
        "_group",
        "_near",
        "_torch",
        "beat",
        "before",
        "local",
        "rank",
        "size",
        "waited_s",
    )

    def __init__(
        self,
        *,
        rank: int = 0,
        size: int = 1,
        local: int = 0,
        group: Any = None,
        beat: Beat | None = None,
        before: Usage | None = None,
    ) -> None:
        self.rank, self.size, self.local = rank, size, local
        self.beat = beat
        self.before = before  # what earlier attempts of this launch used
        self._group = group
        self._folder = beat.path.parent if beat is not None else None
        self._torch: Any = torch_or_missing("train on several processes") if size > 1 else None
        self._began = False
        self._near: Agreement | None = None  # where all ranks are on this machine
        self.waited_s = 0.0  # in agreements, for the other ranks

    @classmethod
    def of(cls, environ: Mapping[str, str], *, backend: str = "", timeout_s: float = 1_800.0) -> Self:
        """Join the other ranks that `environ` tells of, or that an open process group has; waits for all of them.

        `backend` is that of the group it begins: "" takes gloo, and NCCL beside it where there is a GPU for each rank.
        """
        torch = torch_or_missing("train on several processes")
        dist = torch.distributed
        beat = Beat.of(environ)
        size = int(environ.get("WORLD_SIZE", "1"))
        local = int(environ.get("LOCAL_RANK", environ.get("RANK", "0")))
        began = False
        timeout = datetime.timedelta(seconds=timeout_s)
        if not dist.is_initialized() and size > 1:
            _begin(torch, environ, backend, timeout)
            began = True
        before = _before(environ)
        if not dist.is_initialized():
            return cls(beat=beat, before=before)
        many = dist.get_world_size() > 1
        group = dist.new_group(backend="gloo", timeout=timeout, group_desc="tenon") if many else None
        if beat is not None:
            collectives.listen(beat.path.parent, dist.get_rank())
        found = cls(
            rank=dist.get_rank(), size=dist.get_world_size(), local=local, group=group, beat=beat, before=before
        )
        found._began = began
        if beat is not None and group is not None and STORE in environ and Agreement.possible():
            found._near = _near(beat.path.parent / f"agree-{group.group_name}", found, timeout_s)
        return found

    @property
    def first(self) -> bool:
        """Tell whether this is the rank that logs, decides and prints."""
        return self.rank == 0

    @property
    def device(self) -> Any:
        """Return the device that is this rank's: its GPU where there is one for each, else the processor."""
        torch = torch_or_missing("train on several processes")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return torch.device("cuda", self.local) if self.local < count else torch.device("cpu")

    def close(self) -> None:
        """End the process group that was begun here; one that was there before is left alone."""
        if self._near is not None:
            self._near.close()
            self._near = None
        if self._began:
            self._began = False
            self._torch.distributed.destroy_process_group()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:  # a rank that fails does not wait for others that may be waiting for it
            self.close()

    # ── agreeing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def hear(self, said: Said) -> Heard:
        """Say it to all and hear what all say; every rank must call it. TrainingError when they have lost step."""
        n = self.size
        values = [0.0] * _width(n)
        values[self.rank] = float(said.step * 8 + said.kind)
        values[n + self.rank] = float(said.wrong + NEWS * said.news)
        values[2 * n + self.rank] = said.own_s
        loss = said.loss is not None and math.isfinite(said.loss)
        values[3 * n :] = [
            said.loss if loss and said.loss is not None else 0.0,
            float(loss),
            said.square if math.isfinite(said.square) else 0.0,
            said.cpu_s,
            float(said.peak_bytes),
            float(said.gpus),
            float(said.stop and self.first),
            float(said.save and self.first),
            float(said.count and self.first),
        ]
        if n > 1:
            values = self._sum(values, said)
        where, own_s, rest = values[:n], values[2 * n : 3 * n], values[3 * n :]
        flags = [int(one) for one in values[n : 2 * n]]
        if len(set(where)) > 1:
            raise TrainingError(_lost(where))
        return Heard(
            loss=rest[0] / rest[1] if rest[1] else None,
            square=rest[2],
            # A gradient that is no number is on all ranks that share it; the loss says where it came from.
            wrong=_flagged(flags, LOSS) or _flagged(flags, GRADIENT),
            in_loss=bool(_flagged(flags, LOSS)),
            news=_flagged(flags, NEWS),
            stop=rest[6] > 0,
            save=rest[7] > 0,
            count=rest[8] > 0,
            own_s=tuple(own_s),
            cpu_s=rest[3],
            peak_bytes=int(rest[4]),
            gpus=int(rest[5]),
        )

    def _sum(self, values: list[float], said: Said) -> list[float]:
        start = time.perf_counter()
        total = self._near.add_up(values) if self._near is not None else self._reduced(values, said)
        self.waited_s += time.perf_counter() - start
        return total

    def _reduced(self, values: list[float], said: Said) -> list[float]:
        tensor = self._torch.tensor(values, dtype=self._torch.float64)
        try:
            self._torch.distributed.all_reduce(tensor, group=self._group)
        except RuntimeError as error:
            raise self._alone(f"{KINDS[said.kind]}step {said.step}", error) from error
        return list(tensor.tolist())

    def _alone(self, place: str, error: Exception) -> TrainingError:
        first = str(error).strip().splitlines()[:1]
        hint = "another rank has ended or hangs; its own last words say why"
        return TrainingError(sentence(f"all {self.size} ranks at {place}", f"'{''.join(first)}'", hint=hint))

    def gather(self, said: bytes) -> list[bytes]:
        """Return what every rank says, in the order of ranks; every rank must call it."""
        if self.size == 1:
            return [said]
        torch, dist, start = self._torch, self._torch.distributed, time.perf_counter()
        try:
            sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            dist.all_gather(sizes, torch.tensor([len(said)]), group=self._group)
            self.waited_s += time.perf_counter() - start
            longest = max(int(one) for one in sizes)
            if not longest:
                return [b""] * self.size
            mine = torch.zeros(longest, dtype=torch.uint8)
            mine[: len(said)] = torch.frombuffer(bytearray(said) or bytearray(1), dtype=torch.uint8)[: len(said)]
            every = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(every, mine, group=self._group)
        except RuntimeError as error:
            raise self._alone("an exchange of words", error) from error
        return [one.numpy().tobytes()[: int(size)] for one, size in zip(every, sizes, strict=True)]

    def words(self, said: Any) -> list[Any]:
        """Return the plain data that every rank says, in the order of ranks; every rank must call it."""
        return [json.loads(one) for one in self.gather(json.dumps(said).encode())]

    def refused(self, said: str) -> None:
        """Leave word for the launcher that the run was refused and would only be refused again."""
        if self._folder is not None and self.first:
            (self._folder / REFUSED).write_text(json.dumps({"said": said}), "utf-8")


def _begin(torch: Any, environ: Mapping[str, str], backend: str, timeout: datetime.timedelta) -> None:
    """Begin the process group that everything uses by default."""
    dist = torch.distributed
    local = int(environ.get("LOCAL_RANK", environ["RANK"]))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    each = gpus >= int(environ.get("LOCAL_WORLD_SIZE", environ["WORLD_SIZE"]))
    if each and gpus:
        torch.cuda.set_device(local)
    backend = backend or ("cpu:gloo,cuda:nccl" if each and gpus else "gloo")
    rank, size = int(environ["RANK"]), int(environ["WORLD_SIZE"])
    if STORE in environ:
        store = dist.FileStore(environ[STORE], size)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    else:
        dist.init_process_group(backend, timeout=timeout)


def _width(size: int) -> int:
    """Return how many numbers ranks say together at a step: three each, and nine that are added up."""
    return 3 * size + 9


def _near(file: Path, ranks: Ranks, timeout_s: float) -> Agreement:
    """Begin to agree with the other ranks of this machine, which a launcher began in the same folder."""
    return Agreement(
        file,
        rank=ranks.rank,
        size=ranks.size,
        width=_width(ranks.size),
        living=lambda rank: living(file.parent, rank),
        timeout_s=timeout_s,
    )


def _before(environ: Mapping[str, str]) -> Usage | None:
    if SPENT not in environ or FOLDER not in environ:
        return None
    wall_s, cpu_s = map(float, environ[SPENT].split())
    return Usage(wall_s=wall_s, cpu_s=cpu_s, peak_bytes=0)


def _flagged(flags: Sequence[int], what: int) -> tuple[int, ...]:
    return tuple(rank for rank, flag in enumerate(flags) if flag & what)


def _lost(where: Sequence[float]) -> str:
    stands = [f"rank {i} at {KINDS.get(int(one) % 8, '')}step {int(one) // 8}" for i, one in enumerate(where[:8])]
    hint = "every rank must call the guard at every step, for as many steps; give each as many batches"
    return sentence("all ranks at the same step", ", ".join(stands), hint=hint)


def refusal(folder: Path) -> str:
    """Say what an attempt's folder holds of a run that would only be refused again; "" for nothing."""
    try:
        said = json.loads((folder / REFUSED).read_text("utf-8"))["said"]
    except (OSError, ValueError, KeyError):
        return ""
    return f"its guard refused it, and would refuse the same step again ({said})"

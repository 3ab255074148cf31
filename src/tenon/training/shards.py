"""Checkpoints of several ranks: each writes what only it has, the first gives the whole its name, any number reads it.

    step-0000001200/state.json                  what all share, and of each rank its own state and what its file holds
                    tensors.safetensors         rank 0: plain tensors, its parts of sharded ones, its random state
                    tensors-00001.safetensors   rank 1: its parts of sharded tensors, its random state

The folder must be one that all ranks see. Every rank says how its writing went before the first renames the folder: a
disk that is full for one refuses the checkpoint for all, in the same words, and what was there before stays. Reading
begins with the first rank's choice; the files are verified by turns, and one that is damaged takes the whole checkpoint
aside for all ranks.

A sharded tensor is kept as boxes: each file says at which offset its part lies in the whole. Who reads it asks for the
box that it needs and takes the overlaps from whatever files hold them, so that the number of ranks may change, and a
sharded run may go on unsharded or the other way round. Source of the idea: PyTorch's distributed checkpoint, which
pickles its index. Rejected: gathering all of the state on the first rank, which has not the memory for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenon.errors import CorruptError, InputError, MissingError, StoreError, TenonError, sentence
from tenon.training.checkpoint import TENSORS, Checkpoints, Loaded, size_bytes, verify
from tenon.training.ranks import Ranks

Box = tuple[tuple[int, int], ...]  # of each dimension, from and to


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What one rank has to keep: tensors by name, what all share and what is its own, as plain data."""

    tensors: Mapping[str, Any]
    shared: Mapping[str, Any]
    own: Mapping[str, Any]
    plain: frozenset[str]  # names of plain tensors that all ranks share; only the first writes them


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def save(checkpoints: Checkpoints, ranks: Ranks, step: int, given: Given, *, loss: float | None, suspect: bool) -> Path:
    """Write a checkpoint with all ranks; every rank must call it, and the same StoreError refuses it on all."""
    mine, boxes = _parts(given, ranks)
    said = ranks.words({"bytes": size_bytes(mine), "loss": loss, "suspect": suspect})
    losses = [one["loss"] for one in said if one["loss"] is not None]
    mean = sum(losses) / len(losses) if losses else None
    with ExitStack() as stack:
        where, error = "", ""
        if ranks.first:
            try:
                where = str(stack.enter_context(checkpoints.beside(sum(one["bytes"] for one in said))).resolve())
            except TenonError as caught:
                error = str(caught)
        beside = Path(_agreed(ranks, {"value": where, "error": error})[0])
        every = _agreed(ranks, _written(checkpoints, beside, ranks.rank, mine) | {"own": given.own, "boxes": boxes})
        place, error = "", ""
        if ranks.first:
            body = {"version": 2, "step": step, "loss": mean, "state": given.shared, "tensors": every[0]["tensors"]}
            files = [{"file": _file(i), **one["tensors"]} for i, one in enumerate(every)]
            body["ranks"] = [
                {**file, "own": one["own"], "boxes": one["boxes"]} for file, one in zip(files, every, strict=True)
            ]
            spoiled = any(one["suspect"] for one in said) or (mean is not None and not abs(mean) < float("inf"))
            body["loss"] = None if spoiled else mean
            try:
                place = str(checkpoints.seal(beside, body, suspect=spoiled))
            except (TenonError, OSError) as caught:
                error = str(caught)
        return Path(_agreed(ranks, {"value": place, "error": error})[0])


def _agreed(ranks: Ranks, mine: dict[str, Any]) -> list[Any]:
    """Return what every rank has come to; StoreError on all of them when one met an error."""
    every = ranks.words(mine)
    for rank, one in enumerate(every):
        if one.get("error"):
            raise StoreError(one["error"] if not rank else f"{one['error']} (rank {rank})")
    return [one.get("value", one) for one in every]


def _written(checkpoints: Checkpoints, beside: Path, rank: int, tensors: Mapping[str, Any]) -> dict[str, Any]:
    if not beside.is_dir():
        hint = "give a folder on a disk that all machines share"
        return {"error": sentence("a folder that every rank sees", "none here", at=str(beside), hint=hint)}
    try:
        return {"tensors": checkpoints.write(beside / _file(rank), tensors)}
    except TenonError as error:
        return {"error": str(error)}


def _file(rank: int) -> str:
    return f"tensors-{rank:05}.safetensors" if rank else TENSORS


def _parts(given: Given, ranks: Ranks) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the tensors that this rank writes, and where those of them that are parts lie in the whole."""
    tensors: dict[str, Any] = {}
    boxes: dict[str, Any] = {}
    for name, tensor in given.tensors.items():
        if hasattr(tensor, "to_local"):
            box = _box(tensor, name)
            if box is not None and all(start < end for start, end in box):
                tensors[name], boxes[name] = tensor.to_local(), box
        elif ranks.first or name not in given.plain:
            tensors[name] = tensor
    return tensors, boxes


def _box(tensor: Any, name: str) -> Box | None:
    """Return where this rank's part of a sharded tensor lies; None when another rank holds the same part."""
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    for dimension, placement in enumerate(tensor.placements):
        if type(placement) is Replicate and tensor.device_mesh.get_local_rank(dimension) > 0:
            return None
        if type(placement) not in (Replicate, Shard):
            raise InputError(sentence("tensors sharded by a dimension, or replicated", str(placement), at=name))
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple((start, start + length) for start, length in zip(offset, shape, strict=True))


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def load(checkpoints: Checkpoints, ranks: Ranks, step: int | None) -> Loaded | None:
    """Read the newest good checkpoint with all ranks, or that of `step`; every rank must call it.

    One that any rank finds damaged is set aside, with a finding, and the one before is read.
    """
    damaged = 0
    while True:
        choice, error = None, ""
        if ranks.first:
            try:
                checkpoints.claim()
                choice = step if step is not None else next(iter(checkpoints.steps()[-1:]), None)
            except TenonError as caught:
                error = str(caught)
        choice = _agreed(ranks, {"value": choice, "error": error})[0]
        if choice is None:
            if damaged:
                raise checkpoints.none_left(damaged)
            return None
        loaded, said = _looked_at(checkpoints, ranks, choice)
        every = ranks.words(said)
        unseen = [rank for rank, one in enumerate(every) if one == "unseen"]
        if unseen:
            place = str(checkpoints.path(choice))
            if step is not None and len(unseen) == ranks.size:
                known = ", ".join(map(str, checkpoints.steps())) or "none"
                raise MissingError(sentence(f"the checkpoint of step {step}", "none", hint=f"there are: {known}"))
            hint = "give a folder on a disk that all machines share"
            raise StoreError(
                sentence("a folder that every rank sees", f"none on rank {unseen[0]}", at=place, hint=hint)
            )
        faults = [one for one in every if one]
        if not faults:
            return loaded
        if step is not None:
            raise CorruptError(faults[0])
        damaged += 1
        if ranks.first:
            checkpoints.set_aside(choice, faults[0])


def _looked_at(checkpoints: Checkpoints, ranks: Ranks, step: int) -> tuple[Loaded | None, str]:
    """Read a checkpoint's state and verify this rank's turn of its files; returns what is wrong, "" for nothing."""
    place = checkpoints.path(step)
    if not place.is_dir():
        return None, "unseen"
    try:
        body = checkpoints.body(place)
        files = [{"file": TENSORS, **body["tensors"]}, *body.get("ranks", ())[1:]]
        for one in files[ranks.rank :: ranks.size]:
            verify(place / one["file"], one)
    except CorruptError as error:
        return None, str(error)
    found = Loaded(
        step=body["step"],
        tensors={},
        state=body["state"],
        loss=body["loss"],
        path=place,
        ranks=body.get("ranks", ()) or ({"file": TENSORS, "own": {}, "boxes": {}},),
    )
    return found, ""


class Kept:
    """The tensors of a checkpoint as one rank reads them: when they are asked for, and only the part that is."""

    __slots__ = ("_names", "_open", "_path", "_ranks")

    def __init__(self, path: Path, ranks: Sequence[Mapping[str, Any]]) -> None:
        self._path = path
        self._ranks = ranks
        self._open: dict[int, Any] = {}
        self._names: dict[int, frozenset[str]] = {}

    def of(self, rank: int) -> _Of:
        """Return the tensors that one rank wrote, by name, with whole handles of the sharded ones."""
        return _Of(self, rank)

    def file(self, rank: int) -> Any:
        """Return the open file of a rank."""
        if rank not in self._open:
            from safetensors import safe_open

            self._open[rank] = safe_open(str(self._path / self._ranks[rank]["file"]), framework="pt")
            self._names[rank] = frozenset(self._open[rank].keys())
        return self._open[rank]

    def has(self, rank: int, name: object) -> bool:
        """Tell whether a rank's file holds a tensor."""
        self.file(rank)
        return name in self._names[rank]

    def holders(self, name: object) -> Iterator[tuple[int, Box]]:
        """Yield the ranks that hold a part of a sharded tensor, and which."""
        for rank, one in enumerate(self._ranks):
            if name in one["boxes"]:
                yield rank, tuple((start, end) for start, end in one["boxes"][name])


class _Of:
    """What `decode` asks for tensors: a mapping by name."""

    __slots__ = ("_kept", "_rank")

    def __init__(self, kept: Kept, rank: int) -> None:
        self._kept, self._rank = kept, rank

    def __contains__(self, name: object) -> bool:
        return self._kept.has(self._rank, name) or any(True for _ in self._kept.holders(name))

    def __getitem__(self, name: str) -> Any:
        if any(True for _ in self._kept.holders(name)):
            return Sharded(self._kept, name)
        return self._kept.file(self._rank).get_tensor(name)


class Sharded:
    """A tensor that is kept in parts; `read` gives any box of it."""

    __slots__ = ("_kept", "name", "shape")

    def __init__(self, kept: Kept, name: str) -> None:
        self._kept, self.name = kept, name
        ends = [box for _, box in kept.holders(name)]
        self.shape = tuple(max(box[i][1] for box in ends) for i in range(len(ends[0])))

    def read(self, box: Box) -> Any:
        """Return a box of the whole as a plain tensor; CorruptError when no file holds some of it."""
        import torch

        lengths = [end - start for start, end in box]
        found, filled = None, 0
        for rank, held in self._kept.holders(self.name):
            part = self._kept.file(rank).get_slice(self.name)
            if found is None:
                first = part[tuple(slice(0, 0) for _ in held)] if held else self._kept.file(rank).get_tensor(self.name)
                found = torch.empty(lengths, dtype=first.dtype)
            low = [max(a, b) for (a, _), (b, _) in zip(box, held, strict=True)]
            high = [min(a, b) for (_, a), (_, b) in zip(box, held, strict=True)]
            if any(a >= b for a, b in zip(low, high, strict=True)):
                continue
            there = tuple(slice(a - h, b - h) for a, b, (h, _) in zip(low, high, held, strict=True))
            here = tuple(slice(a - s, b - s) for a, b, (s, _) in zip(low, high, box, strict=True))
            values = part[there] if there else self._kept.file(rank).get_tensor(self.name)
            found[here] = values
            filled += values.numel()
        if found is None or filled != found.numel():
            raise CorruptError(sentence(f"all of '{self.name}'", f"{filled:,} values of it", at="state.json"))
        return found

    def whole(self) -> Any:
        """Return all of it."""
        return self.read(tuple((0, length) for length in self.shape))


def laid_out(value: Any, like: Any) -> Any:
    """Return a kept tensor in the layout of one that is there: this rank's part of it, or all of it."""
    if not hasattr(value, "numel") and not isinstance(value, Sharded):
        return value
    if not hasattr(like, "to_local") or tuple(value.shape) != tuple(like.shape):
        return value.whole() if isinstance(value, Sharded) else value
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
    box = tuple((start, start + length) for start, length in zip(offset, shape, strict=True))
    if not all(shape):
        local = like.to_local().detach().clone()
    elif isinstance(value, Sharded):
        local = value.read(box)
    else:
        local = value[tuple(slice(start, end) for start, end in box)].clone()
    device = like.to_local().device
    return DTensor.from_local(
        local.to(device), like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )

"""The order in which rows are trained on, and the position in it: a number that can be kept, not an iterator that
cannot.

An `Order` gives the row numbers of each batch. The rows of an epoch are shuffled by a generator seeded with the seed
and the epoch, so that the order depends on nothing that ran before, and the position is two numbers: epoch and batch. A
batch counts as taken when it is handed to the loop; a checkpoint written after its step therefore goes on with the next
one, whatever loader workers had fetched ahead.

Several ranks take the batches together: with `ranks`, `batch` is that of all of them, each is given its equal part, and
the position is the same on all and the same whatever their number, so that a run may go on with fewer or more.

A PyTorch DataLoader takes it as its `batch_sampler`. Making a DataLoader's iterator draws a random number from
PyTorch's own generator, which would set a resumed run apart from one that was not interrupted; `over` makes it with a
generator seeded by epoch and position, and leaves the other as it was. Rows that workers change at random are the same
after a resume only at the start of an epoch: seed such changes by row number instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tenon.errors import InputError, UsageError, sentence


class Order:
    """The batches of `rows` rows, epoch after epoch; `over` hands them out and counts them."""

    __slots__ = ("_drop_last", "_part", "batch", "epoch", "position", "rows", "seed", "shuffle")

    def __init__(
        self,
        rows: int,
        batch: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        ranks: Any = None,  # the Ranks that share each batch; a short last batch, which they could not, is left out
    ) -> None:
        size = ranks.size if ranks is not None else 1
        drop_last = drop_last or size > 1
        if rows < 1 or batch < 1 or (drop_last and batch > rows):
            raise UsageError(
                sentence("rows and a batch of 1 or more", f"{rows} rows in batches of {batch}", at="Order")
            )
        if batch % size:
            hint = "take a batch that is a multiple of the number of ranks"
            got = f"one of {batch} for {size} ranks"
            raise UsageError(sentence("a batch that ranks can share equally", got, at="Order", hint=hint))
        self.rows, self.batch, self.seed, self.shuffle = rows, batch, seed, shuffle
        self._part = (ranks.rank if ranks is not None else 0, batch // size)
        self._drop_last = drop_last
        self.epoch = 0
        self.position = 0  # batches handed out in this epoch

    def __len__(self) -> int:
        """Return how many batches an epoch has."""
        return self.rows // self.batch if self._drop_last else -(-self.rows // self.batch)

    def __iter__(self) -> Iterator[list[int]]:
        """Give the row numbers of the batches left in this epoch, without counting them; a DataLoader reads ahead."""
        return self._batches(self.epoch, self.position)

    def over(self, loader: Any = None) -> Iterator[Any]:
        """Hand out what is left of this epoch and count it: batches of `loader`, or lists of row numbers."""
        for batch in self._begun(loader) if loader is not None else iter(self):
            self.position += 1
            if self.position >= len(self):
                self.epoch, self.position = self.epoch + 1, 0
            yield batch

    def forever(self, loader: Any = None) -> Iterator[Any]:
        """Hand out batches, epoch after epoch, without an end."""
        while True:
            yield from self.over(loader)

    def state_dict(self) -> dict[str, Any]:
        """Return the position, and what it is a position in."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "rows": self.rows,
            "batch": self.batch,
            "seed": self.seed,
            "shuffle": self.shuffle,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position; InputError when it is one in other data, another batch size or another order."""
        for name in ("rows", "batch", "seed", "shuffle"):
            if state.get(name, getattr(self, name)) != getattr(self, name):
                hint = "resume with the data, the batch size and the order the run began with"
                raise InputError(sentence(f"{name} {state[name]}", f"{getattr(self, name)}", at="Order", hint=hint))
        self.epoch, self.position = state["epoch"], state["position"]
        if self.position >= len(self):  # before a short last batch, which is left out now
            self.epoch, self.position = self.epoch + 1, 0

    def _batches(self, epoch: int, position: int) -> Iterator[list[int]]:
        rows = (
            np.random.default_rng([self.seed, epoch]).permutation(self.rows) if self.shuffle else np.arange(self.rows)
        )
        rank, part = self._part
        for i in range(position, len(self)):
            batch = rows[i * self.batch : (i + 1) * self.batch]
            yield batch[rank * part : (rank + 1) * part].tolist() if part < self.batch else batch.tolist()

    def _begun(self, loader: Any) -> Iterator[Any]:
        """Begin a loader's iterator without a trace in PyTorch's own random numbers."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(hash((self.seed, self.epoch, self.position)) & (2**63 - 1))
            return iter(loader)

"""The result of an ingest, joined while its parts are still being read: `Joined(work, columns)`.

Parts come in the order of the input and are copied one behind the other, into as many files as the result needs, under
names of their own in the folder of work; the last step is to give them the names of the result. So at the end of an
ingest there is nothing left to copy, and most of it lies on the disk already: what was copied is synced by a thread
beside the reading. The parts themselves stay until the result is in place, because a start after a kill begins the join
anew from them.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from tenon.ingest.parquet import Joining

FILE_BYTES = 4 << 30  # a result larger than this becomes several files
FILE_PARTS = 4_000
FILE_ENTRIES = 200_000  # a reader holds the footer of a file whole, which has an entry for each column of each part
SYNC = 32 << 20  # bytes that are copied before a thread syncs them


class Joined:
    """The files of a result of so many columns in the making, in the folder `work`."""

    __slots__ = ("_count", "_files", "_most", "_pool", "_size", "_synced", "_waiting", "work")

    def __init__(self, work: Path, columns: int) -> None:
        self.work = work
        self._most = max(1, min(FILE_PARTS, FILE_ENTRIES // max(columns, 1)))
        self._files: list[Joining] = []
        self._count = self._size = self._synced = 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tenon-sync")
        self._waiting: Future[None] | None = None

    def add(self, part: Path) -> None:
        """Copy a part behind those before it; the part is not needed for the result any more."""
        more = part.stat().st_size
        if not self._files or self._size + more > FILE_BYTES or self._count >= self._most:
            self._files.append(Joining(self.work / f"joined-{len(self._files):05d}"))
            self._count = self._size = self._synced = 0
        self._files[-1].add(part)
        self._count += 1
        self._size += more
        if self._size - self._synced >= SYNC and (self._waiting is None or self._waiting.done()):
            self._sync()

    def _sync(self) -> None:
        if self._waiting is not None:
            self._waiting.result()  # a disk that failed is told
        self._waiting = self._pool.submit(_synced, self._files[-1].target)
        self._synced = self._size

    def close(self) -> list[Path]:
        """Write what is left of every file, durable when this returns; returns the files in order."""
        if self._waiting is not None:
            self._waiting.result()
        self._pool.shutdown()
        for file in self._files:
            file.close()
        return [file.target for file in self._files]


def _synced(path: Path) -> None:
    """Have what was written to a file put on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

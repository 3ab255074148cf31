"""What occurs more than once: exact, in a frame by one sort of hashes, in a file by hashes spilt to disk.

Polars' `is_duplicated` groups all rows to find the few that repeat, and takes its time with several columns. A key is
unique when one of its columns is; a column that only grows, and whole numbers that lie close together, show that in a
few passes over an array. Else equal keys have equal hashes, so sorting 64-bit hashes finds every candidate, and only
candidates are compared for real: three times to ten times quicker where repetitions are rare, and as exact. The hash
of a key is the sum of its columns' hashes, each with a seed of its own: hashing a struct takes four times as long.

For a file the keys do not fit into memory. 128 bits of hash and the number of each row are spilt to disk in parts by
their value; the hashes that occur twice are found part by part, and the numbers of their rows written to files by
ranges of rows, which batches then read in order. Memory stays flat however many keys there are and however many repeat;
the disk holds up to 32 bytes a row. There the hash is the key: two different keys of a billion share 128 bits once in
10^20 files. Rows with a missing key are passed over. A key that only grows through the whole file is never spilt.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

PARTITIONS = 256
RANGE = 1 << 20  # rows whose repeats are kept in one file
DENSE = 8  # whole numbers of at most so many times as many values as there are rows are marked in an array
_SEEDS = (11, 1213)
_MANY = 100_000


def in_frame(frame: pl.DataFrame, names: tuple[str, ...]) -> pl.Series | None:
    """Return what is true for each row whose values in these columns occur again in the frame; None where none do."""
    if frame.height < 2 or any(name not in frame.columns for name in names):
        return None
    if any(_plainly_different(frame[name]) for name in names):
        return None
    hashes = _hash(frame, names, _SEEDS[0])
    rows = _candidates(hashes)
    if not len(rows):
        return None
    some = frame.select(names)[rows]
    whole = pl.all_horizontal(pl.all().is_not_null())
    repeated = some.select(pl.struct(pl.all()).is_duplicated() & whole).to_series().to_numpy()
    if not repeated.any():
        return None
    flags = np.zeros(frame.height, dtype=np.bool_)
    flags[rows[repeated]] = True
    return pl.Series(flags)


def in_file(batches: Callable[[], Iterable[pl.DataFrame]], names: tuple[str, ...], scratch: Path) -> Path | None:
    """Return a folder in `scratch` for `rows_at`, which says where keys of a file occur again; None where none do.

    `batches` reads the rows, in order; it is asked twice when the key does not only grow.
    """
    if _grows(batches(), names):
        return None
    folder = Path(tempfile.mkdtemp(prefix="keys-", dir=scratch))
    _spill(batches(), names, folder)
    repeats = False
    for number in range(PARTITIONS):
        part = folder / str(number)
        found = np.fromfile(part, dtype=np.uint64).reshape(-1, 3)
        part.unlink()
        rows = _candidates(np.ascontiguousarray(found[:, 0]))
        some = pl.DataFrame({"first": found[rows, 0], "second": found[rows, 1]})
        repeated = found[rows[some.select(pl.struct(pl.all()).is_duplicated()).to_series().to_numpy()], 2]
        repeats = repeats or len(repeated) > 0
        for place in np.unique(repeated // RANGE).tolist():
            with (folder / f"rows-{place}").open("ab") as file:
                repeated[repeated // RANGE == place].tofile(file)
    return folder if repeats else None


def rows_at(folder: Path, start: int, height: int) -> pl.Series:
    """Return for the rows of a batch that begins at row `start` whether `in_file` found their key again."""
    flags = np.zeros(height, dtype=np.bool_)
    for place in range(start // RANGE, (start + height - 1) // RANGE + 1):
        file = folder / f"rows-{place}"
        if file.exists():
            rows = np.fromfile(file, dtype=np.uint64).astype(np.int64) - start
            flags[rows[(rows >= 0) & (rows < height)]] = True
    return pl.Series(flags)


def _spill(batches: Iterable[pl.DataFrame], names: tuple[str, ...], folder: Path) -> None:
    """Write the hashes and the number of each row with a whole key into files by the hash."""
    files = [(folder / str(number)).open("wb", buffering=0) for number in range(PARTITIONS)]
    done = 0
    try:
        for batch in batches:
            whole = batch.select(pl.all_horizontal(pl.col(name).is_not_null() for name in names)).to_series()
            keys = batch.select(names).filter(whole)
            found = np.empty((keys.height, 3), dtype=np.uint64)
            found[:, 0], found[:, 1] = (_hash(keys, names, seed) for seed in _SEEDS)
            found[:, 2] = np.flatnonzero(whole.to_numpy()) + done
            parts = (found[:, 0] % np.uint64(PARTITIONS)).astype(np.uint8)
            order = np.argsort(parts, kind="stable")  # of bytes: counted, not compared
            found, borders = found[order], np.searchsorted(parts[order], np.arange(PARTITIONS + 1))
            for number, file in enumerate(files):
                found[borders[number] : borders[number + 1]].tofile(file)
            done += batch.height
    finally:
        for file in files:
            file.close()


def _grows(batches: Iterable[pl.DataFrame], names: tuple[str, ...]) -> bool:
    """Say whether one of the columns only grows, from the first row to the last; stops reading when none does."""
    last: dict[str, object] = dict.fromkeys(names)
    for batch in batches:
        if not batch.height:
            continue
        last = {
            name: batch[name][-1]
            for name, before in last.items()
            if _only_grows(batch[name]) and (before is None or before < batch[name][0])
        }
        if not last:
            return False
    return True


def _plainly_different(values: pl.Series) -> bool:
    """Say whether all values are there and different, when that is cheap to see."""
    if values.null_count() or len(values) < _MANY:
        return False
    if _only_grows(values):
        return True
    if values.dtype != pl.Int64:
        return False
    low, high = int(values.min()), int(values.max())  # type: ignore[arg-type]
    if high - low >= DENSE * len(values):
        return False
    seen = np.zeros(high - low + 1, dtype=np.bool_)
    seen[values.to_numpy() - low] = True
    return int(seen.sum()) == len(values)


def _only_grows(values: pl.Series) -> bool:
    """Say whether every value is larger than the one before; a look at the first few decides most."""
    if values.null_count() or values.dtype.is_float() or not len(values):
        return False
    return all(bool((some.slice(1) > some.slice(0, len(some) - 1)).all()) for some in (values.head(1_000), values))


def _candidates(hashes: NDArray[np.uint64]) -> NDArray[np.intp]:
    """Return the rows whose hash occurs again."""
    ordered = np.sort(hashes)
    again = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    return np.flatnonzero(np.isin(hashes, again)) if len(again) else np.empty(0, dtype=np.intp)


def _hash(frame: pl.DataFrame, names: Sequence[str], seed: int) -> NDArray[np.uint64]:
    """Hash a key; 0 and -0 are one key."""
    total = np.zeros(frame.height, dtype=np.uint64)
    for number, name in enumerate(names):
        values = frame[name]
        values = values + 0.0 if values.dtype.is_float() else values
        total += values.hash(seed=seed + 7_919 * number).to_numpy()
    return total

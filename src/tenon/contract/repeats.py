"""What occurs more than once: exact, in a frame by one sort of hashes, in a file by hashes spilt to disk.

Polars' `is_duplicated` groups all rows to find the few that repeat, and takes its time with several columns. Equal
keys have equal hashes, so sorting 64-bit hashes finds every candidate, and only candidates are compared for real:
three times to ten times quicker where repetitions are rare, and as exact.

For a file the keys do not fit into memory. 128 bits of hash for each row are spilt to disk in 64 parts by their value,
and the hashes that occur twice are found part by part; 16 bytes for each repeated key stay in memory. There the hash is
the key: two different keys of a billion share 128 bits once in 10^20 files. Rows with a missing key are passed over.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl

PARTITIONS = 64
_SEEDS = (11, 1213)


def in_frame(frame: pl.DataFrame, names: tuple[str, ...]) -> pl.Expr:
    """Return what is true for each row of this frame whose values in these columns occur again in it."""
    here = [name for name in names if name in frame.columns]
    if len(here) < len(names) or frame.height < 2:
        return pl.lit(False)
    keys = frame.select(here)
    hashes = keys.select(_hash(keys.schema, names, _SEEDS[0])).to_series()
    ordered = np.sort(hashes.to_numpy())
    again = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(again):
        return pl.lit(False)
    rows = np.flatnonzero(np.isin(hashes.to_numpy(), again))
    some = keys[rows]
    whole = pl.all_horizontal(pl.all().is_not_null())
    repeated = some.select(pl.struct(pl.all()).is_duplicated() & whole).to_series().to_numpy()
    flags = np.zeros(frame.height, dtype=np.bool_)
    flags[rows[repeated]] = True
    return pl.lit(pl.Series(flags))


def in_file(batches: Iterable[pl.DataFrame], names: tuple[str, ...], scratch: Path) -> pl.DataFrame:
    """Return the hashes of the keys that occur more than once in all batches together, spilling to `scratch`."""
    folder = Path(tempfile.mkdtemp(prefix="keys-", dir=scratch))
    files = [(folder / str(number)).open("ab") for number in range(PARTITIONS)]
    try:
        for batch in batches:
            pairs = batch.drop_nulls(list(names)).select(_pair(batch.schema, names)).to_numpy(order="c")
            parts = pairs[:, 0] % np.uint64(PARTITIONS)
            order = np.argsort(parts, kind="stable")
            borders = np.searchsorted(parts[order], np.arange(PARTITIONS + 1))
            for number, file in enumerate(files):
                pairs[order[borders[number] : borders[number + 1]]].tofile(file)
    finally:
        for file in files:
            file.close()
    found = []
    for number in range(PARTITIONS):
        pairs = np.fromfile(folder / str(number), dtype=np.uint64).reshape(-1, 2)
        frame = pl.DataFrame({f"_h{seed}": pairs[:, at] for at, seed in enumerate(_SEEDS)})
        found.append(frame.filter(pl.struct(pl.all()).is_duplicated()).unique())
    return pl.concat(found)


def as_found(schema: pl.Schema, names: tuple[str, ...], found: pl.DataFrame) -> pl.Expr:
    """Return what is true for each row whose key `in_file` found more than once."""
    if not found.height:
        return pl.lit(False)
    first, second = _pair(schema, names)
    there = found[f"_h{_SEEDS[0]}"].implode()
    pairs = found.select(pl.struct(pl.all()).alias("pair"))["pair"].implode()
    return first.is_in(there) & pl.struct(first, second).is_in(pairs)


def _pair(schema: pl.Schema, names: tuple[str, ...]) -> list[pl.Expr]:
    return [_hash(schema, names, seed).alias(f"_h{seed}") for seed in _SEEDS]


def _hash(schema: pl.Schema, names: tuple[str, ...], seed: int) -> pl.Expr:
    """Hash a key; 0 and -0 are one key."""
    columns = [pl.col(name) + 0.0 if schema[name].is_float() else pl.col(name) for name in names]
    return (columns[0] if len(columns) == 1 else pl.struct(columns)).hash(seed=seed)

"""Labels that arrive late, by two roads, and their meeting with the observations they belong to.

A label comes as the answer to one request (stream `labels`: id, label, known), or as a fact about the row itself
(stream `facts` of the model's own source: raw rows, from which the glue's `labels_of` makes key_*, time, label, known).
Observations are joined to the first by id and to the second by key and time; where both have one, that known later
counts. Only what was known at the moment examined is used, so an examination "as of" a past day sees what it would have
seen then. The latest label of a row wins, and labels that came twice are counted.

Facts cost most to read, because they are whole raw rows: the labels made of them are kept as a Parquet blob with the
number of the last batch they cover, and only newer batches are read next time.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from tenon.errors import InputError, MissingError, sentence
from tenon.store import Store
from tenon.watch.observation import KEY, TIME, as_time, decode, moment, stack

CACHE = "watch-labels"
_AT_ONCE_ROWS = 100_000  # facts made into labels in one call: small batches cost a call each otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSource:
    """Where labels come from besides the stream `labels`: a source, and how its raw rows become labels.

    `labels_of(facts) -> frame` of key_* columns, time, label, known; rows without a label may be left out or null.
    `definition` names what `labels_of` does (a digest): labels made by another definition are made anew.
    """

    source: str
    labels_of: Callable[[pl.DataFrame], pl.DataFrame]
    definition: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Every label known at the moment examined: `by_id` (id, label, known) and `by_key` (key_*, time, label, known)."""

    by_id: pl.DataFrame
    by_key: pl.DataFrame
    repeated: int = 0  # labels replaced by a later one of the same row
    changed: int = 0  # those of them that said something else

    @property
    def keys(self) -> list[str]:
        """Name the columns that name a row in the labels made of facts, but for its time."""
        return [name for name in self.by_key.columns if name.startswith(KEY)] if self.by_key.height else []


def gather(
    store: Store, model: str, given: LabelSource | None, *, until: float | None, now: float, cache: bool = True
) -> Labels:
    """Read all labels known by `until` (None: all there are); keeps a cache of those made from facts."""
    sent = [
        decode(batch.body, f"labels/{model}/{batch.seq}").select("id", "label", "known")
        for batch in store.read("labels", model)
    ]
    by_id = _typed(stack_labels(sent, ["id"]), ["id"])
    by_key = _made(store, given, now, cache) if given else pl.DataFrame()
    by_id, repeated, changed = _latest(by_id, ["id"], until)
    if by_key.width:
        keys = [name for name in by_key.columns if name.startswith(KEY)]
        by_key, again, differently = _latest(by_key, [*keys, "time"], until)
        repeated, changed = repeated + again, changed + differently
    return Labels(by_id=by_id, by_key=by_key, repeated=repeated, changed=changed)


def join(rows: pl.DataFrame, labels: Labels) -> pl.DataFrame:
    """Return the observations with `label` and `known` added, null where there is none yet."""
    sides = []
    if labels.by_id.height:
        sides.append(rows.select("id").join(labels.by_id, on="id", how="left", maintain_order="left"))
    keys = labels.keys
    if keys and set(keys) <= set(rows.columns):
        texts = [pl.col(name).cast(pl.String) for name in keys]  # a number on one side may be text on the other
        right = labels.by_key.with_columns(texts)
        left = rows.select([*texts, "time"])
        sides.append(left.join(right, on=[*keys, "time"], how="left", maintain_order="left"))
    label: pl.Expr = pl.lit(None, dtype=pl.Float64)
    known: pl.Expr = pl.lit(None, dtype=TIME)
    found = rows
    for place, side in enumerate(sides):
        found = found.with_columns(side["label"].alias(f"_label_{place}"), side["known"].alias(f"_known_{place}"))
        here, then = pl.col(f"_label_{place}"), pl.col(f"_known_{place}")
        better = here.is_not_null() & (known.is_null() | (then >= known).fill_null(False) | label.is_null())
        label, known = pl.when(better).then(here).otherwise(label), pl.when(better).then(then).otherwise(known)
    found = found.with_columns(label.alias("label"), known.alias("known"))
    return found.drop([name for name in found.columns if name.startswith(("_label_", "_known_"))])


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def stack_labels(frames: list[pl.DataFrame], keys: list[str]) -> pl.DataFrame:
    """Put label frames under each other in the order they came; empty when there are none."""
    if not frames:
        return pl.DataFrame(schema={**dict.fromkeys(keys, pl.String), "label": pl.Float64, "known": TIME})
    return stack(frames)


def _made(store: Store, given: LabelSource, now: float, cache: bool) -> pl.DataFrame:
    """Make labels of every batch of facts; those of earlier batches come from the cache."""
    name = hashlib.sha256(f"{given.source}\0{given.definition}".encode()).hexdigest()[:12]
    kept = store.get(CACHE, name) if given.definition else None
    frames, seq = [], 0
    if kept:
        try:
            frames.append(pl.read_parquet(io.BytesIO(store.blobs.read(kept["labels"]))))
            seq = int(kept["seq"])
        except MissingError:  # another examination has replaced it since: make all of them
            kept = None
    newest = seq
    waiting: list[pl.DataFrame] = []
    for batch in store.read("facts", given.source, after=seq):
        facts = decode(batch.body, f"facts/{given.source}/{batch.seq}")
        if waiting and (waiting[0].schema != facts.schema or sum(map(len, waiting)) >= _AT_ONCE_ROWS):
            frames.append(_checked(given.labels_of(pl.concat(waiting)), given.source))
            waiting = []
        waiting.append(facts)
        newest = batch.seq
    if waiting:
        frames.append(_checked(given.labels_of(pl.concat(waiting)), given.source))
    if not frames:
        return pl.DataFrame()
    every = stack(frames)
    if cache and given.definition and newest > seq:
        sink = io.BytesIO()
        every.write_parquet(sink, compression="zstd")
        digest = store.blobs.put(sink.getvalue())
        store.put(CACHE, name, {"source": given.source, "labels": digest, "seq": newest}, at=now)
        if kept and kept["labels"] != digest:
            store.blobs.delete(kept["labels"])
    return every


def _checked(made: pl.DataFrame, source: str) -> pl.DataFrame:
    """Return the labels with types settled; raises InputError when a column of the seam is missing."""
    keys = [name for name in made.columns if name.startswith(KEY)]
    missing = [name for name in ("time", "label", "known") if name not in made.columns]
    if missing or not keys:
        raise InputError(
            sentence(
                "key_* columns, time, label and known",
                ", ".join(made.columns) or "no columns",
                at=f"the labels made of facts of '{source}'",
            )
        )
    return _typed(made.select([*keys, "time", "label", "known"]), keys).filter(pl.col("label").is_not_null())


def _typed(frame: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    times = [name for name in ("time", "known") if name in frame.columns]
    return frame.with_columns(
        pl.col("label").cast(pl.Float64, strict=False),
        *[pl.col(name).cast(pl.String) for name in keys if frame.schema[name] != pl.String],
        *[as_time(pl.col(name), frame.schema[name]) for name in times],
    )


def _latest(frame: pl.DataFrame, keys: list[str], until: float | None) -> tuple[pl.DataFrame, int, int]:
    """Keep the latest label of each row among those known by then; return how many were replaced, and changed."""
    if until is not None:
        frame = frame.filter(pl.col("known").is_null() | (pl.col("known") <= moment(until)))
    if not frame.height:
        return frame, 0, 0
    once = frame.unique(keys, keep="none", maintain_order=False)
    if once.height == frame.height:
        return frame, 0, 0
    ordered = frame.with_row_index("_order").sort("known", "_order", nulls_last=False)
    latest = ordered.group_by(keys, maintain_order=True).agg(
        pl.col("label").last(), pl.col("known").last(), pl.col("label").n_unique().alias("_said")
    )
    changed = int((latest["_said"] > 1).sum())
    return latest.drop("_said"), frame.height - latest.height, changed

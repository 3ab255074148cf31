"""One window of raw observations, read once and summarised: counts, times, a profile of its columns, its scored rows.

A window is read in chunks of bounded size and the profiles of the chunks are merged, so memory does not grow with
traffic. What is kept of each row is only what performance needs later, when its label comes: id, key, time, score,
version (the "scored rows"; sampled by the hash of the id beyond a bound, so the sample of a row does not depend on when
it is looked at). A row asked about twice (same key and time) is scored `once`, by its latest answer; traffic, latency,
errors and cost count every answer.

A closed window is summarised once: its summary is a record `watch-window` with two blobs, valid as long as no newer
batch reaches into the window. So examining a year costs what its last window costs, late observations are still taken
in, and summaries outlive raw observations that `prune` removed.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from tenon.limits import WatchLimits
from tenon.sketch import Profile, profile
from tenon.store import Store
from tenon.watch.observation import FEATURE, KEY, STREAM, TIME, decode, moment, settled, stack
from tenon.watch.retain import SUMMARY
from tenon.watch.stream import Span
from tenon.watch.window import start_of

FORMAT = 3  # of the summaries: another number makes them anew
SCORED = ("id", "time", "score", "version", "at")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """The summary of one window; `seq` is the last batch it covers."""

    start: float
    end: float
    seq: int
    rows: int = 0
    share: float = 1.0  # of the answered rows, that are among the scored ones
    first: float = math.nan
    last: float = math.nan
    gap_s: float = 0.0
    versions: Mapping[str, int] = field(default_factory=dict)
    p50_ms: float = math.nan
    p99_ms: float = math.nan
    slow: int = 0
    timed: int = 0
    errors: int = 0
    invalid: int = 0
    refused: int = 0
    good: int = 0
    usd: float = 0.0
    profile: Profile | None = None
    scored: pl.DataFrame | None = None  # None once `prune` has removed it
    told: Mapping[str, Any] = field(default_factory=dict)  # performance as last told, for when `scored` is gone


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Which window is read, and how: `until` cuts it short, `slow_ms` is what counts as slow."""

    start: float
    end: float
    until: float
    slow_ms: float
    kinds: Mapping[str, str] = field(default_factory=dict)  # feature -> as `drift.kinds` tells

    def name(self, model: str, limits: WatchLimits) -> str:
        """Name the summary of this window, by everything that it depends on but the rows."""
        parts = (FORMAT, model, self.start, self.end, self.slow_ms, limits.scored_rows, sorted(self.kinds.items()))
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def tally(store: Store, model: str, cut: Cut, held: list[Span], limits: WatchLimits) -> Tally:
    """Read one window and summarise it; `held` are the batches that reach into it. Two passes over no row."""
    expected = sum(span.rows for span in held)
    keep = limits.scored_rows / expected if expected > limits.scored_rows else 1.0
    profiles: Profile | None = None
    scored: list[pl.DataFrame] = []
    times: list[np.ndarray[Any, Any]] = []
    waits: list[np.ndarray[Any, Any]] = []
    versions: dict[str, int] = {}
    rows = errors = invalid = refused = good = 0
    usd = 0.0
    for chunk in _chunks(store, model, cut, limits):
        rows += chunk.height
        failed = chunk.filter(pl.col("error").fill_null("") != "").height
        errors += failed
        invalid += int((chunk["error"] == "invalid").sum())
        refused += int(chunk["error"].is_in(["refused", "late"]).sum())
        good += chunk.filter((pl.col("error").fill_null("") == "") & (pl.col("latency_ms") <= cut.slow_ms)).height
        usd += float(chunk["usd"].sum())
        times.append(chunk["time"].dt.epoch("us").to_numpy())
        waits.append(chunk["latency_ms"].drop_nulls().drop_nans().to_numpy())
        for version, count in chunk["version"].fill_null("").value_counts().iter_rows():
            versions[version] = versions.get(version, 0) + count
        answered = chunk.filter(pl.col("error").fill_null("") == "") if failed else chunk
        part = profile(features_of(answered, cut.kinds))
        profiles = part if profiles is None else profiles.merge(part)
        scored.append(_scored(answered, keep))
    waited = np.concatenate(waits) if waits else np.empty(0)
    first, last, gap_s = _gaps(times)
    return Tally(
        start=cut.start,
        end=cut.end,
        seq=max((span.seq for span in held), default=0),
        rows=rows,
        first=first,
        last=last,
        gap_s=gap_s,
        share=keep,
        versions={key: versions[key] for key in sorted(versions)},
        p50_ms=float(np.quantile(waited, 0.5)) if len(waited) else math.nan,
        p99_ms=float(np.quantile(waited, 0.99)) if len(waited) else math.nan,
        slow=int((waited > cut.slow_ms).sum()),
        timed=len(waited),
        errors=errors,
        invalid=invalid,
        refused=refused,
        good=good,
        usd=usd,
        profile=profiles,
        scored=stack(scored) if scored else None,
    )


def features_of(frame: pl.DataFrame, kinds: Mapping[str, str]) -> pl.DataFrame:
    """Return the feature columns under their own names, with the types of the reference, and the score."""
    columns = []
    for name in frame.columns:
        if not name.startswith(FEATURE):
            continue
        bare = name[len(FEATURE) :]
        kind = kinds.get(bare)
        if kind == "number":
            columns.append(pl.col(name).cast(pl.Float64, strict=False).alias(bare))
        elif kind == "flag" and frame.schema[name] != pl.String:
            columns.append((pl.col(name) != 0).cast(pl.String).alias(bare))
        elif kind == "time":
            columns.append((pl.col(name).cast(pl.Float64, strict=False) * 1e6).cast(pl.Int64).cast(TIME).alias(bare))
        elif kind in ("category", "flag"):
            columns.append(pl.col(name).cast(pl.String, strict=False).alias(bare))
        elif not kinds:
            columns.append(pl.col(name).alias(bare))
    return frame.select([*columns, "score"])


def starts_in(store: Store, model: str, span: Span, width_s: float, until: float) -> set[float]:
    """Return where the windows begin that rows of this one batch lie in."""
    batch = next(iter(store.read(STREAM, model, after=span.seq - 1, until=math.nextafter(span.last, math.inf))))
    times = decode(batch.body, f"{STREAM}/{model}/{batch.seq}")["time"].drop_nulls().dt.epoch("us").unique()
    return {start_of(at / 1e6, width_s) for at in times if at / 1e6 <= until}


# ── kept summaries ───────────────────────────────────────────────────────────────────────────────────────────────────


def kept(store: Store, name: str, seq: int) -> Tally | None:
    """Return the summary kept under this name when it covers batches up to `seq`, else None."""
    body = store.get(SUMMARY, name)
    if body is None or int(body["seq"]) < seq or not store.blobs.has(body["profile"]):
        return None
    scored = None
    if body["scored"] and store.blobs.has(body["scored"]):
        scored = pl.read_parquet(io.BytesIO(store.blobs.read(body["scored"])))
    numbers: dict[str, Any] = {key: math.nan if value is None else value for key, value in body["numbers"].items()}
    return Tally(
        seq=int(body["seq"]),
        profile=Profile.from_bytes(store.blobs.read(body["profile"])),
        scored=scored,
        told=body.get("told") or {},
        versions=body["versions"],
        **numbers,
    )


def keep(store: Store, name: str, model: str, found: Tally, *, at: float) -> None:
    """Keep the summary of a closed window. Writes two blobs and a record."""
    assert found.profile is not None and found.scored is not None, name
    sink = io.BytesIO()
    found.scored.write_parquet(sink, compression="zstd")
    numbers = ("start", "end", "rows", "share", "first", "last", "gap_s", "p50_ms", "p99_ms", "slow", "timed")
    values = {key: getattr(found, key) for key in (*numbers, "errors", "invalid", "refused", "good", "usd")}
    body = {
        "id": name,
        "model": model,
        "seq": found.seq,
        "start": found.start,
        "end": found.end,
        "profile": store.blobs.put(found.profile.to_bytes()),
        "scored": store.blobs.put(sink.getvalue()),
        "versions": dict(found.versions),
        "numbers": {
            key: None if isinstance(value, float) and math.isnan(value) else value for key, value in values.items()
        },
        "told": dict(found.told),
    }
    store.put(SUMMARY, name, body, at=at)


def retell(store: Store, name: str, told: Mapping[str, Any], *, at: float) -> None:
    """Replace what a kept summary tells of performance. Writes the record only."""
    with store.atomic():
        body = store.get(SUMMARY, name)
        if body is not None:
            store.put(SUMMARY, name, body | {"told": dict(told)}, at=at)


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _chunks(store: Store, model: str, cut: Cut, limits: WatchLimits) -> Iterator[pl.DataFrame]:
    """Yield the rows of the window in frames of about `chunk_rows`."""
    until = math.nextafter(min(cut.end, cut.until), math.inf)
    waiting: list[pl.DataFrame] = []
    for batch in store.read(STREAM, model, since=cut.start, until=until):
        frame = settled(decode(batch.body, f"{STREAM}/{model}/{batch.seq}"))
        inside = (pl.col("time") >= moment(cut.start)) & (pl.col("time") < moment(cut.end))
        if cut.until < cut.end:
            inside &= pl.col("time") <= moment(cut.until)
        frame = frame.filter(inside)
        if not frame.height:
            continue
        waiting.append(frame)
        if sum(part.height for part in waiting) >= limits.chunk_rows:
            yield stack(waiting)
            waiting = []
    if waiting:
        yield stack(waiting)


def once(scored: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Keep the latest answer of each row: of each key and time, or of each id when rows have no key."""
    identity = [*keys, "time"] if keys else ["id"]
    if not keys and scored["id"].null_count():
        return scored
    return scored.sort("at", maintain_order=True).unique(identity, keep="last", maintain_order=True)


def _scored(frame: pl.DataFrame, keep: float) -> pl.DataFrame:
    """Return what performance needs of the answered rows, sampled by the hash of their identity."""
    keys = [name for name in frame.columns if name.startswith(KEY)]
    thin = frame.select([*SCORED, *keys]).filter(pl.col("score").is_finite())
    if keep >= 1:
        return thin
    identity = pl.struct([*keys, "time"]) if keys else pl.col("id")
    return thin.filter(identity.hash(seed=0) < int(keep * 2**64))


def _gaps(times: list[np.ndarray[Any, Any]]) -> tuple[float, float, float]:
    """Return the first and last time, and the longest stretch between two rows."""
    if not times:
        return math.nan, math.nan, 0.0
    every = np.sort(np.concatenate(times))
    longest = float(np.diff(every).max()) / 1e6 if len(every) > 1 else 0.0
    return float(every[0]) / 1e6, float(every[-1]) / 1e6, longest

"""Look at runs: find one by name, its curves, what its metrics came to, several side by side. Reads only.

A run is named by its id or the beginning of it, or as MODEL@latest, MODEL@previous or MODEL@ALIAS (the run behind the
version that has the alias); without MODEL, of all runs. Only the store is opened, not the project, so that a user's own
loop without a `project.py` is looked at in the same way.

Curves are thinned to so many columns, of which each keeps its lowest and highest point: an outlier of one step in a
million is still drawn. What was logged out of order is put in order of steps first.
"""

from __future__ import annotations

import math
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenon.errors import MissingError, UsageError, nearest, sentence
from tenon.report.curve import Curve, thinned
from tenon.store import Store
from tenon.training import tally, track

LATEST, PREVIOUS = "latest", "previous"
MOST = 8  # runs that are drawn in one picture
COLUMNS = 600  # of a thinned curve
VERSION = re.compile(r"[0-9a-f]{4,64}|.+@\d+")  # names of data that always mean the same


def find(store: Store, name: str) -> dict[str, Any]:
    """Return the run of that id, beginning of an id, or MODEL@latest, @previous or @ALIAS."""
    model, at, which = name.partition("@")
    if not at:
        return track.load(store, name)
    found = track.runs(store, model=model or None, limit=2)
    if not found:
        known = models(store)
        hint = f"a model with runs: {nearest(model, known)}" if known else "run `tenon run` first"
        raise MissingError(sentence("a run", f"'{name}'", at=str(store.root), hint=hint))
    if which in (LATEST, ""):
        return found[0]
    if which == PREVIOUS:
        if len(found) == 1:
            got = f"'{name}', where there is only {found[0]['id']}"
            raise MissingError(sentence("a run before the latest", got, at=str(store.root), hint="train again"))
        return found[1]
    held = store.get("alias", f"{model}/{which}") or {}
    version = store.get("version", str(held.get("version"))) or {}
    record = store.get("run", str(version.get("run")))
    if record is None:
        aliases = [str(alias.get("alias")) for alias in store.find("alias", model=model)]
        hint = nearest(which, [LATEST, PREVIOUS, *aliases])
        raise MissingError(sentence("latest, previous or an alias after the @", f"'{name}'", hint=hint))
    return record


def models(store: Store) -> list[str]:
    """Return the models that have runs."""
    rows = store.query("SELECT DISTINCT model FROM record WHERE kind = 'run' AND model IS NOT NULL ORDER BY model")
    return [str(row["model"]) for row in rows]


def listed(store: Store, *, model: str = "", limit: int | None = None) -> list[dict[str, Any]]:
    """Return the records of runs, newest first; MissingError names the models there are when `model` has none."""
    found = track.runs(store, model=model or None, limit=limit)
    if not found and model:
        known = models(store)
        hint = nearest(model, known) if known else "run `tenon run` first"
        raise MissingError(sentence("a model with runs", f"'{model}'", at=str(store.root), hint=hint))
    return found


# ── while it runs ────────────────────────────────────────────────────────────────────────────────────────────────────


def followed(
    store: Store,
    name: str,
    *,
    metric: str = "",
    every_s: float = 1.0,
    once: bool = False,
    wait: Callable[[float], None] = time.sleep,
) -> Iterator[tuple[dict[str, Any], str, NDArray[np.float64], bool]]:
    """Yield a run's record, the name and values of one metric, and whether this is the last, until the run ends.

    Only what was logged since the last look is read. Of a long run each value is the mean of several points, POINTS at
    most. A run whose process has ended without finishing it is told as `interrupted`.
    """
    id = str(find(store, name)["id"])
    curve = track.Tail(store, id, metric)
    while True:
        record = track.load(store, id)
        at_work = record.get("status") == "running"
        if at_work and not track.alive(record):
            record, at_work = {**record, "status": "interrupted: its process has ended"}, False
        curve.read()
        last = once or not at_work
        yield record, curve.name, curve.values(), last
        if last:
            return
        wait(every_s)


# ── what metrics came to ─────────────────────────────────────────────────────────────────────────────────────────────


def final(store: Store, record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what each logged metric came to; a run at work, or one of an earlier release, is read for it."""
    kept = record.get("final")
    if isinstance(kept, Mapping):
        return {str(name): dict(one) for name, one in kept.items()}
    return tally.curves_tally(track.curves(store, record["id"]))


def scores(record: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (side, metric, {value, low, high}) of the scores a run's record holds, in whatever form they were given."""
    for side, body in _mapping(record.get("metrics")).items():
        if (one := _score(body)) is not None:
            yield "", str(side), one
        for name, inner in _mapping(body).items():
            if (one := _score(inner)) is not None and "value" not in _mapping(body):
                yield str(side), str(name), one


def _score(value: Any) -> dict[str, Any] | None:
    body = value if isinstance(value, Mapping) else {"value": value}
    number = body.get("value")
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
        return None
    low, high = body.get("low"), body.get("high")
    ends = isinstance(low, (int, float)) and isinstance(high, (int, float)) and math.isfinite(high - low) and low < high
    return {"value": float(number), "low": low if ends else None, "high": high if ends else None}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


# ── curves ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def curves(store: Store, record: Mapping[str, Any], *, columns: int = COLUMNS) -> dict[str, Curve]:
    """Return every metric of a run as a curve of at most `columns` columns; extremes are kept."""
    return {
        name: thinned(steps, values, columns=columns)
        for name, (steps, values) in sorted(track.curves(store, record["id"]).items())
    }


def run(store: Store, name: str) -> dict[str, Any]:
    """Return a run's record, its curves, what they came to, and the data behind it."""
    record = find(store, name)
    return {
        "run": record,
        "curves": curves(store, record),
        "final": final(store, record),
        "data": datasets(store, record),
    }


def compare(store: Store, names: Sequence[str]) -> dict[str, Any]:
    """Return several runs with their curves and scores, in the order they were named; at most `MOST`, each once."""
    records = [find(store, name) for name in names]
    ids = [record["id"] for record in records]
    if not 2 <= len(ids) <= MOST or len(set(ids)) < len(ids):
        got = f"{len(ids)}" + (", some of them twice" if len(set(ids)) < len(ids) else "")
        raise UsageError(sentence(f"2 to {MOST} different runs", got, hint="name each once"))
    return {
        "runs": records,
        "curves": [curves(store, record) for record in records],
        "final": [final(store, record) for record in records],
    }


# ── data ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def datasets(store: Store, record: Mapping[str, Any]) -> dict[str, str]:
    """Return {source: version of its data} of a run, in the words of `tenon data` where it knows them.

    A project's runs name their data by way of their features; a user's own loop may say `data={"flights": ...}`, with
    an id or a numbered version; words that mean another version tomorrow are left as they are.
    """
    from tenon.flow import history

    features = store.get("features", str(record.get("features") or "")) or {}
    used = {**_mapping(features.get("datasets")), **_mapping(record.get("data"))}
    found = {}
    for source, id in used.items():
        found[str(source)] = str(id)
        if VERSION.fullmatch(str(id)):
            try:
                found[str(source)] = history.find(store, str(id)).name
            except (MissingError, UsageError):
                continue  # data that tenon does not keep has only its name
    return found


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def artifacts(store: Store, name: str) -> list[dict[str, Any]]:
    """Return the files a run kept, and its code: {name, digest, bytes}; bytes is None when it is no longer there."""
    record = find(store, name)
    kept = {**_mapping(record.get("artifacts")), **{f"code/{n}": d for n, d in _mapping(record.get("code")).items()}}
    gone = store.blobs.absent(kept.values())
    return [
        {"name": name, "digest": digest, "bytes": None if digest in gone else store.blobs.size(digest)}
        for name, digest in kept.items()
    ]


def fetch(store: Store, name: str, artifact: str, out: Path | None, *, force: bool = False) -> dict[str, Any]:
    """Write a file that a run kept to `out`, beside it first and then renamed; CorruptError when its bytes changed."""
    known = {one["name"]: one for one in artifacts(store, name)}
    if artifact not in known:
        hint = nearest(artifact, known) if known else "it kept none"
        raise MissingError(sentence(f"an artifact of run '{name}'", f"'{artifact}'", hint=hint))
    if out is None:
        raise UsageError(sentence("--out FILE", "no place to write to", at=f"artifact '{artifact}'"))
    if out.exists() and not force:
        raise UsageError(sentence("a new file", "one that exists", at=str(out), hint="add --force to replace it"))
    store.blobs.check(known[artifact]["digest"])
    beside = out.with_name(f"{out.name}.part")
    try:
        shutil.copyfile(store.blobs.path(known[artifact]["digest"]), beside)
        beside.replace(out)
    finally:
        beside.unlink(missing_ok=True)
    return {**known[artifact], "file": str(out)}

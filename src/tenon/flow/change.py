"""What changed between two runs, most telling first; reads records, and of blobs only code and kept scores.

Order: parameters, features, data, split and label, seed, code, packages, Python, hardware, configuration; then what
came of it: metrics and cost. A difference of metrics is judged against noise. Where both runs kept their scores of
the same test rows it is the paired bootstrap of `metric.compare`, which sees far smaller differences; otherwise the
two intervals are taken as independent and normal, so that the difference has the root of the sum of their squared
widths. What was logged once and has no interval is shown, and its noise called unknown.

Versions of packages are compared as numbers, part by part: the first part that differs says whether the change is
major, minor or patch. Anything beyond (a release candidate, a build) is called other.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tenon import metric
from tenon.errors import MissingError, StoreError, UsageError
from tenon.flow import history, look, piece
from tenon.store import Store

GROUPS = ("parameters", "features", "data", "split", "seed", "code", "packages", "python", "hardware", "configuration")
LEVELS = ("major", "minor", "patch", "other")
KINDS = (*LEVELS, "changed", "added", "gone")
PAIRED_ROWS = 200_000  # scores of more rows are not compared pair by pair: their intervals are narrow enough
DIFF_LINES = 2_000  # lines of a file's difference that are kept


def between(store: Store, before: str, after: str) -> dict[str, Any]:
    """Say what changed from one run to another: changes, files, metrics and cost, as plain data."""
    pair = look.find(store, before), look.find(store, after)
    changes = [
        *_leaves("parameters", *(_parameters(run) for run in pair)),
        *_features(store, *pair),
        *_data(store, *pair),
        *_leaves("split", *({name: run.get(name) for name in ("label", "split", "task")} for run in pair)),
        *_leaves("seed", *({"seed": run.get("seed")} for run in pair)),
        *_git(*pair),
        *_packages(*pair),
        *_leaves("python", *({"python": run.get("python")} for run in pair)),
        *_leaves("hardware", *(_mapping(run.get("hardware")) for run in pair)),
        *_leaves("configuration", *(_mapping(run.get("config")) for run in pair)),
    ]
    files = list(_files(store, *pair))
    return {
        "before": _side(pair[0]),
        "after": _side(pair[1]),
        "same": not changes and not files,
        "changes": changes,
        "files": files,
        "metrics": [*_scores(store, *pair), *_finals(store, *pair)],
        "cost": list(_cost(*pair)),
    }


def _side(run: Mapping[str, Any]) -> dict[str, Any]:
    return {name: run.get(name) for name in ("id", "model", "status", "trainer", "at")}


def _change(group: str, name: str, before: Any, after: Any, *, kind: str = "", said: str = "") -> dict[str, Any]:
    kind = kind or ("added" if before is None else "gone" if after is None else "changed")
    return {"group": group, "name": name, "kind": kind, "before": before, "after": after, "said": said}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Return the leaves of nested plain data by their paths; what is empty is not there."""
    if isinstance(value, Mapping):
        found: dict[str, Any] = {}
        for name, inner in value.items():
            found.update(_flat(inner, f"{path}.{name}" if path else str(name)))
        return found
    return {path: value} if value not in (None, "", [], {}) else {}


def _leaves(group: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    was, now = _flat(before), _flat(after)
    for name in sorted({*was, *now}):
        if not _equal(was.get(name), now.get(name)):
            yield _change(group, name, was.get(name), now.get(name))


def _equal(one: Any, other: Any) -> bool:
    both_nan = isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other)
    return both_nan or ((type(one) is type(other) or not isinstance(one, bool)) and bool(one == other))


# ── what a run was made of ───────────────────────────────────────────────────────────────────────────────────────────


def _parameters(run: Mapping[str, Any]) -> dict[str, Any]:
    return {**_mapping(run.get("params")), **{n: run.get(n) for n in ("model", "trainer", "budget")}}


def _features(store: Store, *pair: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Compare definitions feature by feature, each told as its SQL with what stands around it."""
    known = []
    for run in pair:
        record = store.get("features", str(run.get("features") or "")) or {}
        known.append({str(one["name"]): _feature(one) for one in record.get("definition", [])})
    yield from _leaves("features", known[0], known[1])


def _feature(body: Mapping[str, Any]) -> str:
    parts = [str(body.get("sql") or body.get("function") or "")]
    parts += [f"{name} {value}" for name, value in body.items() if name not in ("name", "sql", "function") and value]
    return ", ".join(part for part in parts if part)


def _data(store: Store, *pair: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Compare versions of data by their rows, not by which record holds them, and say how the rows differ in number."""
    used = [look.datasets(store, run) for run in pair]
    for source in sorted({*used[0], *used[1]}):
        was, now = used[0].get(source), used[1].get(source)
        if was == now:
            continue
        said = ""
        try:
            versions = [history.find(store, name) for name in (was, now) if name and look.VERSION.fullmatch(name)]
            if len(versions) == 2:
                said = f"{versions[1].rows - versions[0].rows:+,} rows; see `tenon data diff {was} {now}`"
        except (MissingError, UsageError):
            pass  # data that tenon does not keep has only its name
        yield _change("data", source, was, now, said=said)


def _git(*pair: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    states = [_mapping(run.get("git")) for run in pair]
    for name in ("commit", "branch", "dirty"):
        was, now = (state.get(name) for state in states)
        if was != now:
            hint = "files differ from the commit: " + ", ".join(states[1].get("changed", [])[:10])
            yield _change("code", name, was, now, said=hint if name == "dirty" and now else "")


def _files(store: Store, *pair: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Compare the code that was kept, file by file, as unified differences."""
    kept = [_mapping(run.get("code")) for run in pair]
    if not all("code" in run for run in pair):
        return
    for name in sorted({*kept[0], *kept[1]}):
        was, now = kept[0].get(name), kept[1].get(name)
        if was == now:
            continue
        texts = _lines(store, was), _lines(store, now)
        lines = list(difflib.unified_diff(texts[0], texts[1], f"before/{name}", f"after/{name}", lineterm=""))
        kind = "added" if was is None else "gone" if now is None else "changed"
        yield {"name": name, "kind": kind, "diff": "\n".join(lines[:DIFF_LINES]), "cut": len(lines) > DIFF_LINES}


def _lines(store: Store, digest: str | None) -> list[str]:
    if digest is None:
        return []
    try:
        return store.blobs.read(digest).decode("utf-8", "replace").splitlines()
    except (StoreError, MissingError):
        return ["(no longer in the store)"]


def _packages(*pair: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    was, now = (_mapping(run.get("packages")) for run in pair)
    if not was or not now:
        return  # a run that did not come so far: nothing is known, which is no change
    found = []
    for name in {*was, *now}:
        if was.get(name) != now.get(name):
            both = name in was and name in now
            kind = level(str(was[name]), str(now[name])) if both else ""
            found.append(_change("packages", name, was.get(name), now.get(name), kind=kind))
    yield from sorted(found, key=lambda change: (KINDS.index(change["kind"]), change["name"]))


def level(before: str, after: str) -> str:
    """Say which part of a version changed: major, minor, patch, or other (a candidate, a build)."""
    parts = [[int(digits) for digits in re.findall(r"\d+", _release(text))] for text in (before, after)]
    for place in range(3):
        was, now = (part[place] if place < len(part) else 0 for part in parts)
        if was != now:
            return LEVELS[place]
    return "other"


def _release(version: str) -> str:
    """Return the dotted numbers at the beginning of a version, without an epoch."""
    found = re.match(r"\s*v?(?:\d+!)?(\d+(?:\.\d+)*)", version)
    return found[1] if found else ""


# ── what came of it ──────────────────────────────────────────────────────────────────────────────────────────────────


def _scores(store: Store, *pair: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Compare the scores of the records, each difference with its interval and a verdict."""
    known = [{(side, name): one for side, name, one in look.scores(run)} for run in pair]
    paired = {side: _paired(store, side, *pair) for side in {side for side, _ in known[0] if side in ("test", "valid")}}
    for side, name in dict.fromkeys([*known[0], *known[1]]):
        was, now = (scores.get((side, name)) for scores in known)
        body: dict[str, Any] = {"side": side, "metric": name, "before": was, "after": now}
        if was is None or now is None:
            yield {**body, "delta": None, "low": None, "high": None, "verdict": "in one run only", "how": ""}
            continue
        better = paired.get(side, {}).get(name)
        yield {**body, **(_by_rows(name, was, now, better) if better else _by_intervals(name, was, now))}


def _paired(store: Store, side: str, *pair: Mapping[str, Any]) -> dict[str, metric.Estimate]:
    """Compare two runs on the rows that both scored, where those are the same rows; else nothing."""
    digests = [_mapping(run.get("artifacts")).get(f"{side}_scores") for run in pair]
    task = pair[0].get("task")
    if not all(digests) or task not in metric.METRICS or task != pair[1].get("task"):
        return {}
    try:
        was, now = (piece.parquet(store, str(digest)) for digest in digests)
    except (StoreError, MissingError):
        return {}
    rows = [frame.select("time", "label") for frame in (was, now)]
    if was.height > PAIRED_ROWS or not was.height or not rows[0].equals(rows[1]):
        return {}
    truth = was["label"].to_numpy()
    names = [name for name in metric.METRICS[task] if name not in metric.RANKED or len(np.unique(truth)) > 1]
    return metric.compare(task, truth, now["score"].to_numpy(), was["score"].to_numpy(), names=names)


def _by_rows(name: str, was: Mapping[str, Any], now: Mapping[str, Any], better: metric.Estimate) -> dict[str, Any]:
    sign = 1.0 if metric.HIGHER_IS_BETTER[name] else -1.0
    low, high = sorted((sign * better.low, sign * better.high))
    verdict = "better" if better.low > 0 else "worse" if better.high < 0 else "within noise"
    return {"delta": now["value"] - was["value"], "low": low, "high": high, "verdict": verdict, "how": "same rows"}


def _by_intervals(name: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    delta = now["value"] - was["value"]
    if was["low"] is None or now["low"] is None:
        said = "no interval: noise unknown" if delta else "the same"
        return {"delta": delta, "low": None, "high": None, "verdict": said, "how": ""}
    half = math.hypot(*((one["high"] - one["low"]) / 2 for one in (was, now)))
    low, high = delta - half, delta + half
    if low <= 0 <= high:
        verdict = "within noise"
    elif name in metric.HIGHER_IS_BETTER:
        verdict = "better" if (delta > 0) == metric.HIGHER_IS_BETTER[name] else "worse"
    else:
        verdict = "higher, beyond noise" if delta > 0 else "lower, beyond noise"
    return {"delta": delta, "low": low, "high": high, "verdict": verdict, "how": "intervals"}


def _finals(store: Store, *pair: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Compare what logged metrics ended at; one value each, so nothing is known of their noise."""
    known = [look.final(store, run) for run in pair]
    for name in dict.fromkeys([*known[0], *known[1]]):
        ends = [_mapping(finals.get(name)).get("last") for finals in known]
        was, now = ({"value": end, "low": None, "high": None} if end is not None else None for end in ends)
        body = {"side": "last", "metric": name, "before": was, "after": now}
        if was and now:
            yield {**body, **_by_intervals("", was, now)}
        else:
            here = [name in finals for finals in known]
            said = "no number at the end" if all(here) else "in one run only"
            yield {**body, "delta": None, "low": None, "high": None, "verdict": said, "how": ""}


def _cost(*pair: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    energies = [_mapping(run.get("energy")) for run in pair]
    for name in ("usd", "seconds", "cpu_s", "peak_bytes", "kwh"):
        was, now = ((energy if name == "kwh" else run).get(name) for run, energy in zip(pair, energies, strict=True))
        if was is None and now is None:
            continue
        sources = [energy.get("source", "") for energy in energies] if name == "kwh" else []
        ratio = now / was if was and now is not None else None
        yield {"name": name, "before": was, "after": now, "ratio": ratio, "how": " / ".join(dict.fromkeys(sources))}

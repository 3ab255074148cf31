"""Look at runs: one with its curves, two side by side with everything that differs. Reads only.

A run is named by its id or the beginning of it. Curves are thinned to what a terminal line can show. A comparison goes
through the records leaf by leaf, down to a package's version, and through what lies behind them: the datasets and the
definition of each feature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tenon.errors import MissingError, UsageError, nearest, sentence
from tenon.flow.work import Work
from tenon.training import track

BARS = "▁▂▃▄▅▆▇█"
SAMPLES = 60  # points of a curve that are drawn or compared


def find(work: Work, name: str) -> dict[str, Any]:
    """Return the run of that id, or of that beginning of an id when there is only one."""
    exact = work.store.get("run", name)
    if exact is not None:
        return exact
    every = work.store.find("run")
    found = [run for run in every if len(name) >= 4 and run["id"].startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(run["id"] for run in found)
        raise UsageError(sentence("one run", f"'{name}', the beginning of {ids}", hint="give more of the id"))
    ids_known = [run["id"] for run in every]
    hint = nearest(name, ids_known) if ids_known else "run `tenon run` first"
    raise MissingError(sentence("a run of this project", f"'{name}'", hint=hint))


def run(work: Work, name: str) -> dict[str, Any]:
    """Return a run's record and its curves, each thinned to at most 60 points that keep the first and the last."""
    record = find(work, name)
    curves = {}
    for metric, (steps, values) in track.curves(work.store, record["id"]).items():
        chosen = _thin(len(steps))
        curves[metric] = {"steps": [int(steps[i]) for i in chosen], "values": [float(values[i]) for i in chosen]}
    return {"run": record, "curves": curves}


def compare(work: Work, first: str, second: str) -> dict[str, Any]:
    """Return two runs' test metrics side by side, and each fact of the two records that differs."""
    left, right = find(work, first), find(work, second)
    scores = [run.get("metrics", {}).get("test", {}) for run in (left, right)]
    metrics = [
        {
            "metric": name,
            "first": scores[0].get(name),
            "second": scores[1].get(name),
            "delta": scores[1][name]["value"] - scores[0][name]["value"]
            if name in scores[0] and name in scores[1]
            else None,
        }
        for name in dict.fromkeys([*scores[0], *scores[1]])
    ]
    names = ("trainer", "params", "seed", "features", "split", "git", "python", "packages", "hardware", "config")
    known = [{**{name: run.get(name) for name in names}, **_behind(work, run)} for run in (left, right)]
    flat = [_flat(facts) for facts in known]
    changes = [
        {"what": name, "first": flat[0].get(name), "second": flat[1].get(name)}
        for name in sorted(set(flat[0]) | set(flat[1]))
        if flat[0].get(name) != flat[1].get(name)
    ]
    return {"first": left["id"], "second": right["id"], "metrics": metrics, "changes": changes}


def _behind(work: Work, run: Mapping[str, Any]) -> dict[str, Any]:
    """Return what lies behind a run: its datasets and the definition of each feature."""
    record = work.store.get("features", run.get("features", "")) or {}
    definition = {feature["name"]: feature for feature in record.get("definition", [])}
    return {"dataset": record.get("datasets", {}), "feature": definition}


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        found: dict[str, Any] = {}
        for name, inner in value.items():
            found.update(_flat(inner, f"{path}.{name}" if path else str(name)))
        return found
    return {path: value} if value not in (None, "", [], {}) else {}


def _thin(length: int) -> list[int]:
    if length <= SAMPLES:
        return list(range(length))
    return sorted({round(i * (length - 1) / (SAMPLES - 1)) for i in range(SAMPLES)})


def sparkline(values: Sequence[float]) -> str:
    """Draw values as one line of bars; what is no number (NaN, infinity) is shown as ``!``."""
    finite = [value for value in values if value - value == 0]
    if not finite:
        return "!" * len(values)
    low, high = min(finite), max(finite)
    span = (high - low) or 1.0
    return "".join(BARS[int((value - low) / span * (len(BARS) - 1))] if value - value == 0 else "!" for value in values)

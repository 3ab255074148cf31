"""What the pages show, read from the store's records as plain data; nothing is written and nothing is computed twice.

Records are those of docs/design.md. Every field is optional here: a record of an older release, or of a run that died,
shows with what it has. Lists are cut at bounds, because a page is read by people.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tenon.store import Store

Record = dict[str, Any]
LIST = 200  # rows of a list
POINTS = 600  # points of a curve
ORDER = {"error": 0, "warning": 1, "info": 2}
FIRST = ("roc_auc", "average_precision", "brier", "log_loss", "rmse", "mae", "r2")


def models(store: Store) -> list[str]:
    """Name every model the store knows, sorted."""
    rows = store.query(
        "SELECT DISTINCT model FROM record WHERE model IS NOT NULL AND kind IN "
        "('run', 'version', 'alias', 'watch', 'features') ORDER BY model"
    )
    return [str(row["model"]) for row in rows]


def declared(store: Store, model: str) -> Record:
    """Return the owner's words for a model, from the newest project record; empty when there are none."""
    for project in store.find("project", limit=20):
        for one in project.get("models") or ():
            if one.get("name") == model:
                return dict(one)
    return {}


def overview(store: Store) -> Record:
    """Return one card for each model, with what needs attention and what everything cost."""
    cards = [card(store, model) for model in models(store)]
    spent = store.query("SELECT COUNT(*) AS n, COALESCE(SUM(usd), 0) AS usd FROM entry")[0]
    return {
        "cards": cards,
        "usd": spent["usd"],
        "datasets": latest_datasets(store),
        "runs": store.find("run", limit=6),
        "stored_bytes": store.size_bytes(),
    }


def card(store: Store, model: str) -> Record:
    """Return what one looks for first about a model."""
    alias = store.get("alias", f"{model}/production")
    version = store.get("version", str(alias["version"])) if alias else None
    newest = next(iter(store.find("version", model=model, limit=1)), None)
    shown = version or newest or {}
    run = store.get("run", str(shown.get("run"))) if shown.get("run") else None
    run = run or next(iter(store.find("run", model=model, limit=1)), {})
    watch = next(iter(store.find("watch", model=model, limit=1)), {})
    metric = leading(run)
    values = [_value(window, metric) for window in watch.get("windows") or ()]
    return {
        "model": model,
        "words": declared(store, model),
        "alias": alias or {},
        "version": shown,
        "in_production": version is not None,
        "run": run,
        "metric": metric,
        "watch": watch,
        "worst": worst(watch.get("findings") or ()),
        "trend": values,
        "usd": cost_of(store, model),
    }


def leading(run: Mapping[str, Any]) -> str:
    """Name the metric that decides: the task's first of those measured on test."""
    test = (run.get("metrics") or {}).get("test") or {}
    return next((name for name in FIRST if name in test), next(iter(test), ""))


def cost_of(store: Store, model: str) -> float:
    """Sum what the ledger holds for a model: its requests, its stages, its runs."""
    stages = [f"{stage}/{model}" for stage in ("run", "features", "version", "watch", "report")]
    row = store.query(
        f"SELECT COALESCE(SUM(usd), 0) AS usd FROM entry WHERE subject IN ({', '.join('?' * (len(stages) + 1))}) "
        "OR subject IN (SELECT id FROM record WHERE model = ? AND kind IN ('run', 'version', 'features'))",
        (model, *stages, model),
    )[0]
    return float(row["usd"])


def worst(findings: Any) -> str:
    """Return the gravest severity among findings, or an empty text."""
    found = [str(one.get("severity")) for one in findings if isinstance(one, Mapping)]
    return min(found, key=lambda one: ORDER.get(one, 3), default="")


def model_page(store: Store, model: str) -> Record:
    """Return everything about one model: versions, alias history, gate, the run behind it, the last watching."""
    held: dict[str, list[str]] = {}
    for alias in store.find("alias", model=model):
        held.setdefault(str(alias.get("version")), []).append(str(alias.get("alias")))
    versions = store.find("version", model=model, limit=LIST)
    return {
        **card(store, model),
        "versions": [{**one, "aliases": held.get(str(one.get("id")), [])} for one in versions],
        "history": sorted(
            store.events("alias", model, limit=LIST) + store.events("serving", model, limit=LIST),
            key=lambda event: (event["at"], event["seq"]),
            reverse=True,
        )[:60],
        "runs": store.find("run", model=model, limit=20),
        "features": features_of(store, model),
        "numbers": {str(one.get("id")): one.get("number") for one in versions},
    }


def features_of(store: Store, model: str) -> Record:
    """Return the newest features record of a model, or nothing."""
    return next(iter(store.find("features", model=model, limit=1)), {})


def runs(store: Store, model: str = "", status: str = "") -> list[Record]:
    """List runs, newest first."""
    equals: dict[str, Any] = {name: value for name, value in (("model", model), ("status", status)) if value}
    return store.find("run", limit=LIST, **equals)


def curves(store: Store, run: str) -> dict[str, list[tuple[float, float]]]:
    """Return the logged metrics of a run as (step, value), thinned to what a picture can show."""
    from tenon.training import track

    found = {}
    for name, (steps, values) in sorted(track.curves(store, run).items()):
        pairs = [(float(x), float(y)) for x, y in zip(steps.tolist(), values.tolist(), strict=True) if math.isfinite(y)]
        if len(pairs) > 1:
            found[name] = thinned(sorted(pairs))
    return found


def thinned(pairs: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Keep the first, last, lowest and highest point of each of many short stretches, so that no spike is hidden."""
    if len(pairs) <= POINTS:
        return pairs
    stretch = math.ceil(4 * len(pairs) / POINTS)
    kept: list[tuple[float, float]] = []
    for start in range(0, len(pairs), stretch):
        part = pairs[start : start + stretch]
        kept += {part[0], part[-1], min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
    return sorted(kept)


def compared(store: Store, ids: list[str]) -> list[Record]:
    """Return the records of several runs, in the order asked, those that exist."""
    found = [store.get("run", one) for one in ids[:6]]
    return [one for one in found if one is not None]


def differences(records: list[Record]) -> list[tuple[str, list[str]]]:
    """List the settings in which runs differ: parameters, seed, trainer, packages, git, hardware; by dotted name."""
    flat = [dict(_flattened(one)) for one in records]
    names = sorted({name for one in flat for name in one})
    rows = [(name, [one.get(name, "–") for one in flat]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _flattened(record: Record) -> list[tuple[str, str]]:
    """Return the settings of a run as dotted names and texts."""
    found: list[tuple[str, str]] = []

    def walk(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk(f"{name}.{key}", item)
        else:
            found.append((name, str(value)))

    for field in ("trainer", "seed", "params", "features", "git", "python", "packages", "hardware", "config"):
        if field in record:
            walk(field, record[field])
    return found


def latest_datasets(store: Store) -> list[Record]:
    """Return the newest dataset of each source."""
    newest: dict[str, Record] = {}
    for one in store.find("dataset", limit=LIST):
        newest.setdefault(str(one.get("source")), one)
    return [newest[source] for source in sorted(newest)]


def watch_page(store: Store, model: str, id: str = "") -> Record:
    """Return one examination (default: the newest) with the run it is compared with, and the list of earlier ones."""
    every = store.find("watch", model=model, limit=50)
    watch = next((one for one in every if one.get("id") == id), None) if id else next(iter(every), None)
    version = (store.get("version", str(watch["version"])) if watch and watch.get("version") else None) or {}
    run = (store.get("run", str(version["run"])) if version.get("run") else None) or card(store, model)["run"]
    expected = (watch or {}).get("expected") or {}
    return {
        "model": model,
        "words": declared(store, model),
        "watch": watch or {},
        "others": every,
        "run": run,
        "metric": expected.get("metric") or leading(run),
    }


def findings(store: Store, severity: str = "") -> list[Record]:
    """Gather what tenon last said about each dataset, model and run, gravest first."""
    found: list[Record] = []

    def add(record: Record, about: str, link: str) -> None:
        found.extend(
            {**one, "about": about, "link": link, "at": record.get("at")}
            for one in record.get("findings") or ()
            if isinstance(one, Mapping) and (not severity or one.get("severity") == severity)
        )

    for dataset in latest_datasets(store):
        add(dataset, f"data {dataset.get('source')}", f"/data/{dataset.get('id')}")
    for model in models(store):
        for watch in store.find("watch", model=model, limit=1):
            add(watch, f"watching {model}", f"/watch/{model}")
        for run in store.find("run", model=model, limit=3):
            add(run, f"run {run.get('id')}", f"/runs/{run.get('id')}")
    return sorted(found, key=lambda one: ORDER.get(str(one.get("severity")), 3))[:LIST]


def ledger(store: Store) -> Record:
    """Return what everything cost: in all, by kind, by subject, by day, and the newest entries."""
    by_kind = store.query(
        "SELECT kind AS name, COUNT(*) AS n, SUM(usd) AS usd FROM entry GROUP BY kind ORDER BY 3 DESC"
    )
    by_subject = store.query(
        "SELECT subject AS name, COUNT(*) AS n, SUM(usd) AS usd FROM entry GROUP BY subject ORDER BY 3 DESC LIMIT 20"
    )
    days: dict[int, float] = {}
    for row in store.query("SELECT at, usd FROM entry ORDER BY at DESC LIMIT 20000"):
        days[int(row["at"] // 86_400)] = days.get(int(row["at"] // 86_400), 0.0) + float(row["usd"])
    newest = store.query("SELECT at, kind, subject, quantity, unit, usd, note FROM entry ORDER BY seq DESC LIMIT 60")
    return {
        "usd": sum(float(row["usd"]) for row in by_kind),
        "by_kind": by_kind,
        "by_subject": by_subject,
        "days": [(day * 86_400.0, days[day]) for day in sorted(days)],
        "entries": newest,
        "stored_bytes": store.size_bytes(),
    }


def _value(window: Mapping[str, Any], metric: str) -> float | None:
    """Return the metric of a window that is mature, else None."""
    body = (window.get("metrics") or {}).get(metric)
    if not isinstance(body, Mapping) or window.get("maturing") or window.get("open"):
        return None
    value = body.get("value")
    return float(value) if isinstance(value, (int, float)) else None

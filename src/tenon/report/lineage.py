"""From a model's name back along its lineage: which version, run, features, datasets and watching a page is about.

The version in production leads, since that is what people are using; without one the newest version, without any
version the newest run. What hangs on it follows by id. A record that is gone is an empty mapping, and the page says so.
This is the one module of the report that asks the store for records; the others are handed `Records`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tenon.report.sheet import finite

if TYPE_CHECKING:
    from tenon.store import Store

Record = Mapping[str, Any]
EVENTS = 200  # of each kind, the newest; a page shows a history, not a log


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """The records a page is told from; a record that does not exist is empty."""

    model: str
    declared: Record
    project: Record
    alias: Record
    version: Record
    newest_version: Record
    run: Record
    features: Record
    datasets: tuple[Record, ...]
    ingests: tuple[Record, ...]
    watch: Record
    alias_events: tuple[Record, ...]
    serving_events: tuple[Record, ...]

    def newest_at(self) -> float:
        """Return when the newest of these records was written: what the page is "as of"."""
        every = (self.alias, self.version, self.newest_version, self.run, self.features, self.watch, self.project)
        return max(
            (float(at) for one in (*every, *self.datasets) if (at := finite(one.get("at"))) is not None), default=0.0
        )

    def names(self) -> dict[str, Any]:
        """Return the ids and blob digests that identify everything the page is about."""
        version, features = self.version, self.features
        return {
            "alias": str(self.alias.get("id", "")),
            "version": str(version.get("id", "")),
            "number": version.get("number"),
            "newest_version": str(self.newest_version.get("id", "")),
            "run": str(self.run.get("id", "")),
            "features": str(features.get("id", "")),
            "datasets": {str(one.get("source", "")): str(one.get("id", "")) for one in self.datasets},
            "watch": str(self.watch.get("id", "")),
            "watched": str(self.watch.get("version") or ""),
            "blobs": {
                name: str(digest)
                for name, digest in (
                    ("model (ONNX)", version.get("onnx")),
                    ("model manifest", version.get("manifest")),
                    ("training matrix (Parquet)", features.get("matrix")),
                    ("online feature state", features.get("online")),
                    ("training profile", features.get("profile")),
                    *((f"artifact {name}", digest) for name, digest in (self.run.get("artifacts") or {}).items()),
                )
                if digest
            },
        }


def follow(store: Store, model: str) -> Records:
    """Read the records that a model's page is about; a handful of look-ups by id, and the newest of each kind."""
    project, declared = _declared(store, model)
    alias = store.get("alias", f"{model}/production") or {}
    newest = _newest(store, "version", model=model)
    version: Record = (store.get("version", str(alias["version"])) if alias.get("version") else None) or newest
    run: Record = (store.get("run", str(version["run"])) if version.get("run") else None) or _newest_run(store, model)
    features_id = version.get("features") or run.get("features")
    features: Record = (store.get("features", str(features_id)) if features_id else None) or {}
    if not features and not version and not run:
        features = _newest(store, "features", model=model)
    ids = features.get("datasets") or version.get("datasets") or {}
    datasets = tuple(found for id_ in ids.values() if (found := store.get("dataset", str(id_))) is not None)
    return Records(
        model=model,
        declared=declared,
        project=project,
        alias=alias,
        version=version,
        newest_version=newest,
        run=run,
        features=features,
        datasets=datasets,
        ingests=tuple(
            found for one in datasets if (found := store.get("ingest", str(one.get("ingest", "")))) is not None
        ),
        watch=_newest(store, "watch", model=model),
        alias_events=tuple(store.events("alias", model))[-EVENTS:],
        serving_events=tuple(store.events("serving", model))[-EVENTS:],
    )


def _newest(store: Store, kind: str, **equals: Any) -> Record:
    return next(iter(store.find(kind, limit=1, **equals)), {})


def _newest_run(store: Store, model: str) -> Record:
    """Prefer the newest run that finished; a failed one is better than none, for it has something to say."""
    return _newest(store, "run", model=model, status="done") or _newest(store, "run", model=model)


def _declared(store: Store, model: str) -> tuple[Record, Record]:
    """Find the newest project that declares the model, and its declaration."""
    for project in store.find("project"):
        for one in project.get("models") or ():
            if one.get("name") == model:
                return project, one
    return {}, {}

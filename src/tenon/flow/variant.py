"""The smaller and quicker forms of a version: tried once on each kind of machine, chosen by their figures.

A record `variant` belongs to a run, a gate and a place (processor features, ONNX Runtime, threads); `tenon run` makes
the one of the machine it runs on, `tenon models compile` that of another. A service looks up the record of its own
place and answers with what was chosen there; where none was tried it answers with the full graph, which holds
everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import polars as pl

from tenon import model
from tenon.flow import promote
from tenon.flow.data import parquet
from tenon.flow.work import Stage, Work, newest, once
from tenon.model.variant import FULL, Place

VARIANT = 1  # raise when this stage would come to another result from the same input


def tried(work: Work, run: Mapping[str, Any], gate: model.Gate) -> Stage:
    """Build and measure the variants of a run's model on this machine, once for this run, gate and kind of machine."""
    place = Place.here()
    made_of = {"code": VARIANT, "run": run["id"], "gate": gate.to_dict(), "place": place.to_dict()}

    def make(_: str) -> dict[str, Any]:
        work.progress(0, 1, "trying variants")
        made = newest(work, "features", "the features of a run", id=run["features"])
        began = parquet(work, run["artifacts"]["test_scores"])["time"].min()
        known = pl.col("_label").is_not_null() & (pl.col("_time") >= began)
        rows = parquet(work, made["matrix"]).filter(known)
        manifest = msgspec.json.decode(work.store.blobs.read(run["artifacts"]["manifest"]))
        full = model.Compiled(onnx=work.store.blobs.read(run["artifacts"]["onnx"]), manifest=manifest)
        price = work.config.prices.usd_per_core_hour
        built = model.build_variants(
            full, rows.select(made["names"]), rows["_label"].to_numpy(), gate, usd_per_core_hour=price
        )
        work.progress(1, 1, "trying variants")
        blobs = {}
        if built.chosen.name != FULL:
            blobs["onnx"] = work.store.blobs.put(built.compiled.onnx)
            blobs["manifest"] = work.store.blobs.put(msgspec.json.encode(built.compiled.manifest))
        return {"model": run["model"], "run": run["id"], **built.to_dict(), **blobs}

    return once(work, "variant", run["model"], made_of, make)


def compiled(work: Work, name: str, version: str) -> tuple[dict[str, Any], Stage]:
    """Try the variants of a version on this machine; return the version's record and the stage."""
    record = promote.version(work, name, version)
    run = newest(work, "run", "the run of a version", id=record["run"])
    return record, tried(work, run, work.model(record["model"]).gate)


def of_version(work: Work, record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what was tried for a version, newest first: a record for each gate and place."""
    return work.store.find("variant", run=record["run"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """The form of a version that answers on this machine, and where its graph is."""

    name: str
    onnx: str
    manifest: str
    said: str = ""  # why it is not the one that was chosen elsewhere


def here(work: Work, record: Mapping[str, Any]) -> Form:
    """Return the form to answer with on this machine: what was chosen for it, else the full graph."""
    every = of_version(work, record)
    key = Place.here().key
    mine = next((one for one in every if one["key"] == key), None)
    if mine is not None and mine["chosen"] != FULL:
        return Form(name=mine["chosen"], onnx=mine["onnx"], manifest=mine["manifest"])
    said = ""
    others = sorted({one["chosen"] for one in every} - {FULL})
    if mine is None and others:
        said = (
            f"its form {', '.join(others)} was chosen on another kind of machine, so the full graph answers here; "
            f"`tenon models compile {record['number']}` tries it"
        )
    return Form(name=FULL, onnx=record["onnx"], manifest=record["manifest"], said=said)

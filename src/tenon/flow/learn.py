"""From datasets to a gated version: the matrix, the guarded and costed run, compilation, parity, the gate.

Three stages a model. `features` depends on the datasets and the definitions; `run` on the matrix, the split, the
trainer and the seed; `version` on the run and the gate. One changed feature therefore redoes these three and nothing
before them. A version that its gate allows takes the alias `production`, unless the one there is better (`promote.py`).
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl

from tenon import engine, feature, model, sketch, training
from tenon.errors import InputError, TrainingError, sentence
from tenon.feature import FeatureSet
from tenon.flow.data import frame, parquet
from tenon.flow.work import Stage, Work, once
from tenon.limits import Answer
from tenon.project import Model

# Raise when a stage's code would come to another result from the same input.
FEATURES = 1
RUN = 1
VERSION = 1


def compiled(work: Work, declared: Model) -> FeatureSet:
    """Compile the model's features against the project's sources; a fault names the feature."""
    return feature.FeatureSet.compile(declared.features, declared.label, declared.of, work.project.source_map())


# ── the matrix ───────────────────────────────────────────────────────────────────────────────────────────────────────


def features(work: Work, declared: Model, datasets: Mapping[str, Stage]) -> Stage:
    """Join the point-in-time matrix and the online state of everything known, once for these definitions."""
    chosen = compiled(work, declared)
    used = {name: datasets[name].id for name in sorted(chosen.sources)}
    made_of = {
        "code": FEATURES,
        "datasets": used,
        "definition": chosen.digest,
        "split": declared.split,
    }

    def make(_: str) -> dict[str, Any]:
        work.progress(0, 3, "computing features")
        frames = {name: frame(work, datasets[name].body) for name in used}
        matrix = chosen.matrix(frames)
        work.progress(1, 3, "computing features")
        online = chosen.online(frames)
        work.progress(2, 3, "computing features")
        train = matrix.filter(pl.col("_time") < declared.split_at[0])
        if not train.height:
            raise InputError(
                sentence(
                    "rows before the split to train on",
                    f"rows from {matrix['_time'].min()} on",
                    at=f"model '{declared.name}': split {declared.split[0]}",
                    hint="move the first date of the split",
                )
            )
        profile = sketch.profile(train.select(chosen.names))
        return {
            "model": declared.name,
            "datasets": used,
            "names": list(chosen.names),
            "kinds": dict(chosen.kinds),
            "rows": matrix.height,
            "matrix": work.store.blobs.put(_bytes(matrix)),
            "online": work.store.blobs.put(online.to_bytes()),
            "definition": chosen.definition,
            "profile": work.store.blobs.put(profile.to_bytes()),
        }

    return once(work, "features", declared.name, made_of, make)


def _bytes(rows: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    rows.write_parquet(buffer, compression="zstd", compression_level=1)
    return buffer.getvalue()


def data_of(declared: Model, matrix: pl.DataFrame, names: list[str], kinds: Mapping[str, str]) -> training.Data:
    """Split the labelled rows by time: train before the first date, validation between, test from the second on."""
    first, second = declared.split_at
    labelled = matrix.filter(pl.col("_label").is_not_null()).sort("_time", maintain_order=True)
    time = pl.col("_time")
    sides = {
        "train": labelled.filter(time < first),
        "valid": labelled.filter((time >= first) & (time < second)),
        "test": labelled.filter(time >= second),
    }
    for side, rows in sides.items():
        if not rows.height:
            reach = (
                f"labelled rows from {labelled['_time'].min()} to {labelled['_time'].max()}"
                if labelled.height
                else "no labelled rows"
            )
            raise InputError(
                sentence(
                    f"labelled rows for {side}",
                    reach,
                    at=f"model '{declared.name}': split {declared.split}",
                    hint="choose dates inside the data",
                )
            )
    values = set(labelled["_label"].unique().to_list())
    return training.Data(
        **{
            side: training.Part(x=rows.select(names), y=rows["_label"].to_numpy(), time=rows["_time"].to_numpy())
            for side, rows in sides.items()
        },
        names=tuple(names),
        kinds=dict(kinds),
        task="binary" if values <= {0.0, 1.0} else "regression",
    )

"""What a decision would have done on the test split: exact counts from the kept test scores, and the ROC curve.

A run keeps the true label and the score of every row of its test split (artifact `test_scores`, Parquet). From these
come how many rows the version's threshold flags, how many of those were true, and how many of the true ones are found,
each with Wilson's 95 % interval (JASA 22, 1927), and a ROC curve of at most CURVE points. Nothing is sampled. Where the
blob is gone or damaged, the page says so and goes on: a report must still be readable when the store is hurt.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tenon import metric
from tenon.errors import TenonError
from tenon.report.lineage import Records
from tenon.report.sheet import Origin, Sheet, finite

if TYPE_CHECKING:
    from tenon.store import Store

ARTIFACT = "test_scores"
CURVE = 80


def flagged(sheet: Sheet, records: Records, store: Store) -> None:
    """Enter what flagging at the threshold would have caught on the test split, and the ROC curve."""
    digest = str((records.run.get("artifacts") or {}).get(ARTIFACT) or "")
    if not digest or records.run.get("task", "binary") != "binary":
        return
    origin = Origin(record="run", id=str(records.run.get("id", "")), field=f"artifacts.{ARTIFACT}", blob=digest)
    try:
        frame = pl.read_parquet(io.BytesIO(store.blobs.read(digest)), columns=["label", "score"]).drop_nulls()
        label = frame["label"].cast(pl.Float64).to_numpy()
        score = frame["score"].cast(pl.Float64).to_numpy()
    except (TenonError, pl.exceptions.PolarsError, OSError, ValueError):
        sheet.lack("test scores", "the scores of the test split cannot be read back", "run `tenon store check`")
        return
    if not len(label) or not set(np.unique(label)) <= {0.0, 1.0}:
        return
    _curve(sheet, label, score, origin)
    threshold = finite(records.version.get("threshold", records.run.get("threshold")))
    if threshold is not None:
        _at(sheet, label, score >= threshold, origin)


def _at(sheet: Sheet, label: NDArray[np.float64], chosen: NDArray[np.bool_], origin: Origin) -> None:
    """Enter the counts at the threshold and the shares they make."""
    rows, count, true = len(label), int(chosen.sum()), int(label.sum())
    hits = int(label[chosen].sum())

    def formula(text: str) -> Origin:
        return Origin(
            record=origin.record, id=origin.id, field=origin.field, blob=origin.blob, formula=text, said="test split"
        )

    sheet.figure("flagged.rows", count, "rows flagged", formula("score >= threshold"), unit="count")
    sheet.figure("flagged.share", count / rows, "share of rows flagged", formula("flagged / rows"), unit="share")
    for key, part, whole, label_, how in (
        ("flagged.true", hits, count, "share of flagged rows that came true", "true and flagged / flagged"),
        ("flagged.found", hits, true, "share of what came true that was flagged", "true and flagged / true"),
    ):
        if whole:
            low, high = metric.wilson(part, whole)
            interval = {"low": low, "high": high}
            sheet.figure(key, part / whole, label_, formula(how), unit="share", of=interval)


def _curve(sheet: Sheet, label: NDArray[np.float64], score: NDArray[np.float64], origin: Origin) -> None:
    """Enter the ROC curve: for each score, the share of true rows at or above it against that of the others."""
    true = label.sum()
    false = len(label) - true
    if not true or not false:
        return
    order = np.argsort(-score, kind="stable")
    ranked = label[order]
    ends = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))  # rows with one score enter together
    found = np.append(0.0, np.cumsum(ranked)[ends] / true)
    wrong = np.append(0.0, np.cumsum(1 - ranked)[ends] / false)
    kept = np.unique(np.searchsorted(wrong, np.linspace(0.0, 1.0, CURVE)).clip(0, len(wrong) - 1))
    kept = np.unique(np.concatenate(([0], kept, [len(wrong) - 1])))
    rows = [{"wrong": round(float(wrong[i]), 6), "found": round(float(found[i]), 6)} for i in kept]
    how = f"share of true and of other rows at or above each score, {len(rows)} of {len(wrong)} points"
    place = Origin(
        record=origin.record, id=origin.id, field=origin.field, blob=origin.blob, formula=how, said="test split"
    )
    sheet.table("roc", rows, place)

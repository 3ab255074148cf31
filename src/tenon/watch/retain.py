"""Letting go: raw observations and labels older than the owner wants to keep, while their summaries stay.

Ages are counted back from a model's newest observation, in the rows' own time, so that a replay of an old year is not
gone the next morning. Raw rows are removed, and the scored rows of summarised windows, which name what was asked
about; counts, profiles and performance as last told are kept, so later examinations still show those windows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from tenon.errors import UsageError, sentence
from tenon.store import Store
from tenon.watch.observation import STREAM
from tenon.watch.stream import spans
from tenon.watch.window import DAY_S

SUMMARY = "watch-window"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What was let go: rows of observations, rows of labels, and windows that are now summaries alone."""

    observations: int = 0
    labels: int = 0
    windows: int = 0


def prune(store: Store, keep_days: float, *, clock: Callable[[], float] = time.time) -> Pruned:
    """Remove what is older than `keep_days` before each model's newest observation; examine first to keep summaries.

    A batch goes when all of its rows are that old. Writes; safe while a collector writes.
    """
    if not keep_days > 0:
        raise UsageError(sentence("a number of days above 0", f"{keep_days}", at="watch.keep_days"))
    observations = labels = windows = 0
    for held in store.subjects(STREAM):
        model = str(held["subject"])
        newest = min(max(span.last for span in spans(store, model)), clock())
        summaries = store.find(SUMMARY, model=model)
        before = newest - keep_days * DAY_S
        # Whole windows only: a window that lost some of its labels would tell another performance than before.
        before = max((float(one["end"]) for one in summaries if float(one["end"]) <= before), default=before)
        observations += store.trim(STREAM, model, before=before)
        labels += store.trim("labels", model, before=before)
        for body in summaries:
            if body["scored"] and float(body["end"]) <= before:
                with store.atomic():
                    store.put(SUMMARY, body["id"], body | {"scored": ""})
                store.blobs.delete(body["scored"])
                windows += 1
    return Pruned(observations=observations, labels=labels, windows=windows)

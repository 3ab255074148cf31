"""A Service is one served model version: what it reads, what it answers, what a row of it costs.

It is a value. Everything that changes while serving (the queue, the counters, which version is current) lives in
`App` and `Lane`, so that a new version is swapped in by exchanging one value for another. The predictor and the
online features are given; serving never knows how they were made, and never imports what made them.

`Seams` are the callables and places that the glue passes in: where facts and labels are kept, who is offered the
observations, what the alias says now. Each may be left out; a service without a store refuses facts and labels in
words.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import polars as pl
from prometheus_client import CollectorRegistry

from tenon.config import ServeConfig
from tenon.contract.column import Column, ColumnType, Source
from tenon.limits import ServingLimits
from tenon.serving.trial import Trial

Tap = Callable[[Mapping[str, Sequence[Any]]], bool]


class Scores(Protocol):
    """What scores feature columns: `model.predict.Predictor`, or anything that answers alike."""

    def score(self, columns: Mapping[str, Sequence[Any]], /) -> np.ndarray[Any, Any]:
        """Return one score for each row."""
        ...


class Features(Protocol):
    """What makes feature columns of request rows: `feature.Online`, or anything that answers alike."""

    def read(self, rows: Sequence[Mapping[str, Any]], /) -> Mapping[str, Sequence[Any]]:
        """Return the feature columns of the rows, each row at its own time."""
        ...

    def apply(self, source: str, rows: pl.DataFrame, /) -> int:
        """Take in facts as they become known; return how many were new."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One model version, ready to answer.

    `inputs` are the request columns, name to type; `columns` the contract of those that have one. `time` names the
    request column that says when the row happens; where that is derived from others, `moments` says it of rows. `key`
    names the columns that say what a row is about (kept with observations).
    `threshold` turns a score into a decision; None for a regression. `facts_seq` is the last batch of the stream
    `facts` that `online` has seen; later ones are applied on start.
    """

    name: str
    version: str
    predictor: Scores
    online: Features
    inputs: Mapping[str, str]
    columns: Sequence[Column] = ()
    label: str = ""
    threshold: float | None = None
    usd_per_row: float = 0.0
    key: Sequence[str] = ()
    time: str = ""
    moments: Callable[[Sequence[Mapping[str, Any]]], Sequence[dt.datetime | None]] | None = None
    example: Mapping[str, Any] = field(default_factory=dict)
    facts_seq: int = 0

    @property
    def task(self) -> Literal["binary", "regression"]:
        """Say whether answers carry a decision: a threshold makes a binary task."""
        return "regression" if self.threshold is None else "binary"

    @property
    def request_columns(self) -> tuple[Column, ...]:
        """Return a Column for each request column, in the order of `inputs`; one without a contract may be null."""
        known = {column.name: column for column in self.columns}
        types: dict[str, ColumnType] = dict(self.inputs)  # type: ignore[arg-type]
        return tuple(known.get(name) or Column(name, kind, nullable=True) for name, kind in types.items())


class Keeps(Protocol):
    """The part of `store.Store` that serving needs: append-only streams."""

    def append(self, stream: str, subject: str, body: bytes, *, rows: int, first: float, last: float) -> int:
        """Keep a batch durably; return its sequence number."""
        ...

    def read(
        self, stream: str, subject: str, *, after: int = 0, since: float | None = None, until: float | None = None
    ) -> Any:
        """Yield the batches after a sequence number."""
        ...

    def atomic(self) -> Any:
        """Open a transaction: all or nothing."""
        ...


def _nothing(kind: str, subject: str, body: Mapping[str, Any]) -> None:
    """Record nothing: the default when nobody keeps an audit trail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seams:
    """What the glue passes in. Everything has a working default, so that a service also runs on its own.

    `tap` is offered columns of observations and must not block. `record(kind, subject, body)` keeps an event.
    `current(model)` returns the version that should be serving, `load(model, version)` builds it. `trial(model)`
    returns the trial it has now, `judged(model, body)` keeps what was found; `cheaper(model)` returns the version that
    answers when the budget is spent.
    """

    store: Keeps | None = None
    sources: Mapping[str, Source] = field(default_factory=dict)
    tap: Tap | None = None
    record: Callable[[str, str, Mapping[str, Any]], None] = _nothing
    current: Callable[[str], str] | None = None
    load: Callable[[str, str], Service] | None = None
    trial: Callable[[str], Trial | None] | None = None
    judged: Callable[[str, Mapping[str, Any]], None] | None = None
    cheaper: Callable[[str], str] | None = None
    registry: CollectorRegistry | None = None
    clock: Callable[[], float] = time.time


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How one serving process behaves: what `tenon.toml` says, and the few dials that are not for users."""

    serve: ServeConfig = ServeConfig()
    limits: ServingLimits = ServingLimits()
    poll_s: float = 1.0
    judged_s: float = 5.0
    tap_s: float = 0.25
    tap_batch_rows: int = 64  # laid out in one go on the event loop, a tenth of a millisecond for so many
    inline_ms: float = 2.0

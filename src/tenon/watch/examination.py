"""One examination, in order: cut windows, summarise each, join late labels, measure, compare, judge.

`examine` reads the store and returns a value; what it writes are only summaries of closed windows, so that the next
examination does not read them again (`Context.cache=False` for none at all). "As of" a past moment it sees what it
would have seen then: rows that had happened and labels that were known. Without a moment it is as of now when the
newest rows came about when they happened, and as of the newest row or label when they did not: then it is a replay.

A window is closed when its end has passed, and mature when, beyond that, the time has passed within which 99 % of
labels come. Performance of a window that is not mature is shown and not judged.
"""

from __future__ import annotations

import hashlib
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl

from tenon import metric
from tenon.config import WatchConfig
from tenon.errors import InputError, nearest, sentence
from tenon.finding import Finding
from tenon.limits import WatchLimits
from tenon.metric import Estimate
from tenon.sketch import Comparison, Profile
from tenon.store import Store
from tenon.watch import collect, drift, judge, label, skew, tally
from tenon.watch.case import RECENT, Case
from tenon.watch.expect import Expected, Usual
from tenon.watch.label import Labels, LabelSource
from tenon.watch.observation import seconds
from tenon.watch.retain import SUMMARY
from tenon.watch.stream import Span, spans
from tenon.watch.tally import Cut, Tally
from tenon.watch.window import Window, iso, start_of, width_of

Progress = Callable[[float, float, str], None]
_FEW_LABELS = 30  # fewer say nothing worth an interval
_COMPLETE = 0.98  # of the usual share of labels: the few still to come would change little
_LIVE = 4  # windows between what happens and what is asked about it: beyond, it is a replay
_WIDE = 60  # a batch that spans more windows than this holds stray times: its rows are looked at one by one


def _quiet(done: float, total: float, said: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What else is known of the model under watch; everything may be left out, and then is not judged.

    `run` is the record of the run that made it, `metric` the one its gate looks at, `usual` what `usual()` measured.
    `labels` says how facts become labels. `scores` is the profile of a frame with the column `score` on validation or
    test rows, to see scores drift (unless the reference has that column). `offline` is the offline matrix of some
    served rows (with `_key_*` and `_time`), to compare features as served with the same ones computed offline.
    `words` are the owner's: unit_plural, positive_word.
    """

    version: str = ""
    run: Mapping[str, Any] | None = None
    metric: str = ""
    usual: Usual | None = None
    labels: LabelSource | None = None
    offline: pl.DataFrame | None = None
    scores: Profile | None = None
    words: Mapping[str, str] = field(default_factory=dict)
    limits: WatchLimits = WatchLimits()
    clock: Callable[[], float] = time.time
    seed: int = 0
    cache: bool = True
    progress: Progress = _quiet


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What an examination found: windows (oldest first), columns (most drifted first), findings (gravest first)."""

    model: str
    version: str
    at: float
    as_of: float
    windows: tuple[Window, ...]
    columns: tuple[drift.ColumnDrift, ...]
    findings: tuple[Finding, ...]
    labels: Mapping[str, float] = field(default_factory=dict)
    expected: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def id(self) -> str:
        """Name the examination by what it is of and when it was made."""
        return hashlib.sha256(f"{self.model}\0{self.version}\0{self.as_of}\0{self.at}".encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """Return the body of the `watch` record: plain data, unknown figures None."""
        return {
            "id": self.id,
            "model": self.model,
            "version": self.version,
            "at": self.at,
            "as_of": iso(self.as_of) if math.isfinite(self.as_of) else None,
            "windows": [window.to_dict() for window in self.windows],
            "columns": [column.to_dict() for column in self.columns],
            "findings": [finding.to_dict() for finding in self.findings],
            "labels": dict(self.labels),
            "expected": dict(self.expected),
            "seconds": round(self.seconds, 3),
        }


def examine(
    store: Store,
    model: str,
    *,
    reference: Profile,
    task: str,
    config: WatchConfig = WatchConfig(),
    as_of: datetime | float | None = None,
    context: Context = Context(),
) -> Watched:
    """Examine what `model` was asked and answered, against its training `reference` and what its run promised.

    Reads the streams observations, labels and facts; keeps summaries of closed windows (unless `context.cache` is off).
    Memory: one window's scored rows and all labels. `task` is binary or regression.
    """
    began = time.perf_counter()
    if task not in metric.METRICS:
        raise InputError(sentence("a task", f"'{task}'", at=f"examining {model}", hint=nearest(task, metric.METRICS)))
    width = width_of(config.window)
    horizon = math.inf if as_of is None else seconds(as_of)
    held = [span for span in spans(store, model) if span.first <= horizon]
    labels = label.gather(
        store,
        model,
        context.labels,
        until=None if math.isinf(horizon) else horizon,
        now=context.clock(),
        cache=context.cache,
    )
    expected = Expected.of_run(context.run, task, context.metric)
    newest = min(horizon, max((span.last for span in held), default=math.nan))
    now = min(horizon, context.clock())
    quiet = now - newest if held else 0.0
    if math.isinf(horizon) and held and not _live(held, width):
        now, quiet = min(now, max([newest, *_latest_known(labels)])), 0.0
    starts = _starts(store, model, held, width, horizon)[-context.limits.windows :]
    look = _Look(
        store,
        model,
        drift.with_score(reference, context.scores),
        task,
        config,
        context,
        expected,
        labels,
        width,
        horizon,
        now,
        quiet,
    )
    seen: list[_Seen] = []
    for done, start in enumerate(starts):
        context.progress(done, len(starts), f"examining {model}")
        seen.append(look.window(start, [s for s in held if s.first < start + width and s.last >= start]))
    context.progress(len(starts), max(len(starts), 1), f"examining {model}")
    return look.told(seen, began)


@dataclass(frozen=True, slots=True)
class _Seen:
    """One window as seen: its figures, its drift, how long labels took, and what labels know rows by that it lacks."""

    window: Window
    drift: Mapping[str, Comparison]
    delays: np.ndarray[Any, Any]
    without: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Look:
    """One examination under way: everything that its steps share."""

    store: Store
    model: str
    reference: Profile
    task: str
    config: WatchConfig
    context: Context
    expected: Expected
    labels: Labels
    width: float
    horizon: float
    now: float
    quiet: float

    def window(self, start: float, reach: Sequence[Span]) -> _Seen:
        """Summarise and measure one window."""
        found, name = self._summary(start, reach)
        drifted = drift.found(self.reference, found.profile)
        told, delays, distinct = dict(found.told), np.empty(0), int(found.told.get("distinct", 0))
        rows = tally.once(found.scored, self._keys(found.scored)) if found.scored is not None else None
        if rows is not None:
            labelled = label.join(rows, self.labels).filter(pl.col("label").is_finite())
            delays, distinct = _delays(labelled), round(rows.height / found.share)
            told = self._measure(labelled, found.told) | {"distinct": distinct}
            if name and told != found.told:
                tally.retell(self.store, name, told, at=self.context.clock())
        window = Window(
            start=start,
            end=start + self.width,
            rows=found.rows,
            distinct=distinct,
            labelled=int(told.get("labelled", 0)),
            sampled=rows.height if rows is not None and found.share < 1 else 0,
            open=start + self.width > self.now,
            first=found.first,
            last=found.last,
            gap_s=found.gap_s,
            versions=found.versions,
            metrics=_estimates(told.get("metrics") or {}),
            by_version={key: _estimates(value) for key, value in (told.get("by_version") or {}).items()},
            rate=_number(told.get("rate")),
            predicted=_number(told.get("predicted")),
            calibration=tuple(told.get("calibration") or ()),
            drift={key: value.psi for key, value in drifted.items()},
            missing={key: value.missing for key, value in drifted.items() if key != "score"},
            p50_ms=found.p50_ms,
            p99_ms=found.p99_ms,
            slow=found.slow,
            timed=found.timed,
            errors=found.errors,
            invalid=found.invalid,
            refused=found.refused,
            good=found.good,
            usd=found.usd,
        )
        have = found.scored.columns if found.scored is not None else self.labels.keys
        without = tuple(sorted(set(self.labels.keys) - set(have)))
        return _Seen(window=window, drift=drifted, delays=delays, without=without)

    def _keys(self, scored: pl.DataFrame) -> list[str]:
        """Name the columns by which labels find rows, when the rows have all of them: then they name a row."""
        keys = self.labels.keys
        return keys if set(keys) <= set(scored.columns) else []

    def _summary(self, start: float, reach: Sequence[Span]) -> tuple[Tally, str]:
        """Return the summary of a window, and its name when it is closed and kept."""
        cut = Cut(
            start=start,
            end=start + self.width,
            until=self.horizon,
            slow_ms=self.config.latency_p99_ms,
            kinds=drift.kinds(self.reference),
        )
        seq = max((span.seq for span in reach), default=0)
        closed = cut.end <= self.now and cut.end <= self.horizon
        name = cut.name(self.model, self.context.limits) if closed else ""
        found = tally.kept(self.store, name, seq) if name else None
        if found is None:
            found = tally.tally(self.store, self.model, cut, list(reach), self.context.limits)
            if name and found.profile is not None and self.context.cache:
                tally.keep(self.store, name, self.model, found, at=self.context.clock())
        return found, name if self.context.cache and found.profile is not None else ""

    def _measure(self, labelled: pl.DataFrame, before: Mapping[str, Any]) -> dict[str, Any]:
        """Measure performance on labelled rows, unless the same rows and labels were measured before."""
        truth, score = labelled["label"].to_numpy(), labelled["score"].to_numpy()
        of = hashlib.sha256(truth.tobytes() + score.tobytes())
        of.update(f"{self.task} {self.context.seed} {self.context.limits.samples}".encode())
        digest = of.hexdigest()[:16]
        if before.get("of") == digest:
            return dict(before)
        told: dict[str, Any] = {"of": digest, "labelled": len(truth)}
        if not len(truth):
            return told
        told["rate"], told["predicted"] = float(truth.mean()), float(score.mean())
        told["metrics"] = self._evaluate(truth, score)
        if told["metrics"]:
            told["calibration"] = metric.calibration(truth, score, task=self.task)
        versions = labelled["version"].fill_null("")
        if versions.n_unique() > 1:
            told["by_version"] = {
                version: self._evaluate(
                    *(labelled.filter(versions == version)[side].to_numpy() for side in ("label", "score"))
                )
                for version in sorted(versions.unique().to_list())
            }
        return told

    def _evaluate(self, truth: np.ndarray[Any, Any], score: np.ndarray[Any, Any]) -> dict[str, dict[str, float]]:
        """Evaluate every metric these rows allow; none when they are few, or no labels or scores of this task."""
        if len(truth) < _FEW_LABELS:
            return {}
        names = [name for name in metric.METRICS[self.task] if name not in metric.RANKED or truth.min() != truth.max()]
        try:
            found = metric.evaluate(
                self.task, truth, score, seed=self.context.seed, samples=self.context.limits.samples, names=names
            )
        except InputError:  # labels that are not 0 and 1, or scores that are no probabilities: nothing to measure
            return {}
        return {name: value.to_dict() for name, value in found.items() if math.isfinite(value.value)}

    def told(self, seen: Sequence[_Seen], began: float) -> Watched:
        """Mark which windows are mature, judge, and put it all together."""
        waited = np.concatenate([one.delays for one in seen]) if seen else np.empty(0)
        drifts = [one.drift for one in seen]
        late = float(np.quantile(waited, 0.99)) if len(waited) else math.nan
        matured = _matured([one.window for one in seen], self.now, late)
        shares = sorted(w.labelled_share for w in matured if w.distinct and not w.open and not w.maturing)
        limits = drift.limits(matured, drifts, self.config, self.context.usual)
        case = Case(
            model=self.model,
            task=self.task,
            windows=matured,
            config=self.config,
            expected=self.expected,
            usual=self.context.usual,
            width_s=self.width,
            limits_psi=limits,
            reference_missing=drift.reference_missing(self.reference),
            reference_rows=self.reference.rows,
            unseen=drift.unseen(matured, drifts),
            usual_labelled=shares[len(shares) // 2] if shares and len(waited) else math.nan,
            without=seen[-1].without if seen else (),
            quiet_s=self.quiet,
            words=self.context.words,
        )
        findings = judge.judge(case)
        findings += self._dropped(matured)
        if self.context.offline is not None:
            findings += skew.skew(self.store, self.model, self.context.offline, case.word("unit_plural"), self.horizon)
        return Watched(
            model=self.model,
            version=self.context.version,
            at=self.context.clock(),
            as_of=self.horizon if math.isfinite(self.horizon) else self.now,
            windows=matured,
            columns=drift.columns(matured, drifts, limits, self.config, self.expected, self.context.usual),
            findings=tuple(judge.gravest_first(findings)),
            labels=_label_figures(self.labels, waited),
            expected=_expected_figures(self.expected),
            seconds=time.perf_counter() - began,
        )

    def _dropped(self, windows: Sequence[Window]) -> list[Finding]:
        """Say what the collectors lost lately, if anything; what was lost longer ago is history."""
        since = self.context.clock() - RECENT * self.width
        events = [event for event in self.store.events(collect.EVENT, self.model) if event["at"] >= since]
        dropped = sum(int(event.get("dropped", 0)) for event in events)
        refused = sum(int(event.get("refused", 0)) for event in events)
        return collect.dropped_finding(self.model, dropped, refused, sum(window.rows for window in windows[-RECENT:]))


# ── what changed since the last examination ──────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Alerts:
    """Findings against those of the examination before: what is `new` or graver, what is `still` so, what is `gone`."""

    new: tuple[Finding, ...]
    still: tuple[Finding, ...]
    gone: tuple[Finding, ...]


def alerts(findings: Iterable[Finding], previous: Iterable[Finding | Mapping[str, Any]]) -> Alerts:
    """Compare findings with the previous ones (findings, or as kept in a `watch` record), by code and place."""
    before = {(old.code, old.place): old for old in map(_finding, previous)}
    order = ("info", "warning", "error")
    new: list[Finding] = []
    still: list[Finding] = []
    for finding in findings:
        old = before.pop((finding.code, finding.place), None)
        graver = old is not None and order.index(finding.severity) > order.index(old.severity)
        (still if old is not None and not graver else new).append(finding)
    return Alerts(new=tuple(new), still=tuple(still), gone=tuple(before.values()))


def _finding(body: Finding | Mapping[str, Any]) -> Finding:
    if isinstance(body, Finding):
        return body
    names = ("code", "severity", "place", "said", "hint", "numbers")
    return Finding(**{name: body[name] for name in names if name in body})


# ── pieces ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _starts(store: Store, model: str, held: Sequence[Span], width: float, horizon: float) -> list[float]:
    """Return where every window with rows begins, with the empty ones between neighbours not far apart."""
    found: set[float] = set()
    for span in held:
        first, last = start_of(span.first, width), start_of(min(span.last, horizon), width)
        if last - first <= _WIDE * width:
            found.update(first + i * width for i in range(round((last - first) / width) + 1))
        else:
            found.update(tally.starts_in(store, model, span, width, horizon))
    found.update(
        float(body["start"])
        for body in store.find(SUMMARY, model=model)
        if float(body["end"]) - float(body["start"]) == width and float(body["start"]) <= horizon
    )
    ordered = sorted(found)
    for one, other in pairwise(ordered):
        if other - one <= _WIDE * width:
            found.update(one + i * width for i in range(1, round((other - one) / width)))
    return sorted(found)


def _live(held: Sequence[Span], width: float) -> bool:
    """Whether the newest rows came within a few windows of when they happened, as live traffic does."""
    newest = max(held, key=lambda span: span.last)
    return newest.at - newest.last <= _LIVE * width


def _latest_known(labels: Labels) -> list[float]:
    """Return the newest moment at which a label was known, if any was."""
    found = []
    for frame in (labels.by_id, labels.by_key):
        if frame.height and frame["known"].null_count() < frame.height:
            newest = frame["known"].max()
            assert isinstance(newest, datetime), newest
            found.append(seconds(newest))
    return found


def _matured(windows: Sequence[Window], now: float, late: float) -> tuple[Window, ...]:
    """Mark windows whose labels are still coming: not `late` seconds past their end, and not as complete as usual."""
    if not math.isfinite(late):
        return tuple(windows)
    old = [window.labelled_share for window in windows if window.distinct and now >= window.end + late]
    complete = _COMPLETE * (statistics.median(old) if old else 1.0)
    return tuple(
        replace(window, maturing=bool(window.rows) and now < window.end + late and window.labelled_share < complete)
        for window in windows
    )


def _delays(labelled: pl.DataFrame) -> np.ndarray[Any, Any]:
    """Return how many seconds after its time each row's label was known."""
    waited = labelled.select((pl.col("known") - pl.col("time")).dt.total_milliseconds() / 1000).to_series()
    return waited.drop_nulls().clip(lower_bound=0).to_numpy()


def _label_figures(labels: Labels, waited: np.ndarray[Any, Any]) -> dict[str, float]:
    figures: dict[str, float] = {"repeated": labels.repeated, "changed": labels.changed, "joined": len(waited)}
    if len(waited):
        figures["delay_p50_s"] = float(np.quantile(waited, 0.5))
        figures["delay_p99_s"] = float(np.quantile(waited, 0.99))
    return figures


def _expected_figures(expected: Expected) -> dict[str, Any]:
    return {
        "metric": expected.metric,
        "metrics": {name: value.to_dict() for name, value in expected.metrics.items()},
        "baseline": expected.baseline,
        "baseline_value": expected.baseline_value if math.isfinite(expected.baseline_value) else None,
        "rate": expected.rate if math.isfinite(expected.rate) else None,
    }


def _estimates(body: Mapping[str, Any]) -> dict[str, Estimate]:
    return {name: Estimate.from_dict(value) for name, value in body.items()}


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)

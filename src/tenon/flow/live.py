"""The model at work: a service built from a version, files scored by the same body, recorded traffic, late outcomes.

Everything a service needs comes from the store: the version's graph and manifest, the features' definitions and the
online state as they were when the version was made. So a service started today from last month's version computes last
month's features, whatever project.py says by now. Facts posted to a service are in the store before they are in memory;
a service that starts again takes them in again.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from tenon import contract, ledger, model, serving, watch
from tenon.contract import sql
from tenon.contract.column import Source
from tenon.errors import InputError, UsageError, sentence
from tenon.feature import FeatureSet, Online
from tenon.feature.plan import duration_us
from tenon.flow import language, learn, promote, stateful, trial, variant
from tenon.flow.data import frame
from tenon.flow.work import Work, newest
from tenon.serving.play import replay as play

PROBES = 50  # rows scored to learn what one costs
CHARGE_S = 60.0  # how often a running service writes down what it has cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """A version brought to life: its record, its features, the online state and the predictor."""

    record: Mapping[str, Any]
    features: FeatureSet
    online: Online
    predictor: model.Predictor
    form: variant.Form

    @property
    def spine(self) -> Source:
        """Return the source whose rows are predicted."""
        return self.features.spine

    @property
    def columns(self) -> list[contract.Column]:
        """Return the columns of a request: what the features need, and the key, by which outcomes are told apart.

        A key column that no feature reads may be left out; outcomes are then joined by the answer's id alone.
        """
        return request_columns(self.features)


def request_columns(chosen: FeatureSet) -> list[contract.Column]:
    """Return the columns of a request for these features, each under the source's contract."""
    spine, inputs = chosen.spine, chosen.inputs
    found = [spine.column(name) or contract.Column(name, kind, nullable=True) for name, kind in inputs.items()]
    keys = [spine.column(name) or contract.Column(name, "text") for name in spine.key if name not in inputs]
    return [*found, *(replace(column, nullable=True) for column in keys if not column.derive)]


def awaken(work: Work, name: str, wanted: str, *, as_of: datetime | None = None) -> Live:
    """Bring a version to life from the store; `as_of` limits its memory to what was known by then."""
    record = promote.version(work, work.model(name).name if name or len(work.project.models) == 1 else "", wanted)
    made = newest(work, "features", "the features of a version", id=record["features"])
    chosen = learn.restored(work.model(record["model"]), made)
    if as_of is None:
        online = chosen.load(work.store.blobs.read(made["online"]))
    else:
        online = chosen.online(
            {source: _known_by(work, chosen, source, id, as_of) for source, id in made["datasets"].items()}
        )
    online.warm()  # the first requests must not pay for what later ones find made
    form = variant.here(work, record)
    manifest = msgspec.json.decode(work.store.blobs.read(form.manifest))
    predictor = model.Predictor.load(work.store.blobs.read(form.onnx), manifest)
    return Live(record=record, features=chosen, online=online, predictor=predictor, form=form)


def _known_by(work: Work, chosen: FeatureSet, source: str, id: str, moment: datetime) -> pl.DataFrame:
    """Return the rows of a dataset that were known by a moment; a lookup table is always known."""
    rows = frame(work, newest(work, "dataset", f"the dataset of '{source}'", id=id))
    known = chosen.sources[source].known_at
    return rows.filter(pl.col(known) <= moment) if known else rows


def moment_of(text: str, what: str) -> datetime:
    """Read a moment such as 2013-11-01 or 2013-11-01T05:15, UTC; UsageError when it is none."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(sentence("a moment such as 2013-11-01T05:15", f"'{text}'", at=what)) from None
    return found.astimezone(UTC).replace(tzinfo=None) if found.tzinfo else found


# ── serving ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What to serve and where; empty values mean those of tenon.toml."""

    model: str = ""
    host: str = ""
    port: int = 0
    grpc_port: int = 0
    version: str = "production"
    as_of: str = ""
    languages: Sequence[str] = ()
    stateful: Sequence[str] = ()


def service(work: Work, live: Live, *, facts_seq: int = 0) -> serving.Service:
    """Make the value that serving answers with."""
    spine = live.spine
    example = example_row(work, live)
    return serving.Service(
        name=live.record["model"],
        version=live.record["id"],
        predictor=live.predictor,
        online=live.online,
        inputs={column.name: column.type for column in live.columns},
        columns=live.columns,
        label=live.features.label.sql,
        threshold=live.record["threshold"],
        usd_per_row=_usd_per_row(work, live, example),
        key=spine.key,
        time=spine.time,
        moments=live.online.moments,
        example=example,
        facts_seq=facts_seq,
    )


def example_row(work: Work, live: Live) -> dict[str, Any]:
    """Return a real row as a request would send it: the last of the dataset whose inputs are all there."""
    dataset = newest(work, "dataset", "the dataset of the model", id=_datasets(work, live)[live.spine.name])
    rows = frame(work, dataset).select([column.name for column in live.columns]).tail(1000).drop_nulls()
    return {name: plain(value) for name, value in rows.row(-1, named=True).items()} if rows.height else {}


def _datasets(work: Work, live: Live) -> Mapping[str, str]:
    found: Mapping[str, str] = live.record["datasets"]
    return found


def plain(value: Any) -> Any:
    """Return a cell as JSON has it."""
    return value.isoformat() if hasattr(value, "isoformat") else value


def _usd_per_row(work: Work, live: Live, example: Mapping[str, Any]) -> float:
    """Measure what the features and the score of one row take here, and price that processor time."""
    if not example:
        return 0.0
    row = contract.check_rows([example], live.columns).rows[0]
    taken = []
    for _ in range(PROBES):
        start = time.perf_counter()
        live.predictor.score(live.online.read([row]))
        taken.append(time.perf_counter() - start)
    return statistics.median(taken) / 3600 * work.config.prices.usd_per_core_hour


def serve(work: Work, asked: Serving, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C; observations, facts, labels, events and costs are kept in the store."""
    as_of = moment_of(asked.as_of, "--as-of") if asked.as_of else None
    live = awaken(work, asked.model, asked.version, as_of=as_of)
    name = live.record["model"]
    # A service that is to know only a past moment does not take in what was posted after it.
    seen = max([int(row["seq"]) for row in work.store.subjects("facts")], default=0) if as_of else 0
    collector = watch.Collector(work.store, name, work.config.limits.watch, work.clock)

    def load(_: str, version: str) -> serving.Service:
        return service(work, awaken(work, name, version, as_of=as_of), facts_seq=seen)

    seams = serving.Seams(
        store=work.store,
        sources=live.features.sources,
        tap=collector.offer,
        record=lambda kind, subject, body: _record(work, kind, subject, body),
        current=(lambda model: _current(work, model, asked.version)) if asked.version == "production" else None,
        load=load,
        trial=(lambda model: trial.current(work, model)) if asked.version == "production" else None,
        judged=lambda model, body: trial.judged(work, model, body),
        cheaper=lambda model: _current(work, model, work.config.serve.cheaper),
        clock=work.clock,
    )
    doors = replace(work.config.serve, grpc_port=asked.grpc_port or work.config.serve.grpc_port)
    settings = serving.Settings(serve=doors, limits=work.config.limits.serving)
    languages = language.opened(work.store, asked.languages, work.config.limits.language)
    app = serving.build_app(
        [service(work, live, facts_seq=seen)], seams=seams, settings=settings, languages=languages,
        stateful=stateful.opened(asked.stateful, work.config),
    )  # fmt: skip
    stop = threading.Event()
    charger = threading.Thread(target=_charge, args=(work, name, collector, stop), name="tenon-cost", daemon=True)

    def started(url: str) -> None:
        say(f"serving {name}, version {live.record['number']} ({live.record['id']}, {live.form.name}), at {url}")
        if doors.grpc_port:
            say(f"over gRPC at port {doors.grpc_port}")
        if live.form.said:
            say(live.form.said)
        example = msgspec.json.encode(example_row(work, live)).decode()
        say(f"try it:  curl -s {url}/predict/{name} -d '{example}'")
        for one in languages:
            for line in language.said(one, url):
                say(line)
        say(f"in a browser: {url}    Ctrl-C ends it")

    charger.start()
    try:
        serving.run(app, asked.host, asked.port or None, started=started)
    finally:
        collector.close()
        stop.set()
        charger.join()


def _record(work: Work, kind: str, subject: str, body: Mapping[str, Any]) -> None:
    work.store.event(kind, subject, body)


def _current(work: Work, name: str, alias: str) -> str:
    held = promote.current(work, name, alias)
    return held["id"] if held else ""


def _charge(work: Work, name: str, collector: watch.Collector, stop: threading.Event) -> None:
    """Charge the model for the processor time of this process, every minute and once at the end."""
    cpu, rows = ledger.cpu_seconds(), collector.counts().offered
    while True:
        ended = stop.wait(CHARGE_S)
        now, count = ledger.cpu_seconds(), collector.counts().offered
        if count > rows:
            note = f"process {os.getpid()}"
            entry = ledger.requests(name, count - rows, now - cpu, work.config.prices, at=work.clock(), note=note)
            work.store.charge(entry)
            cpu, rows = now, count
        if ended:
            return


# ── scoring files ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A file of rows to score and where the scores go."""

    rows: Path
    out: Path
    model: str = ""
    version: str = "production"


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """What scoring a file came to.

    `refused` rows are in the output with their fault instead of a score; `quarantined` ones could not be read as the
    request's columns at all, and wait, raw, in the file `quarantine` beside the output.
    """

    model: str
    version: str
    rows: int
    refused: int
    seconds: float
    usd: float = 0.0
    quarantined: int = 0
    quarantine: str = ""
    findings: Sequence[Any] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as plain data."""
        return {
            "model": self.model,
            "version": self.version,
            "rows": self.rows,
            "refused": self.refused,
            "seconds": self.seconds,
            "rows_per_s": self.rows / self.seconds if self.seconds else 0.0,
            "usd": self.usd,
            "quarantined": self.quarantined,
            "quarantine": self.quarantine,
            "findings": [finding.to_dict() for finding in self.findings],
        }


def predict(work: Work, asked: Prediction) -> Predicted:
    """Score a file with the same body as the service and write rows, scores and decisions; streams in batches.

    The output is put in place when all of it is written. What it cost is charged to the model, as requests are.
    """
    from tenon.flow import single

    started, cpu = time.perf_counter(), ledger.cpu_seconds()
    beside = asked.out.with_name(f"{asked.out.stem}.quarantine.parquet")
    live = awaken(work, asked.model, asked.version)
    # What happened in the rows that are scored is not known yet, so only the columns of a request are read.
    columns = live.columns
    wanted = Source(live.spine.name, columns=columns, null=live.spine.null)
    with single.batches(asked.rows, wanted, work.progress) as given, single.writer(asked.out) as write:
        rows = refused = 0
        for part in given.frames:
            scored = score(live, part, columns)
            write(scored)
            rows, refused = rows + scored.height, refused + int(scored["fault"].is_not_null().sum())
            work.progress(rows, given.rows, "scoring")
        if not rows:
            write(score(live, pl.DataFrame(schema={column.name: pl.String for column in columns}), columns))
        if given.quarantine is not None:
            single.place(given.quarantine, beside)
    name, prices = live.record["model"], work.config.prices
    note = f"file {asked.rows.name}"
    entry = ledger.requests(name, rows, ledger.cpu_seconds() - cpu, prices, at=work.clock(), note=note)
    work.store.charge(entry)
    return Predicted(
        model=name,
        version=live.record["id"],
        rows=rows,
        refused=refused,
        seconds=time.perf_counter() - started,
        usd=entry.usd,
        quarantined=given.quarantined,
        quarantine=str(beside) if given.quarantine is not None else "",
        findings=given.findings,
    )


def score(live: Live, rows: pl.DataFrame, columns: Sequence[contract.Column]) -> pl.DataFrame:
    """Return the rows with `score`, `decision` and `fault`; a row that breaks the contract has only a fault."""
    checked = contract.check_rows(rows.select([column.name for column in columns]).to_dicts(), columns)
    values = checked.rows
    faults: list[str | None] = [None] * len(values)
    for fault in checked.faults:
        place, _, name = fault["path"].removeprefix("$.rows[").partition("]")
        said = f"{name.lstrip('.')}: expected {fault['expected']}, got {fault['got']}"
        number = int(place)
        faults[number] = f"{faults[number]}; {said}" if faults[number] else said
    good = [i for i, fault in enumerate(faults) if fault is None]
    found: list[float | None] = [None] * len(values)
    if good:
        scores = live.predictor.score(live.online.read([values[i] for i in good]))
        for i, value in zip(good, scores.tolist(), strict=True):
            found[i] = value
    threshold = live.record["threshold"]
    decisions = [None if threshold is None or value is None else value >= threshold for value in found]
    return rows.with_columns(
        pl.Series("score", found, dtype=pl.Float64),
        pl.Series("decision", decisions, dtype=pl.Boolean),
        pl.Series("fault", faults, dtype=pl.String),
    )


# ── recorded traffic ─────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Which stretch of recorded time to play, against which service, and how fast."""

    model: str = ""
    url: str = ""
    start: str = ""
    end: str = ""
    tick: str = "15m"
    speed: float = 0.0


def replay(work: Work, asked: Replay) -> serving.Replayed:
    """Play recorded rows as live traffic: each is predicted at its own time, its outcome comes when it was known."""
    declared = work.model(asked.model)
    made = newest(work, "features", f"the features of '{declared.name}'", model=declared.name)
    chosen = learn.restored(declared, made)
    spine = chosen.spine
    frames = {
        source: frame(work, newest(work, "dataset", f"the dataset of '{source}'", id=id))
        for source, id in made["datasets"].items()
        if chosen.sources[source].time
    }
    start = moment_of(asked.start, "--from") if asked.start else declared.split_at[1]
    latest = frames[spine.name][spine.time].max()
    assert isinstance(latest, datetime), latest
    end = moment_of(asked.end, "--to") if asked.end else latest + timedelta(seconds=1)
    step = timedelta(microseconds=duration_us(asked.tick, "--tick"))
    rows = frames[spine.name].filter((pl.col(spine.time) >= start) & (pl.col(spine.time) < end))
    if not rows.height:
        got = f"rows {learn.reach(frames[spine.name][spine.time])}"
        raise InputError(
            sentence(f"rows from {start} to {end}", got, at=f"source '{spine.name}'", hint="mend --from or --to")
        )
    serve_config = work.config.serve
    url = asked.url or f"http://{serve_config.host}:{serve_config.port}"
    pace = serving.Pace(speed=asked.speed, token=serve_config.token, total_rows=rows.height)
    span = Span(start=start, end=end, step=step)
    return play(ticks(chosen, frames, span), url, declared.name, pace=pace, progress=_replaying(work))


def _replaying(work: Work) -> Callable[[float, float, str], None]:
    """Name the work once: the rate in the client's words changes all the time."""
    return lambda done, total, _said: work.progress(done, total, "replaying")


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch of recorded time, cut into steps."""

    start: datetime
    end: datetime
    step: timedelta


def ticks(chosen: FeatureSet, frames: Mapping[str, pl.DataFrame], span: Span) -> Iterator[serving.Tick]:
    """Yield the stretch tick by tick: the facts that became known in it, then the rows to predict in it.

    Facts of a tick are posted before its predictions. A prediction still uses only what was known at its own time,
    because the online state is read as of that time: the length of a tick changes no feature. Facts go on after the
    last prediction until every outcome of the stretch is known.
    """
    spine = chosen.spine
    asked = frames[spine.name].filter(pl.col(spine.time) < span.end)
    rows = _by_tick(asked, spine.time, span, [column.name for column in request_columns(chosen)])
    last = max(rows)
    facts = {}
    for name, whole in frames.items():
        source = chosen.sources[name]
        found = _by_tick(asked if name == spine.name else whole, source.known_at, span, _raw(source, whole))
        facts[name] = {number: part for number, part in found.items() if number <= last or name == spine.name}
    numbers = sorted({*rows, *(number for found in facts.values() for number in found)})
    for number in numbers:
        here = {name: found[number] for name, found in facts.items() if number in found}
        end = span.start + (number + 1) * span.step
        yield serving.Tick(
            end=end.replace(tzinfo=UTC).timestamp(),
            facts={name: dicts(part) for name, part in here.items()},
            rows=dicts(rows[number]) if number in rows else [],
        )


def _by_tick(rows: pl.DataFrame, column: str, span: Span, keep: Sequence[str]) -> dict[int, pl.DataFrame]:
    """Cut rows into ticks by a time column; rows before the stretch or without a time are left out."""
    step_us = span.step // timedelta(microseconds=1)
    number = ((pl.col(column) - span.start).dt.total_microseconds() // step_us).alias("_tick")
    kept = rows.filter(pl.col(column) >= span.start).sort(column, maintain_order=True)
    parts = kept.select([*(pl.col(name) for name in keep), number]).partition_by(
        "_tick", as_dict=True, include_key=False
    )
    return {int(key[0]): part for key, part in parts.items()}


def _raw(source: Source, rows: pl.DataFrame) -> list[str]:
    """Name the columns of a fact as it came: those that are read, not derived."""
    return [column.name for column in source.columns if not column.derive and column.name in rows.columns]


def dicts(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """Return rows as JSON has them; absent values are left out."""
    return [
        {name: plain(value) for name, value in row.items() if value is not None} for row in rows.iter_rows(named=True)
    ]


# ── late outcomes ────────────────────────────────────────────────────────────────────────────────────────────────────


def label_source(work: Work, declared: Any) -> watch.LabelSource:
    """Say how facts of the model's own source become labels: by its derived columns and the label's SQL."""
    made = newest(work, "features", f"the features of '{declared.name}'", model=declared.name)
    chosen = learn.restored(declared, made)
    lookups = {
        source: frame(work, newest(work, "dataset", f"the dataset of '{source}'", id=id))
        for source, id in made["datasets"].items()
        if not chosen.sources[source].time
    }
    return watch.LabelSource(
        source=chosen.spine.name, labels_of=lambda facts: labels_of(chosen, facts, lookups), definition=chosen.digest
    )


def labels_of(chosen: FeatureSet, facts: pl.DataFrame, lookups: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Return key_* columns, time, label and known of raw rows of the model's own source."""
    spine = chosen.spine
    rows = chosen.derive(spine.name, facts, lookups)
    moment = pl.Datetime("us")
    return rows.select(
        *(pl.col(name).alias(f"key_{name}") for name in spine.key),
        pl.col(spine.time).cast(moment).alias("time"),
        sql.to_polars(chosen.plan.label).cast(pl.Float64).alias("label"),
        pl.col(chosen.plan.label_known).cast(moment).alias("known"),
    )


def labels(work: Work, file: Path, name: str) -> dict[str, Any]:
    """Keep true outcomes from a file: rows of id and label, or rows of the model's own source."""
    from tenon.flow import single

    declared = work.model(name)
    now = work.clock()
    columns = single.table(file).rows.columns
    if {"id", "label"} <= set(columns):
        trained = work.store.find("run", limit=1, model=declared.name)
        binary = bool(trained) and trained[0].get("task") == "binary"
        kept, refused = _by_id(file, columns, now, binary=binary)
        _append(work, "labels", declared.name, kept, "known", now)
        ids = set(kept["id"].to_list())
        seen = _observed_ids(work, declared.name)
        matched, kind = len(ids & seen), "labels by id"
    else:
        source = declared.of
        read = replace(source, columns=[column for column in source.columns if not column.derive])
        missing = [column.name for column in read.columns if column.name not in columns and not column.nullable]
        if missing:
            raise InputError(
                sentence(
                    f"columns id and label, or the columns of source '{source.name}'",
                    f"a file without '{missing[0]}'",
                    at=str(file),
                    hint="see docs/watch.md for both forms",
                )
            )
        given = single.table(file, read)
        kept, refused = given.rows, given.unread
        found = label_source(work, declared).labels_of(kept)
        _append(work, "facts", source.name, kept, "", now)
        matched, kind = _meet(work, declared.name, found), f"facts of '{source.name}'"
    return {
        "labels": kept.height,
        "matched": matched,
        "without": kept.height - matched,
        "refused": refused,
        "kind": kind,
    }


def _by_id(file: Path, columns: Sequence[str], now: float, *, binary: bool) -> tuple[pl.DataFrame, int]:
    """Return a file's usable rows of id, label and known, and how many lack an id or a label the model can have.

    True and false are 1 and 0. Without `known`, an outcome is known now.
    """
    from tenon.flow import single

    read = [contract.Column(name, "text", nullable=True) for name in ("id", "label")]
    times = [contract.Column("known", "timestamp", nullable=True)] if "known" in columns else []
    given = single.table(file, Source("labels", columns=[*read, *times], strict=False))
    moment = pl.lit(datetime.fromtimestamp(now, UTC).replace(tzinfo=None)).cast(pl.Datetime("us"))
    known = pl.col("known").fill_null(moment) if times else moment.alias("known")
    words = pl.col("label").str.strip_chars().str.to_lowercase().replace({"true": "1", "false": "0"})
    found = given.rows.select("id", words.cast(pl.Float64, strict=False).alias("label"), known)
    usable = pl.col("label").is_in([0.0, 1.0]) if binary else pl.col("label").is_finite()
    kept = found.filter(pl.col("id").is_not_null() & usable)
    refused = found.height - kept.height + given.unread
    if not kept.height:
        got = f"{refused:,} rows that lack one"
        values = "0 or 1" if binary else "a number"
        hint = f"label is {values}, or true or false; known, when given, a moment such as 2013-11-01T05:15"
        raise InputError(sentence("rows with an id, a label and a moment", got, at=str(file), hint=hint))
    return kept, refused


def _append(work: Work, stream: str, subject: str, rows: pl.DataFrame, time_column: str, now: float) -> None:
    first = last = now
    if time_column and rows.height:
        epoch = rows[time_column].drop_nulls().cast(pl.Datetime("us")).dt.epoch("us")
        if epoch.len():
            first, last = int(epoch.min()) / 1e6, int(epoch.max()) / 1e6  # type: ignore[arg-type]
    for part in rows.iter_slices(100_000):
        work.store.append(stream, subject, serving.to_ipc(part), rows=part.height, first=first, last=last)


def _observed_ids(work: Work, name: str) -> set[str]:
    found: set[str] = set()
    for batch in work.store.read("observations", name):
        found.update(pl.read_ipc(batch.body, columns=["id"])["id"].to_list())
    return found


def _meet(work: Work, name: str, found: pl.DataFrame) -> int:
    """Count the outcomes that meet an observation of the same key and time."""
    keys = [column for column in found.columns if column.startswith("key_")]
    on = [*keys, "time"]
    texts = [pl.col(key).cast(pl.String) for key in keys]
    wanted = found.select([*texts, pl.col("time")]).unique()
    matched = 0
    for batch in work.store.read("observations", name):
        seen = pl.read_ipc(batch.body, columns=on).select([*texts, pl.col("time")]).unique()
        matched += wanted.join(seen, on=on, how="semi").height
        wanted = wanted.join(seen, on=on, how="anti")
    return matched

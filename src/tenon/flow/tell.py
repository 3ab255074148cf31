"""What is known, told: the examination of live traffic, three reports of one set of facts, the page, the costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from tenon import ledger, report, sketch
from tenon import watch as watching
from tenon.errors import InputError, sentence
from tenon.finding import Finding
from tenon.flow import learn, live, promote, single
from tenon.flow.data import parquet
from tenon.flow.work import Work, digest, newest

AUDIENCES = ("engineer", "manager", "executive")
EXTENSIONS = {"html": "html", "text": "txt", "json": "json"}


# ── watching ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What to look at: which model, as of which moment, in windows how long; empty values mean the usual."""

    model: str = ""
    as_of: str = ""
    window: str = ""


def watch(work: Work, asked: Look) -> dict[str, Any]:
    """Examine what the model's service answered; keep the examination and what is new since the last one."""
    declared = work.model(asked.model)
    name = declared.name
    now = promote.current(work, name) or newest(work, "version", f"a version of '{name}'", model=name)
    made = newest(work, "features", "the features of the version", id=now["features"])
    trained = newest(work, "run", "the run of the version", id=now["run"])
    reference = sketch.Profile.from_bytes(work.store.blobs.read(made["profile"]))
    config = replace(work.config.watch, window=asked.window) if asked.window else work.config.watch
    matrix = parquet(work, made["matrix"])
    words = declared.words
    context = watching.Context(
        version=now["id"],
        run=trained,
        metric=declared.gate.metric,
        usual=_usual(
            work, trained, Stretch(matrix=matrix, before=declared.split_at[0], window=config.window), reference
        ),
        scores=sketch.profile(learn.scores_of(work, trained, "test").select("score")),
        labels=live.label_source(work, declared),
        offline=matrix.filter(pl.col("_time") >= declared.split_at[1]),
        words={
            "unit_plural": words.unit_plural,
            "unit_singular": words.unit_singular,
            "positive_word": words.positive_word,
        },
        limits=work.config.limits.watch,
        clock=work.clock,
        progress=work.progress,
    )
    moment = live.moment_of(asked.as_of, "--as-of") if asked.as_of else None
    previous = work.store.find("watch", limit=1, model=name)
    watched = watching.examine(
        work.store,
        name,
        reference=reference,
        task=trained["task"],
        config=config,
        as_of=moment,
        context=context,
    )
    watched = replace(watched, findings=(*watched.findings, *_budget(work, name)))
    change = watching.alerts(watched.findings, previous[0]["findings"] if previous else [])
    told = {"new": change.new, "still": change.still, "gone": change.gone}
    alerts = {name: [finding.to_dict() for finding in findings] for name, findings in told.items()}
    body = {**watched.to_dict(), "alerts": alerts}
    with work.store.atomic():
        work.store.put("watch", watched.id, body)
        for finding in change.new:
            work.store.event("alert", name, finding.to_dict())
    return body


def _budget(work: Work, name: str) -> list[Finding]:
    """Say whether the service is over its budget now, as it recorded."""
    states = ("start", "over budget", "within budget")
    told = [row for row in work.store.events("serving", name) if row["state"] in states]
    if not told or told[-1]["state"] != "over budget":
        return []
    last = told[-1]
    what = f"the cheaper version {last['cheaper']} answers" if last["cheaper"] else "requests are shed by priority"
    return [
        Finding(
            code="serving/over-budget",
            severity="warning",
            place=f"{name}/budget",
            said=f"Answers cost more than serve.usd_per_hour or serve.usd_per_1000 allow: {what}.",
            hint="`tenon cost` shows what answers cost; raise the budget, or promote a cheaper version.",
            numbers={"since_s": last["at"], "degraded": last["degraded"], "shed": last["shed"]},
        )
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """The training part of a matrix, to be looked at in windows."""

    matrix: pl.DataFrame
    before: datetime
    window: str


def _usual(work: Work, trained: Mapping[str, Any], stretch: Stretch, reference: sketch.Profile) -> watching.Usual:
    """Return how much windows vary that were there before the model served, measured once for this run.

    Features and rates are those of the training period. Scores are those of the validation period, on which the model
    was not fitted: a week is then held against weeks, not against all of them together.
    """
    id = f"{trained['id']}-{stretch.window}"
    kept = work.store.get("usual", id)
    if kept is not None:
        return watching.Usual.from_dict(kept)
    held_out = learn.scores_of(work, trained, "valid").select(
        pl.col("time").alias("_time"), pl.col("label").alias("_label"), pl.col("score").alias("_score")
    )
    found = watching.usual(
        stretch.matrix.filter(pl.col("_time") < stretch.before),
        stretch.window,
        reference=reference,
        held_out=held_out,
        task=trained["task"],
    )
    work.store.put("usual", id, found.to_dict())
    return found


# ── reports ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Telling:
    """Which reports to write: of which model, for whom, in which form, and where to."""

    model: str = ""
    audiences: Sequence[str] = AUDIENCES
    form: str = "html"
    out: Path | None = None


def reports(work: Work, asked: Telling) -> list[dict[str, Any]]:
    """Write a report for each audience from one set of facts, of one model or of all of them.

    The same facts give the same bytes. Each report is kept in the store under its digest, and copied to `reports/` in
    the project folder (or `out`).
    """
    chosen = [work.model(asked.model)] if asked.model else work.project.models
    folder = asked.out or work.project.root / "reports"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(sentence("a folder to write reports to", str(error.strerror), at=str(folder))) from error
    told = []
    for number, declared in enumerate(chosen):
        work.progress(number, len(chosen), "writing reports")
        told += _reports_of(work, asked, declared.name, folder)
    return told


def _reports_of(work: Work, asked: Telling, name: str, folder: Path) -> list[dict[str, Any]]:
    """Write one model's reports; their files are named by the model where the project has several."""
    facts = report.facts(work.store, name)
    prefix = f"{name}-" if len(work.project.models) > 1 else ""
    told = []
    for audience in asked.audiences:
        text = report.draw(facts, audience, asked.form)
        blob = work.store.blobs.put(text.encode())
        path = folder / f"{prefix}{audience}.{EXTENSIONS[asked.form]}"
        single.place(work.store.blobs.path(blob), path)
        id = digest(["report", name, audience, asked.form, blob])[:12]
        body = {"id": id, "model": name, "audience": audience, "format": asked.form, "file": blob, "path": str(path)}
        if work.store.get("report", id) is None:
            work.store.put("report", id, {**body, "at": work.clock()})
        told.append({**body, "text": text})
    return told


# ── the page ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def ui(work: Work, port: int, say: Callable[[str], None]) -> None:
    """Serve the local page over the store's facts until Ctrl-C; only this machine can reach it."""
    from tenon import ui as page

    page.run(page.build_app(work.store), port=port, started=lambda url: say(f"open {url}    Ctrl-C ends it"))


# ── costs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def cost(work: Work, by: str) -> dict[str, Any]:
    """Sum the ledger by stage, kind or day, with what storage costs a month and a thousand predictions cost."""
    entries = work.store.entries()
    rows = ledger.summary(entries, by={"stage": "subject", "kind": "kind", "day": "day"}[by])  # type: ignore[arg-type]
    served = [entry for entry in entries if entry.kind == "request"]
    predictions = int(sum(entry.quantity for entry in served))
    stored = work.store.size_bytes()
    prices = work.config.prices
    return {
        "by": by,
        "rows": [{"name": row.key, "entries": row.entries, "usd": row.usd} for row in rows],
        "usd": ledger.total(entries),
        "stored_bytes": stored,
        "storage_usd_month": ledger.storage("store", stored, prices, at=work.clock()).usd,
        "predictions": predictions,
        "usd_per_1000": ledger.per_thousand(ledger.total(served), predictions),
        "prices": f"{prices.usd_per_core_hour:g} USD a core hour, {prices.usd_per_gb_memory_hour:g} a GB hour "
        f"of memory, {prices.usd_per_gb_month:g} a GB month of storage",
    }

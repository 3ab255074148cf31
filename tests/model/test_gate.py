"""The gate lets through what is better beyond noise and answers exactly, and says why when it does not."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tenon.errors import ConfigError, InputError
from tenon.model import Decision, Gate, Latency, Parity, Predictor, Version, decide, latency, parity

GOOD = Parity(max_abs=1e-7, decision_flips=0, rows=1_000, metric_delta=0.0)
QUICK = Latency(p50_ms=0.04, p99_ms=0.1, rows=1_000)

Made = Any  # what conftest trained and compiled


def record(value: float = 0.05, low: float = 0.03, **more: Any) -> dict[str, Any]:
    estimate = {"value": 0.76, "low": 0.75, "high": 0.77}
    return {
        "id": "abc123",
        "metrics": {"test": {"roc_auc": estimate, "brier": {"value": 0.11, "low": 0.10, "high": 0.12}}},
        "lift": {
            "roc_auc": {"value": value, "low": low, "high": 2 * value - low},
            "brier": {"value": 0.02, "low": 0.01, "high": 0.03},
        },
        "baseline": "logistic",
        "findings": [],
        **more,
    }


def failed(decision: Decision) -> list[str]:
    return [check.name for check in decision.checks if not check.passed]


def test_a_model_that_is_better_beyond_noise_and_exact_is_allowed() -> None:
    decision = decide(
        Gate(metric="roc_auc", beat_baseline=0.02, p99_ms=10, max_size_mb=5), record(), GOOD, QUICK, 10**6
    )
    assert decision.allowed
    assert not decision.findings
    assert decision.said == "Allowed: all 6 checks passed."
    assert [check.name for check in decision.checks] == [
        "baseline",
        "beyond_noise",
        "parity",
        "findings",
        "p99_ms",
        "size_mb",
    ]
    assert all(check.value is not None and check.limit is not None for check in decision.checks)


@pytest.mark.parametrize(
    ("gate", "changed", "proof", "check", "said"),
    [
        (
            Gate(beat_baseline=0.06),
            record(),
            GOOD,
            "baseline",
            "roc_auc is +0.0500 better than the logistic baseline, +0.0600 asked",
        ),
        (
            Gate(),
            record(0.01, -0.002),
            GOOD,
            "beyond_noise",
            "that lift is between -0.0020 and +0.0220 (95 %), which must lie above 0",
        ),
        (Gate(), record(lift={}), GOOD, "baseline", "there is no baseline that roc_auc could be better than"),
        (Gate(at_least=0.8), record(), GOOD, "at_least", "roc_auc is 0.7600, at least 0.8 asked"),
        (Gate(metric="brier", at_least=0.1), record(), GOOD, "at_least", "brier is 0.1100, at most 0.1 asked"),
        (Gate(p99_ms=0.05), record(), GOOD, "p99_ms", "one row takes 0.1 ms at the 99th percentile, 0.05 ms allowed"),
        (
            Gate(usd_per_point=0.5),
            record(trainer="net", costs={"net": {"usd": 4.0}, "logistic": {"usd": 0.5}}),
            GOOD,
            "price",
            "cost 3.5 USD more than logistic's for +0.0500 of roc_auc: 0.7 USD for each 0.01, 0.5 allowed",
        ),
        (Gate(usd_per_point=0.5), record(), GOOD, "price", "so its price is not known"),
        (Gate(max_size_mb=0.5), record(), GOOD, "size_mb", "the compiled model takes 1.00 MB, 0.5 MB allowed"),
        (
            Gate(),
            record(),
            Parity(max_abs=0.2, decision_flips=31, rows=1_000, metric_delta=-0.1),
            "parity",
            "differs from the trained one by at most 2.0e-01 on 1,000 rows (1e-05 allowed), and 31 decisions change",
        ),
        (
            Gate(),
            record(findings=[{"code": "training/diverged", "severity": "error", "said": "it ran away"}]),
            GOOD,
            "findings",
            "the run has 1 findings that are errors, first training/diverged: it ran away",
        ),
    ],
)
def test_each_reason_to_refuse_is_a_sentence_with_value_and_limit(
    gate: Gate, changed: dict[str, Any], proof: Parity, check: str, said: str
) -> None:
    decision = decide(gate, changed, proof, QUICK, 10**6)
    assert not decision.allowed
    assert failed(decision) == [check]
    assert said in decision.said
    assert decision.findings[0].code == "model/refused"
    assert said in decision.findings[0].said
    assert decision.findings[0].place == "abc123/gate"


def test_a_lift_that_noise_could_give_is_refused_however_large() -> None:
    assert failed(decide(Gate(beat_baseline=0.02), record(0.04, -0.01), GOOD, QUICK, 1)) == ["beyond_noise"]


def test_a_warning_does_not_stop_a_version() -> None:
    warned = record(findings=[{"code": "training/suspicious", "severity": "warning", "said": "too good"}])
    assert decide(Gate(), warned, GOOD, QUICK, 1).allowed


def test_a_metric_the_task_does_not_have_is_said_in_words() -> None:
    with pytest.raises(ConfigError, match=r"expected a metric of this run, got 'rmse' - at Gate\(metric=...\)"):
        decide(Gate(metric="rmse"), record(), GOOD, QUICK, 1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"metric": "roc_au"}, "did you mean 'roc_auc'"),
        ({"beat_baseline": -0.1}, r"Gate\(beat_baseline=...\)"),
        ({"p99_ms": float("nan")}, r"Gate\(p99_ms=...\)"),
        ({"max_size_mb": -1}, r"Gate\(max_size_mb=...\)"),
    ],
)
def test_a_gate_that_says_what_it_may_not_is_refused(words: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Gate(**words)


def test_a_real_run_passes_its_gate_and_a_harder_one_refuses_it(late: Made) -> None:
    predictor = Predictor.load(late.compiled.onnx, late.compiled.manifest)
    proof = parity(late.outcome.fitted, late.compiled, late.data.test.x, late.data.test.y)
    quick = latency(predictor, late.data.test.x, rows=100)
    found = late.outcome.to_dict()
    assert decide(Gate(beat_baseline=0.05, p99_ms=1_000), found, proof, quick, late.compiled.size_bytes).allowed
    assert not decide(Gate(beat_baseline=0.45), found, proof, quick, late.compiled.size_bytes).allowed


def test_a_compiled_model_that_answers_differently_is_found(late: Made, delay: Made) -> None:
    other = late.outcome.fitted
    shifted = type(other)(model=delay.outcome.fitted.model, encoding=other.encoding, task="binary", trainer="other")
    proof = parity(shifted, late.compiled, late.data.test.x, late.data.test.y)
    assert not proof.holds
    assert proof.findings()[0].code == "model/parity"
    with pytest.raises(InputError, match="expected rows to prove parity on, got none"):
        parity(other, late.compiled, late.data.test.x.head(0))


# ── what is kept ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_kept_is_plain_data_and_comes_back() -> None:
    decision = decide(Gate(), record(), GOOD, QUICK, 1)
    assert json.loads(json.dumps(decision.to_dict()))["checks"][0]["name"] == "baseline"
    assert Parity.from_dict({**GOOD.to_dict(), "new": 1}) == GOOD
    assert Latency.from_dict({**QUICK.to_dict(), "new": 1}) == QUICK
    assert json.loads(json.dumps(Gate(metric="roc_auc").to_dict()))["metric"] == "roc_auc"


def test_a_version_is_named_by_what_made_it_and_comes_back() -> None:
    name = Version.name("late", "run1", "onnx", "manifest")
    assert name == Version.name("late", "run1", "onnx", "manifest") != Version.name("late", "run2", "onnx", "manifest")
    assert len(name) == 12
    version = Version(id=name, model="late", number=3, at=1.5, run="run1", gate={"allowed": True})
    assert Version.from_dict({**json.loads(json.dumps(version.to_dict())), "new": 1}) == version
    assert version.allowed
    assert not Version(id=name, model="late", number=3, at=1.5, run="run1").allowed


def test_declaring_a_gate_brings_no_library() -> None:
    code = "import sys; import tenon.model.gate; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"numpy", "onnxruntime", "polars", "lightgbm"}


def test_the_gate_knows_every_metric_that_can_be_measured() -> None:
    from tenon import metric
    from tenon.model import gate

    assert gate.HIGHER_IS_BETTER == metric.HIGHER_IS_BETTER

"""The whole path: done once for what it is made of, redone only from what changed, refused when it must be."""

from __future__ import annotations

from pathlib import Path

import pytest

from tenon.errors import ConfigError, ContractError, GateError, InputError, MissingError, TrainingError
from tenon.flow import Outcome, Work, promote, run
from tenon.flow.work import digest

from .conftest import again, edit


def done(outcome: Outcome) -> dict[str, bool]:
    return {f"{stage.name}/{stage.subject}": stage.done for stage in outcome.stages}


# ── what is redone ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_project_goes_from_raw_file_to_production_and_reports(finished: tuple[Path, Outcome]) -> None:
    folder, outcome = finished
    assert all(done(outcome).values())
    (verdict,) = outcome.models
    assert verdict.allowed and verdict.serving, verdict
    assert [row[0] for row in verdict.scores] == ["logistic", "constant"]
    assert set(outcome.reports) == {"engineer", "manager", "executive"}
    assert all(Path(path).read_text("utf-8").startswith("<!doctype html>") for path in outcome.reports.values())
    assert folder in Path(outcome.reports["manager"]).parents


def test_a_second_run_with_nothing_changed_does_no_stage(shop: Path) -> None:
    assert not any(done(again(shop)).values())


def test_a_changed_feature_redoes_only_what_follows_from_it(shop: Path) -> None:
    edit(shop, 'Feature("month", "month(sent)")', 'Feature("month", "month(sent) + 1")')
    assert done(again(shop)) == {
        "ingest/invoices": False,
        "dataset/invoices": False,
        "features/slow": True,
        "run/slow": True,
        "variant/slow": True,
        "version/slow": True,
    }


def test_a_changed_rule_reads_no_raw_file_again(shop: Path) -> None:
    edit(shop, "between=(0, 100_000)", "between=(0, 2_000)")
    outcome = again(shop)
    assert done(outcome)["ingest/invoices"] is False and done(outcome)["dataset/invoices"] is True
    body = next(stage.body for stage in outcome.stages if stage.name == "dataset")
    assert body["quarantined"] > 0
    assert body["rows"] + body["quarantined"] == 6000
    assert any(finding["code"].startswith("contract/") for finding in outcome.findings)


def test_a_changed_gate_redoes_only_the_verdict(shop: Path) -> None:
    edit(shop, "p99_ms=10", "p99_ms=20")
    assert [name for name, was in done(again(shop)).items() if was] == ["variant/slow", "version/slow"]


def test_a_changed_raw_file_is_noticed(shop: Path) -> None:
    file = shop / "raw" / "invoices.csv"
    lines = file.read_text("utf-8").splitlines()
    file.write_text("\n".join(lines[:-1]) + "\n", "utf-8")
    assert done(again(shop))["ingest/invoices"] is True


def test_lost_bytes_of_a_stage_make_it_anew(shop: Path, work: Work) -> None:
    record = work.store.find("features")[0]
    work.store.blobs.delete(record["matrix"])
    outcome = run(work)
    assert done(outcome)["features/slow"] is True and done(outcome)["ingest/invoices"] is False


def test_the_same_work_has_the_same_name_and_every_stage_has_its_cost(
    finished: tuple[Path, Outcome], work: Work
) -> None:
    _, outcome = finished
    assert [stage.id for stage in run(work).stages] == [stage.id for stage in outcome.stages]
    assert all(stage.usd > 0 for stage in outcome.stages)
    assert digest({"b": 1, "a": [2.5]}) == digest({"a": [2.5], "b": 1})


def test_a_run_remembers_data_code_packages_seed_and_cost(work: Work) -> None:
    record = work.store.find("run")[0]
    assert record["status"] == "done" and record["seed"] == 0 and record["usd"] > 0
    assert record["packages"]["polars"] and record["python"]
    made = work.store.get("features", record["features"])
    assert made is not None and work.store.get("dataset", made["datasets"]["invoices"])
    assert record["metrics"]["test"]["roc_auc"]["low"] > 0.6


# ── the gate ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_model_that_does_not_beat_its_baseline_beyond_noise_is_refused_and_says_why(shop: Path) -> None:
    edit(shop, 'train="logistic"', 'train="lightgbm"')
    before = again_version(shop)
    outcome = again(shop)
    (verdict,) = outcome.models
    assert not verdict.allowed and not verdict.serving
    assert any(finding["code"] == "training/not-better" for finding in outcome.findings)
    assert any(finding["code"] == "model/refused" for finding in outcome.findings)
    assert again_version(shop) == before, "production must not move to a version that was refused"
    work = Work.open(shop, {})
    try:
        with pytest.raises(GateError, match="expected a version its gate allows"):
            promote.promote(work, promote.Move(version=verdict.version))
    finally:
        work.store.close()


def again_version(folder: Path) -> str:
    work = Work.open(folder, {}, read_only=True)
    try:
        held = promote.current(work, "slow")
        assert held is not None
        return str(held["id"])
    finally:
        work.store.close()


def test_promotion_despite_the_gate_needs_a_reason_and_is_kept_in_the_audit(shop: Path) -> None:
    edit(shop, "beat_baseline=0.05", "beat_baseline=0.9")
    (verdict,) = again(shop).models
    work = Work.open(shop, {})
    try:
        move = promote.Move(version=verdict.version, despite_gate=True, reason="a demonstration")
        promote.promote(work, move)
        trail = promote.audit(work)
        assert trail[-1]["version"] == verdict.version
        assert "a demonstration (despite its gate)" in trail[-1]["why"]
        back = promote.rollback(work, promote.Move())
        assert back["version"] == trail[0]["version"]
        with pytest.raises(MissingError, match="a version before this one"):
            promote.rollback(work, promote.Move())
    finally:
        work.store.close()


# ── what must be refused in words ────────────────────────────────────────────────────────────────────────────────────


def test_a_split_with_an_empty_side_names_the_side_and_the_reach_of_the_data(shop: Path) -> None:
    edit(shop, '("2025-08-01", "2025-10-01")', '("2025-08-01", "2031-10-01")')
    with pytest.raises(
        InputError, match=r"expected labelled rows for test, got labelled rows from 2025.* at model 'slow'"
    ):
        again(shop)


def test_a_label_that_never_varies_is_refused(shop: Path) -> None:
    edit(shop, 'Label("days_late > 14"', 'Label("days_late > 1000"')
    with pytest.raises(TrainingError, match="a label that varies"):
        again(shop)


def test_a_missing_column_names_the_column_and_the_file(shop: Path) -> None:
    edit(shop, 'Column("amount", "float"', 'Column("amout", "float"')
    with pytest.raises((ContractError, InputError, ConfigError), match="amout"):
        again(shop)


def test_a_feature_that_would_use_what_is_known_later_is_refused_by_name(shop: Path) -> None:
    edit(shop, 'Feature("amount", "amount")', 'Feature("amount", "amount + days_late")')
    with pytest.raises(ConfigError, match="days_late"):
        again(shop)


def test_no_raw_files_say_where_they_were_looked_for(shop: Path) -> None:
    edit(shop, "raw/invoices.csv", "raw/invoces*.csv")
    with pytest.raises(InputError, match=r"files of source 'invoices', got none - at .*invoces"):
        again(shop)


@pytest.mark.parametrize("body", [b"", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40])
def test_an_empty_file_and_one_that_is_no_table_are_refused_in_words(shop: Path, body: bytes) -> None:
    (shop / "raw" / "invoices.csv").write_bytes(body)
    with pytest.raises((InputError, ContractError), match=r"expected .* got .*invoices"):
        again(shop)


def test_a_corrupted_blob_is_named_with_what_to_do(shop: Path, work: Work) -> None:
    record = work.store.find("features")[0]
    path = work.store.blobs.path(record["matrix"])
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    edit(shop, 'train="logistic"', 'seed=3,\n    train="logistic"')
    with pytest.raises(Exception, match=f"{record['matrix'][:12]}"):
        again(shop)

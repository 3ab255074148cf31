"""Facts: each with its source, read and not reckoned where a record has them, missing ones said and never invented."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tenon import ledger
from tenon.errors import MissingError
from tenon.report import facts
from tenon.store import Store

Facts = dict[str, Any]
Gather = Callable[..., Facts]


def value(found: Facts, key: str) -> Any:
    return found["figures"][key]["value"]


# ── every figure says where it comes from ────────────────────────────────────────────────────────────────────────────


def field_of(record: dict[str, Any], path: str) -> Any:
    """Follow a path such as ``metrics.test.roc_auc`` or ``findings[watch/drift].numbers.features``."""
    here: Any = record
    for name, index in re.findall(r"([^.\[\]]+)|\[([^\]]+)\]", path):
        if name:
            here = here[name]
        elif index.isdigit():
            here = here[int(index)]
        else:
            here = next(one for one in here if one["code"] == index)
    return here["value"] if isinstance(here, dict) and "value" in here else here


def test_every_figure_and_table_has_a_source_that_names_a_record(story: Facts) -> None:
    for kind in ("figures", "tables"):
        for name, one in story[kind].items():
            source = one["source"]
            assert set(source) == {"record", "id", "field", "blob", "formula", "said"}, name
            assert source["record"] and source["id"], name


def test_a_figure_without_a_formula_is_the_very_field_it_names(flights: Store, story: Facts) -> None:
    checked = 0
    for key, figure in story["figures"].items():
        source = figure["source"]
        record = flights.get(source["record"], source["id"])
        if source["formula"] or record is None or "[]" in source["field"] or source["record"] == "project":
            continue
        if key in ("drift.warning", "drift.error", "drift.columns", "live.windows", "live.from", "live.to", "top.true"):
            continue  # of a section, a list, or the end of one
        assert figure["value"] == field_of(record, source["field"]), key
        checked += 1
    assert checked > 40


def test_an_interval_is_the_one_that_was_measured(example: Any, story: Facts) -> None:
    figure = story["figures"]["test.roc_auc"]
    measured = example.run()["metrics"]["test"]["roc_auc"]
    assert (figure["value"], figure["low"], figure["high"]) == (measured["value"], measured["low"], measured["high"])


def test_a_figure_read_from_a_blob_names_its_digest(flights: Store, story: Facts) -> None:
    blob = story["figures"]["flagged.true"]["source"]["blob"]
    assert flights.blobs.has(blob)


# ── figures that are reckoned ────────────────────────────────────────────────────────────────────────────────────────


def test_a_thousand_predictions_cost_what_the_ledger_charged_for_requests(story: Facts, flights: Store) -> None:
    charged = [entry for entry in flights.entries() if entry.kind == "request"]
    usd, answered = ledger.total(charged), sum(entry.quantity for entry in charged)
    assert value(story, "cost.thousand") == pytest.approx(1000 * usd / answered)


def test_a_thousand_predictions_cost_what_the_windows_kept_where_nothing_was_charged(
    example: Any, without: Gather
) -> None:
    found = without("ledger")
    rows = sum(week[0] for week in example.WEEKS)
    usd = sum(one["usd"] for one in example.watch()["windows"])
    assert value(found, "cost.thousand") == pytest.approx(1000 * usd / rows)
    assert value(found, "live.rows") == rows


def test_a_month_is_answering_and_keeping_and_one_making(example: Any, story: Facts, flights: Store) -> None:
    rows = sum(week[0] for week in example.WEEKS) * 30 / 70
    kept = flights.blobs.size(example.run()["artifacts"]["test_scores"]) / 1e9 * 0.023
    assert value(story, "month.rows") == pytest.approx(rows)
    assert value(story, "cost.answering_month") == pytest.approx(value(story, "cost.thousand") * rows / 1000)
    assert value(story, "cost.keeping_month") == pytest.approx(kept)
    parts = ("cost.answering_month", "cost.keeping_month", "making.usd")
    assert value(story, "cost.month") == pytest.approx(sum(value(story, part) for part in parts))


def test_the_cost_of_making_is_the_sum_of_the_stages_that_made_this_version(story: Facts) -> None:
    rows = story["tables"]["making"]["rows"]
    assert [row["record"] for row in rows] == ["dataset"] * 4 + ["features", "run", "version"]
    assert value(story, "making.usd") == pytest.approx(sum(row["usd"] for row in rows))


def test_the_ledger_of_another_model_is_not_counted(story: Facts, flights: Store) -> None:
    every = ledger.total(flights.entries())
    other = ledger.total(entry for entry in flights.entries() if entry.subject == "run/other")
    assert value(story, "ledger.usd") == pytest.approx(every - other)


def test_flags_are_counted_exactly_from_the_kept_scores(story: Facts) -> None:
    # The two riskiest groups of 540 rows score above 0.287: 172 + 262 of them were late, of 950 in all.
    assert value(story, "flagged.rows") == 1_080
    assert value(story, "flagged.true") == pytest.approx((172 + 262) / 1_080)
    assert (
        story["figures"]["flagged.true"]["low"]
        < value(story, "flagged.true")
        < story["figures"]["flagged.true"]["high"]
    )


def test_the_roc_curve_rises_from_nothing_to_everything(story: Facts) -> None:
    curve = story["tables"]["roc"]["rows"]
    assert (curve[0]["wrong"], curve[0]["found"]) == (0.0, 0.0)
    assert (curve[-1]["wrong"], curve[-1]["found"]) == (1.0, 1.0)
    assert all(a["wrong"] <= b["wrong"] and a["found"] <= b["found"] for a, b in pairwise(curve))
    assert len(curve) <= 82


def test_the_gains_end_with_everything_caught(story: Facts) -> None:
    gains = story["tables"]["gains"]["rows"]
    assert gains[-1]["caught"] == pytest.approx(1.0)
    assert gains[0]["true"] == pytest.approx(0.486)


def test_bytes_that_are_in_no_row_count_as_lost(example: Any, store: Store) -> None:
    example.fill(store)
    body = store.get("dataset", example.short("dataset weather"))
    assert body is not None
    body["balance"]["row_bytes"] -= 1_000
    store.put("dataset", body["id"], body, at=example.AT)
    found = facts(store, "late")
    assert value(found, "data.unaccounted_bytes") == 1_000
    assert "not accounted for" in found["verdict"]["safe"]["because"][-1]["said"]


def test_rows_are_added_over_all_sources(example: Any, story: Facts) -> None:
    assert value(story, "data.rows") == sum(source[0] for source in example.SOURCES.values())
    assert value(story, "data.unaccounted_bytes") == 0


# ── which version the facts are about ────────────────────────────────────────────────────────────────────────────────


def test_the_version_in_production_leads_and_a_newer_refused_one_is_told_beside_it(
    example: Any, flights: Store
) -> None:
    newer = {**example.version(), "id": "refused00000", "number": 2, "at": example.AT + 99, "run": "another00000"}
    failed = {"name": "baseline", "passed": False, "said": "roc_auc is +0.0010 better", "value": 0.001, "limit": 0.01}
    newer["gate"] = {"allowed": False, "checks": [failed]}
    flights.put("version", newer["id"], newer, at=newer["at"])
    found = facts(flights, "late")
    assert found["lineage"]["version"] == example.VERSION
    assert found["lineage"]["newest_version"] == "refused00000"
    assert found["tables"]["refused"]["rows"] == [{"name": "baseline", "said": "roc_auc is +0.0010 better"}]
    assert found["verdict"]["good"]["answer"] == "yes"


def test_without_production_the_newest_version_is_told_and_that_it_is_not_in_use(example: Any, without: Gather) -> None:
    found = without("alias")
    assert found["lineage"]["version"] == example.VERSION
    assert "production" in {one["what"] for one in found["missing"]}


def test_gathering_only_reads(example: Any, tmp_path: Path) -> None:
    with Store.open(tmp_path) as writer:
        example.fill(writer)
    before = {path: path.read_bytes() for path in (tmp_path / ".tenon" / "blobs").rglob("*") if path.is_file()}
    with Store.open(tmp_path, read_only=True) as reader:
        facts(reader, "late")
        assert reader.query("SELECT COUNT(*) AS n FROM record") == [{"n": 10}]
    assert before == {path: path.read_bytes() for path in (tmp_path / ".tenon" / "blobs").rglob("*") if path.is_file()}


def test_a_model_nobody_knows_is_refused_with_the_nearest_name(flights: Store) -> None:
    with pytest.raises(MissingError, match=r"expected a model the store knows, got 'lats' - .*did you mean 'late'\?"):
        facts(flights, "lats")


def test_an_empty_store_says_what_to_run(store: Store) -> None:
    with pytest.raises(MissingError, match="run `tenon run` first"):
        facts(store, "late")


# ── what is missing is said ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("left_out", "what", "absent"),
    [
        ({"watch"}, "live traffic", "live.rows"),
        ({"serving"}, "serving", None),
        ({"version", "alias"}, "a version", "gate.allowed"),
        ({"run", "version", "alias"}, "training", "test.roc_auc"),
        ({"dataset"}, "data", "data.rows"),
        ({"watch", "ledger"}, "cost of answering", "cost.thousand"),
        ({"scores"}, "test scores", "flagged.true"),
    ],
)
def test_what_is_not_known_is_said_and_has_no_figure(
    example: Any, store: Store, left_out: set[str], what: str, absent: str | None
) -> None:
    example.fill(store, leave_out=frozenset(left_out))
    found = facts(store, "late")
    assert what in {one["what"] for one in found["missing"]}
    assert all(one["said"] and one["todo"] for one in found["missing"])
    assert absent not in found["figures"]


def test_a_damaged_blob_of_scores_does_not_stop_the_report(flights: Store) -> None:
    digest = facts(flights, "late")["figures"]["flagged.true"]["source"]["blob"]
    path = flights.blobs.path(digest)
    path.chmod(0o600)
    path.write_bytes(b"not what it was")
    found = facts(flights, "late")
    assert "test scores" in {one["what"] for one in found["missing"]}
    assert value(found, "top.true") == 0.486


def test_fields_a_record_leaves_out_and_numbers_that_are_none_or_nan_are_left_out(example: Any, store: Store) -> None:
    bare = {
        "id": example.RUN,
        "model": "late",
        "at": example.AT,
        "status": "failed",
        "metrics": {"test": {"roc_auc": {"value": None}}},
    }
    store.put("run", example.RUN, bare, at=example.AT)
    store.put(
        "watch",
        example.WATCH,
        {"id": example.WATCH, "model": "late", "at": example.AT, "windows": [{"rows": 5, "usd": None}]},
        at=example.AT,
    )
    found = facts(store, "late")
    assert "test.roc_auc" not in found["figures"]
    assert found["verdict"]["good"]["answer"] == "unknown"
    assert value(found, "live.rows") == 5


def test_plain_words_stand_in_where_the_project_declares_none(without: Gather) -> None:
    words = without("project")["words"]
    assert words["unit_plural"] == "cases"
    assert words["title"] == "Late"
    assert all(words[name] for name in ("question", "unit_singular", "positive_word", "owner"))


# ── the verdict ──────────────────────────────────────────────────────────────────────────────────────────────────────


def finding(code: str, severity: str) -> dict[str, Any]:
    return {"code": code, "severity": severity, "place": "late", "said": "so it is", "hint": "", "numbers": {}}


@pytest.mark.parametrize(
    ("findings", "answer"),
    [
        ([], "yes"),
        ([finding("watch/few-rows", "info")], "yes"),
        ([finding("watch/latency", "warning")], "care"),
        ([finding("watch/drift", "error")], "care"),
        ([finding("watch/performance", "error")], "no"),
        ([finding("watch/drift", "error"), finding("watch/errors", "error")], "no"),
    ],
)
def test_safe_to_use_follows_what_watching_found(
    example: Any, store: Store, findings: list[dict[str, Any]], answer: str
) -> None:
    example.fill(store)
    store.put("watch", example.WATCH, {**example.watch(), "findings": findings}, at=example.AT)
    assert facts(store, "late")["verdict"]["safe"]["answer"] == answer


def test_a_refused_version_is_neither_good_enough_nor_safe(example: Any, store: Store) -> None:
    example.fill(store)
    refused = copy.deepcopy(example.version())
    refused["gate"]["allowed"] = False
    refused["gate"]["checks"][0]["passed"] = False
    store.put("version", example.VERSION, refused, at=example.AT)
    verdict = facts(store, "late")["verdict"]
    assert (verdict["good"]["answer"], verdict["safe"]["answer"]) == ("no", "no")
    assert verdict["good"]["because"] == [{"said": refused["gate"]["checks"][0]["said"], "code": ""}]


def test_watching_of_another_version_says_nothing_about_this_one(example: Any, store: Store) -> None:
    example.fill(store)
    store.put("watch", example.WATCH, {**example.watch(), "version": "older0000000"}, at=example.AT)
    found = facts(store, "late")
    assert found["verdict"]["safe"]["answer"] == "unknown"
    assert "watching of this version" in {one["what"] for one in found["missing"]}


def test_inputs_count_as_moved_only_when_a_finding_says_so(example: Any, store: Store) -> None:
    example.fill(store)
    store.put("watch", example.WATCH, {**example.watch(), "findings": []}, at=example.AT)
    found = facts(store, "late")
    assert value(found, "drift.worst") == 1.44  # temperature moves with the season, every year
    assert value(found, "drift.over") == 0

"""Runs looked at: found by name, what changed between two and what came of it, searched in SQL that can do no harm."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenon.errors import MissingError, TenonError, UsageError
from tenon.flow import change, look, search
from tenon.limits import TrackLimits
from tenon.store import Store
from tenon.training.track import Run

PACKAGES = {"numpy": "2.4.1", "polars": "2.1.0", "torch": "2.13.0", "gone": "1.0"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path) as opened:
        yield opened


def keep(store: Store, id: str, *, at: float = 1000.0, **fields: Any) -> dict[str, Any]:
    """Keep a finished run as a record, without the second that a real one takes to look around itself."""
    body = {"id": id, "model": "late", "at": at, "status": "done", "params": {}, "findings": [], "artifacts": {}}
    store.put("run", id, {**body, "final": {}, **fields})
    return body


def changes(store: Store, group: str) -> list[tuple[str, str, Any, Any]]:
    found = change.between(store, "aaaa", "bbbb")["changes"]
    return [(one["name"], one["kind"], one["before"], one["after"]) for one in found if one["group"] == group]


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_is_found_by_id_by_its_beginning_and_by_what_it_is(store: Store) -> None:
    keep(store, "aaaa1", at=1.0)
    keep(store, "aabb2", at=2.0)
    keep(store, "cccc3", at=3.0, model="other")
    store.put("version", "v", {"id": "v", "model": "late", "run": "aaaa1"})
    store.put("alias", "late/production", {"model": "late", "alias": "production", "version": "v"})
    named = {
        "aaaa1": "aaaa1",
        "aab": "aabb2",
        "late@latest": "aabb2",
        "late@previous": "aaaa1",
        "late@production": "aaaa1",
        "@latest": "cccc3",
        "@previous": "aabb2",
        "other@": "cccc3",
    }
    assert {name: look.find(store, name)["id"] for name in named} == named
    for wrong, words in {
        "lat@latest": "did you mean 'late'?",
        "other@previous": "a run before the latest",
        "late@productoin": "did you mean 'production'?",
        "aaaa2": "did you mean 'aaaa1'?",
    }.items():
        with pytest.raises(MissingError, match=words.replace("?", r"\?")):
            look.find(store, wrong)
    with pytest.raises(UsageError, match="which 2 runs share"):
        look.find(store, "aa")


def test_several_runs_are_compared_once_each(store: Store) -> None:
    for id in ("aaaa", "bbbb"):
        keep(store, id)
    assert [run["id"] for run in look.compare(store, ["aaaa", "bb"])["runs"]] == ["aaaa", "bbbb"]
    for names in (["aaaa"], ["aaaa", "aaa"], ["aaaa", "bbbb"] * 5):
        with pytest.raises(UsageError, match="expected 2 to 8 different runs"):
            look.compare(store, names)


# ── what changed ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("2.4.1", "3.0.0", "major"),
        ("2.4.1", "2.10.0", "minor"),
        ("2.4.9", "2.4.10", "patch"),
        ("2.4", "2.4.0.post1", "other"),
        ("2.4.0rc1", "2.4.0", "other"),
        ("1!2.0", "1!3.0", "major"),
        ("2.13.0+cpu", "2.13.0+cu126", "other"),
        ("v1.2", "v1.3", "minor"),
        ("2026.1", "2026.7.2", "minor"),
        ("", "nonsense", "other"),
    ],
)
def test_the_part_of_a_version_that_changed_is_named(before: str, after: str, said: str) -> None:
    assert change.level(before, after) == change.level(after, before) == said


def test_packages_are_told_from_major_to_patch_then_those_that_came_and_went(store: Store) -> None:
    keep(store, "aaaa", packages=PACKAGES)
    keep(store, "bbbb", packages={"numpy": "2.4.2", "polars": "2.2.0", "torch": "3.0", "new": "0.1"})
    assert changes(store, "packages") == [
        ("torch", "major", "2.13.0", "3.0"),
        ("polars", "minor", "2.1.0", "2.2.0"),
        ("numpy", "patch", "2.4.1", "2.4.2"),
        ("new", "added", None, "0.1"),
        ("gone", "gone", "1.0", None),
    ]
    keep(store, "bbbb", packages={})
    assert changes(store, "packages") == [], "what is not known is no change"


def test_groups_come_most_telling_first(store: Store) -> None:
    both: dict[str, Any] = {"python": "3.11.7", "hardware": {"cores": 2}, "config": {"prices": {"usd_per_kwh": 0.25}}}
    keep(store, "aaaa", seed=1, params={"rate": 0.1, "old": 1}, git={"commit": "a" * 40, "dirty": False}, **both)
    keep(
        store,
        "bbbb",
        seed=2,
        params={"rate": 0.2, "net": {"layers": 3}},
        git={"commit": "b" * 40, "dirty": True, "changed": ["net.py"]},
        python="3.12.1",
        hardware={"cores": 4},
        config={"prices": {"usd_per_kwh": 0.5}},
    )
    found = change.between(store, "aaaa", "bbbb")
    groups = list(dict.fromkeys(one["group"] for one in found["changes"]))
    assert groups == [group for group in change.GROUPS if group in groups]
    assert groups == ["parameters", "seed", "code", "python", "hardware", "configuration"]
    assert changes(store, "parameters") == [
        ("net.layers", "added", None, 3),
        ("old", "gone", 1, None),
        ("rate", "changed", 0.1, 0.2),
    ]
    assert any("net.py" in one["said"] for one in found["changes"] if one["name"] == "dirty")
    same = change.between(store, "aaaa", "aaaa")
    assert same["same"] and same["changes"] == [] and same["files"] == []


def test_the_text_of_code_that_was_kept_is_compared(store: Store) -> None:
    digests = [store.blobs.put(text) for text in (b"a = 1\nb = 2\n", b"a = 1\nb = 3\n", b"new\n")]
    keep(store, "aaaa", code={"project.py": digests[0], "lost.py": "0" * 64})
    keep(store, "bbbb", code={"project.py": digests[1], "new.py": digests[2]})
    files = {file["name"]: file for file in change.between(store, "aaaa", "bbbb")["files"]}
    assert "-b = 2\n+b = 3" in files["project.py"]["diff"]
    assert (files["new.py"]["kind"], files["lost.py"]["kind"]) == ("added", "gone")
    assert "no longer in the store" in files["lost.py"]["diff"]
    keep(store, "aaaa")
    assert change.between(store, "aaaa", "bbbb")["files"] == [], "an older run kept none: nothing is known"


def estimate(value: float, half: float) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


@pytest.mark.parametrize(
    ("metric", "before", "after", "verdict"),
    [
        ("roc_auc", estimate(0.70, 0.01), estimate(0.80, 0.01), "better"),
        ("rmse", estimate(0.70, 0.01), estimate(0.80, 0.01), "worse"),
        ("roc_auc", estimate(0.70, 0.05), estimate(0.71, 0.05), "within noise"),
        ("my_own", estimate(1.0, 0.01), estimate(2.0, 0.01), "higher, beyond noise"),
        ("my_own", {"value": 1.0}, 2.0, "no interval: noise unknown"),
        ("my_own", 1.0, 1.0, "the same"),
        ("my_own", None, 1.0, "in one run only"),
    ],
)
def test_a_difference_of_scores_is_held_against_its_noise(
    store: Store, metric: str, before: Any, after: Any, verdict: str
) -> None:
    keep(store, "aaaa", metrics={"test": {metric: before}})
    keep(store, "bbbb", metrics={"test": {metric: after}})
    (one,) = change.between(store, "aaaa", "bbbb")["metrics"]
    assert one["verdict"] == verdict


def test_scores_of_the_same_rows_are_compared_pair_by_pair(store: Store) -> None:
    rng = np.random.default_rng(3)
    label = (rng.random(2_000) < 0.5).astype(float)
    base = np.clip(label * 0.2 + rng.random(2_000) * 0.8, 0.01, 0.99)
    score = {"aaaa": base, "bbbb": np.clip(base + (label - 0.5) * 0.03, 0.001, 0.999)}
    for id, scores in score.items():
        file = io.BytesIO()
        pl.DataFrame({"time": np.arange(2_000), "label": label, "score": scores}).write_parquet(file)
        body = {"test": {"roc_auc": estimate(0.70 if id == "aaaa" else 0.71, 0.03)}}
        keep(store, id, task="binary", metrics=body, artifacts={"test_scores": store.blobs.put(file.getvalue())})
    (one,) = change.between(store, "aaaa", "bbbb")["metrics"]
    assert (one["verdict"], one["how"]) == ("better", "same rows"), "the intervals alone could not tell"
    (back,) = change.between(store, "bbbb", "aaaa")["metrics"]
    assert back["verdict"] == "worse" and back["high"] < 0


def test_final_values_and_cost_are_told(store: Store) -> None:
    keep(store, "aaaa", usd=1.0, seconds=10.0, energy={"kwh": 0.1, "source": "RAPL"}, final={"loss": {"last": 0.5}})
    keep(store, "bbbb", usd=3.0, seconds=0.0, energy={"kwh": 0.2, "source": "estimate"}, final={"loss": {"last": None}})
    found = change.between(store, "aaaa", "bbbb")
    assert [(one["metric"], one["verdict"]) for one in found["metrics"]] == [("loss", "no number at the end")]
    cost = {one["name"]: one for one in found["cost"]}
    assert (cost["usd"]["ratio"], cost["seconds"]["ratio"]) == (3.0, 0.0)
    assert cost["kwh"]["how"] == "RAPL / estimate"


# ── search ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def searched(store: Store) -> Store:
    keep(
        store,
        "aaaa",
        at=1.0,
        params={"rate": 0.1, "Rate": 9, "net.size": "big", "deep": {"a": [1]}, "on": True},
        metrics={"test": {"roc_auc": estimate(0.7, 0.1)}},
        packages=PACKAGES,
        data={"flights": "v1"},
        final={"loss": {"step": 9, "last": 0.5, "min": 0.4, "max": 3.0, "points": 10, "not_finite": 0}},
        energy={"kwh": 0.5, "source": "estimate: core seconds x 10 W"},
    )
    keep(store, "bbbb", at=2.0, params={"rate": 0.3, "note": "it's \x00 odd "}, status="failed", metrics={"acc": 0.9})
    run = Run.start(store, "cccc", "mine", clock=lambda: 3.0)
    run.log(1, loss=0.25)
    run.flush()
    return store


def test_parameters_scores_and_final_values_are_columns(searched: Store) -> None:
    def ask(sql: str) -> list[tuple[Any, ...]]:
        return list(search.ask(searched, sql).rows)

    assert ask("SELECT id FROM runs WHERE param_rate > 0.2") == [("bbbb",)]
    assert ask("SELECT test_roc_auc, kwh, param_net_size, param_on FROM runs WHERE id = 'aaaa'") == [
        (0.7, 0.5, "big", 1)
    ]
    assert ask("SELECT id, last_loss FROM runs ORDER BY at") == [("aaaa", 0.5), ("bbbb", None), ("cccc", 0.25)]
    assert ask("SELECT json_extract(params, '$.deep.a[0]') FROM runs WHERE id = 'aaaa'") == [(1,)]
    assert ask("SELECT value FROM params WHERE name IN ('rate', 'Rate') AND run = 'aaaa' ORDER BY value") == [
        (0.1,),
        (9,),
    ]
    assert ask("SELECT version FROM packages WHERE name = 'gone'") == [("1.0",)]
    assert ask("SELECT low FROM scores WHERE metric = 'roc_auc'")[0][0] == pytest.approx(0.6)
    assert ask("SELECT score_acc FROM runs WHERE id = 'bbbb'") == [(0.9,)]
    assert ask("SELECT source, version FROM data") == [("flights", "v1")]
    assert ask("SELECT min, points FROM final WHERE run = 'cccc'") == [(0.25, 1)], "a run at work is read"
    assert ask("SELECT key FROM runs, json_each(params) WHERE runs.id = 'bbbb' ORDER BY key") == [("note",), ("rate",)]
    assert {"param_rate", "param_rate_2"} <= set(search.described(searched)["runs"])
    assert search.where(searched, "model = 'late' -- a comment") == ["bbbb", "aaaa"]


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("SELECT param_rat FROM runs", "did you mean 'param_rate'?"),
        ("SELECT 1 FROM run", "expected a table of runs, got 'run'; did you mean 'runs'?"),
        ("SELECT body FROM record", "expected a table of runs, got 'record'"),
        ('SELECT id FROM runs WHERE "param_rat" = 1', "expected a column in double quotes, got 'param_rat'"),
        ("SELECT 1; SELECT 2", "expected one statement, got several"),
        ("SELEC 1", "expected SQL as SQLite speaks it"),
        ("", "expected a SELECT over runs"),
        ("DELETE FROM runs", "expected SQL that only reads runs"),
        ("UPDATE runs SET id = 1", "expected SQL that only reads runs"),
        ("DROP TABLE runs", "expected SQL that only reads runs"),
        ("PRAGMA writable_schema = 1", "expected SQL that only reads runs"),
        ("BEGIN", "expected SQL that only reads runs"),
        ("VACUUM INTO '/tmp/tenon-should-not-be'", "expected SQL that only reads runs"),
        ("ATTACH '/tmp/tenon-should-not-be' AS x", "expected SQL that only reads runs"),
        ("SELECT load_extension('x')", "expected SQL that only reads runs"),
        ("SELECT zeroblob(1000000000)", "string or blob too big"),
        ("SELECT a.id FROM runs a, packages b, packages c, packages d, packages e, packages f, packages g", "LIMIT"),
    ],
)
def test_what_is_wrong_or_not_reading_is_refused_in_words(searched: Store, sql: str, words: str) -> None:
    with pytest.raises(UsageError) as raised:
        search.ask(searched, sql)
    assert words in str(raised.value)
    assert not Path("/tmp/tenon-should-not-be").exists()
    assert len(search.ask(searched, "SELECT id FROM runs").rows) == 3


def test_a_search_without_end_is_ended(searched: Store) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    with pytest.raises(UsageError, match=r"at most 0\.2 s, got a longer one"):
        search.ask(searched, endless, limits=TrackLimits(search_s=0.2))


text = st.text(max_size=12)
value = st.none() | st.booleans() | st.integers() | st.floats() | text | st.lists(st.integers(), max_size=2)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(params=st.dictionaries(text, value, max_size=6), metrics=st.dictionaries(text, value, max_size=4), sql=text)
def test_any_record_and_any_question_are_answered_or_refused(
    store: Store, params: dict[str, Any], metrics: dict[str, Any], sql: str
) -> None:
    try:
        keep(store, "aaaa", params=params, metrics=metrics)
        keep(store, "bbbb", params=metrics, metrics={"test": params})
    except TenonError:
        return  # a body that is no JSON is refused by the store, not here
    assert len(search.ask(store, "SELECT * FROM runs, params, scores, final LIMIT 5").columns) > 20
    named = search.described(store)["runs"]
    assert len(named) == len({name.lower() for name in named}), "no two columns share a name"
    for name in named:
        search.ask(store, f"SELECT {name} FROM runs")
    assert change.between(store, "bbbb", "bbbb")["same"]
    change.between(store, "aaaa", "bbbb")
    for question in (sql, f"SELECT id FROM runs WHERE {sql}"):
        try:
            search.ask(store, question)
        except UsageError:
            continue

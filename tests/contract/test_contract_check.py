"""Checking a frame: good and bad rows in one pass, which rules each broke, percent against threshold, in words."""

from __future__ import annotations

import datetime as dt
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenon.contract import Column, Contract, Rule, Source, check, require
from tenon.errors import ConfigError, ContractError


def changed(rows: pl.DataFrame, name: str, values: list[Any]) -> pl.DataFrame:
    return rows.with_columns(pl.Series(name, values, dtype=rows.schema[name] if name in rows.columns else None))


def test_rows_that_keep_the_contract_are_all_good(rows: pl.DataFrame, contract: Contract) -> None:
    verdict = check(rows, contract)
    assert verdict.passed
    assert verdict.findings == ()
    assert verdict.good.equals(rows)
    assert verdict.bad.height == 0
    assert verdict.bad.columns == [*rows.columns, "_rules"]
    assert all(count.rows == 4 and not count.broken for count in verdict.counts.values())


@pytest.mark.parametrize(
    ("name", "values", "rule", "said"),
    [
        ("id", [1, 2, None, 4], "id/null", "1 of 4 rows (25 %) break id/null: expected a value in every row"),
        ("id", [0, 2, 3, 4], "id/between", "expected values from 1 to 1000000, got 0"),
        ("minutes", [1.0, -1.0, 2.0, 3.0], "minutes/between", "expected values from 0 to 600, got -1.0"),
        ("minutes", [1.0, math.nan, 2.0, 3.0], "minutes/finite", "expected finite numbers, got nan"),
        ("minutes", [1.0, math.inf, 2.0, 3.0], "minutes/finite", "expected finite numbers, got inf"),
        ("code", ["AB1", "AB12", None, "x"], "code/pattern", "got 'AB12', 'x'"),
        ("day", [dt.date(2014, 1, 1), None, None, None], "day/between", "got 2014-01-01"),
        ("id", [1, 1, 3, 4], "key", ""),
    ],
)
def test_a_row_at_fault_names_its_rule(
    rows: pl.DataFrame, contract: Contract, name: str, values: list[Any], rule: str, said: str
) -> None:
    frame = changed(rows, name, values).with_columns(at=pl.lit(dt.datetime(2013, 11, 1, 5)))
    verdict = check(frame, replace(contract, rules=()))
    assert verdict.good.height + verdict.bad.height == 4
    assert rule in {each for rules in verdict.bad["_rules"].to_list() for each in rules}
    assert not any(rule in rules for rules in verdict.good.with_columns(_rules=pl.lit([""]))["_rules"].to_list())
    found = next(finding for finding in verdict.findings if finding.place == f"trips/{rule}")
    assert said in found.said
    assert found.numbers["broken"] == verdict.counts[rule].broken
    assert found.hint


def test_every_row_of_a_repeated_key_is_at_fault() -> None:
    contract = Contract(name="c", columns=(Column("a", "int"), Column("b", "text")), key=("a", "b"))
    verdict = check(pl.DataFrame({"a": [1, 1, 1, 2], "b": ["x", "x", "y", None]}), contract)
    assert verdict.bad["_rules"].to_list() == [["key"], ["key"], ["b/null", "key"]]
    assert verdict.good.rows() == [(1, "y")]


def test_the_time_belongs_to_the_identity_of_a_row(rows: pl.DataFrame, contract: Contract) -> None:
    assert check(changed(rows, "id", [1, 1, 3, 4]), contract).passed
    same_time = rows.with_columns(at=pl.lit(dt.datetime(2013, 11, 1)), done=None)
    assert check(changed(same_time, "id", [1, 1, 3, 4]), contract).counts["key"].broken == 2


def test_a_missing_value_of_a_unique_column_is_no_repetition() -> None:
    contract = Contract(name="c", columns=(Column("a", "int", nullable=True, unique=True),))
    verdict = check(pl.DataFrame({"a": [None, None, 1, 2, 2]}), contract)
    assert verdict.counts["a/unique"].broken == 2
    assert verdict.good["a"].to_list() == [None, None, 1]


def test_a_row_rule_that_is_null_is_unknown_and_not_broken(rows: pl.DataFrame, contract: Contract) -> None:
    verdict = check(rows, contract)
    assert verdict.passed
    assert verdict.counts["rule/minutes > 0"].unknown == 1
    assert verdict.counts["rule/minutes > 0"].broken == 0


def test_a_threshold_lets_some_rows_fail_and_still_sets_them_aside() -> None:
    contract = Contract(name="c", columns=(Column("a", "int", between=(0, 9), threshold_pct=30),))
    few = check(pl.DataFrame({"a": [1, 2, 3, 10]}), contract)
    assert few.passed
    assert few.findings[0].severity == "info"
    assert "within its threshold of 30 %" in few.findings[0].said
    assert few.bad["a"].to_list() == [10]
    assert not check(pl.DataFrame({"a": [1, 2, 10, 10]}), contract).passed


def test_a_warning_is_told_and_moves_no_row(rows: pl.DataFrame, contract: Contract) -> None:
    verdict = check(changed(rows, "city", ["Bern", "Bern", "Basel", "Bern"]), contract)
    assert verdict.passed
    assert verdict.good.height == 4
    assert [(finding.severity, finding.code) for finding in verdict.findings] == [("warning", "contract/one-of")]


def test_raw_text_is_checked_before_the_cast(rows: pl.DataFrame, contract: Contract) -> None:
    text = pl.DataFrame(
        {
            "id": ["1", "2", " 3", "x"],
            "at": ["2013-11-01T05:00:00", "2013-11-01 06:00", "2013-11-01", "noon"],
            "done": ["NA", "", None, None],
            "minutes": ["1.5", "NA", "1e2", "1,5"],
            "city": ["Bern"] * 4,
            "code": ["AB1", "-", "CD2", "NA"],
            "paid": ["true", "no", "", "maybe"],
            "day": ["2013-11-01", "2013-02-30", None, "NA"],
        }
    )
    verdict = check(text, contract)
    assert verdict.good.schema == rows.schema
    assert verdict.good["minutes"].to_list() == [1.5]
    assert verdict.bad.select(text.columns).equals(text[1:]), "bad rows keep the text they came with"
    assert verdict.bad["_rules"].to_list() == [
        ["day/type"],
        ["id/type", "key"],  # a key that cannot be read is none
        ["id/type", "at/type", "minutes/type", "paid/type", "key"],
    ]
    assert "got ' 3', 'x'" in verdict.counts["id/type"].said


def test_wider_types_are_narrowed_where_nothing_is_lost() -> None:
    contract = Contract(
        name="c", columns=(Column("i", "int"), Column("f", "float"), Column("d", "date"), Column("t", "timestamp"))
    )
    frame = pl.DataFrame(
        {
            "i": [1.0, 1.5],
            "f": pl.Series([1, 2], dtype=pl.Int16),
            "d": [dt.datetime(2013, 1, 1), dt.datetime(2013, 1, 1, 5)],
            "t": [dt.date(2013, 1, 1), dt.date(2013, 1, 2)],
        }
    )
    verdict = check(frame, contract)
    assert verdict.bad["_rules"].to_list() == [["i/type", "d/type"]]
    assert verdict.good.row(0) == (1, 1.0, dt.date(2013, 1, 1), dt.datetime(2013, 1, 1))


def test_a_column_of_a_type_no_contract_has_is_at_fault_and_not_a_crash() -> None:
    contract = Contract(name="c", columns=(Column("i", "int", nullable=True),))
    verdict = check(pl.DataFrame({"i": [[1], None]}), contract)
    assert verdict.bad["_rules"].to_list() == [["i/type"]]


def test_a_column_that_did_not_come_is_said(rows: pl.DataFrame, contract: Contract) -> None:
    verdict = check(rows.drop("paid"), contract)
    assert verdict.passed
    assert verdict.good["paid"].to_list() == [None] * 4
    assert [(finding.code, finding.severity) for finding in verdict.findings] == [
        ("contract/missing-column", "warning")
    ]
    lost = check(rows.drop("id"), contract)
    assert not lost.passed
    assert lost.good.height == 0
    assert lost.bad.height == 4
    assert "id/missing" in lost.bad["_rules"][0].to_list()


def test_a_strict_contract_names_columns_it_does_not_know(rows: pl.DataFrame, contract: Contract) -> None:
    more = rows.with_columns(extra=1, another=2)
    assert check(more, contract).good.columns == more.columns
    verdict = check(more, replace(contract, strict=True))
    assert not verdict.passed
    assert verdict.good.columns == rows.columns
    assert "2 columns came that the contract does not name: 'another', 'extra'" in verdict.findings[0].said


def test_freshness_is_judged_when_the_time_is_given(rows: pl.DataFrame, contract: Contract) -> None:
    newest = dt.datetime(2013, 11, 1, 8, tzinfo=dt.UTC).timestamp()
    assert check(rows, contract).passed
    assert check(rows, contract, now=newest + 23 * 3600).passed
    stale = check(rows, contract, now=newest + 30 * 3600)
    assert [finding.code for finding in stale.findings] == ["contract/freshness"]
    assert "30.0 hours old; the contract allows 24h" in stale.findings[0].said


def test_an_empty_frame_keeps_every_contract(rows: pl.DataFrame, contract: Contract) -> None:
    verdict = check(rows.clear(), contract, now=0.0)
    assert verdict.passed
    assert verdict.good.height == verdict.bad.height == 0
    assert check(pl.DataFrame(), Contract(name="nothing")).passed


def test_require_is_the_door_that_raises(rows: pl.DataFrame, contract: Contract) -> None:
    assert require(rows, contract).equals(rows)
    with pytest.raises(ContractError) as raised:
        require(changed(rows, "id", [0, 2, 3, None]), contract)
    assert "expected rows that keep the contract 'trips', got 1 of 4 rows (25 %) break id/null" in str(raised.value)
    assert "at trips/id/null" in str(raised.value)


def test_a_rule_that_is_no_condition_is_a_mistake_of_the_contract(rows: pl.DataFrame) -> None:
    for rule, said in (
        ("minutes + 1", "a condition"),
        ("minuts > 0", "did you mean 'minutes'?"),
        ("1 +", "an SQL expr"),
    ):
        with pytest.raises(ConfigError, match="contract 't'") as refused:
            check(rows, Contract.of(Source("t", rules=[rule])))
        assert said in str(refused.value)


def test_a_pattern_polars_cannot_run_is_said_before_any_row_is_read() -> None:
    contract = Contract(name="c", columns=(Column("a", pattern="(?=x)x"),))
    with pytest.raises(ConfigError, match="a pattern Polars can run"):
        check(pl.DataFrame({"a": ["x"]}), contract)


def test_two_rules_of_one_text_are_counted_apart() -> None:
    contract = Contract(name="c", rules=(Rule(sql="a > 1"), Rule(sql="a  > 1", severity="warning")))
    assert set(check(pl.DataFrame({"a": [1]}), contract).counts) == {"rule/a > 1", "rule/a > 1 (2)"}


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (Column("a", "int", between=(9, 1)), "smaller first"),
        (Column("a", "date", between=("x", "y")), "two values of type date"),
        (Column("a", "int", between=("1", "2")), "two values of type int"),
        (Column("a", "text", between=(1, 2)), "two values of type text"),
        (Column("a", "bool", between=(0, 1)), "two values of type bool"),
        (Column("a", "text", pattern="("), "a regular expression"),
        (Column("a", "int", pattern="x"), "pattern= on text"),
        (Column("a", "text", one_of=()), "one_of= with values of type text, got nothing"),
        (Column("a", "text", one_of=(1,)), "one_of= with values of type text, got '1'"),
    ],
)
def test_what_no_value_could_keep_is_refused(column: Column, said: str) -> None:
    with pytest.raises(ConfigError, match="column 'a'") as refused:
        Contract(name="c", columns=(column,))
    assert said in str(refused.value)


def test_the_verdict_is_written_for_a_ci(rows: pl.DataFrame, contract: Contract) -> None:
    bad = changed(rows, "code", ["AB1", "\x1b[31m<b>\x00&", None, None])
    verdict = check(changed(bad, "city", ["Bern", "x", "y", "z"]), contract)
    suite = ElementTree.fromstring(verdict.to_junit())
    cases = {case.get("name"): case for case in suite}
    assert set(cases) == set(verdict.counts)
    assert suite.get("failures") == "1"
    failure = cases["code/pattern"].find("failure")
    assert failure is not None and "\\x1b[31m<b>\\x00&" in (failure.text or "")
    assert cases["city/one_of"].find("failure") is None
    assert cases["city/one_of"].find("system-out") is not None
    assert "\x1b" not in verdict.to_junit()


def test_hostile_names_make_no_broken_xml() -> None:
    contract = Contract(name='a"<\x00', columns=(Column('x"]]>\x1f', "int"),), rules=(Rule(sql="1 = 2", name="&<'"),))
    suite = ElementTree.fromstring(check(pl.DataFrame({'x"]]>\x1f': [1]}), contract).to_junit())
    assert len(list(suite)) == 2


def test_a_verdict_is_plain_data_too(rows: pl.DataFrame, contract: Contract) -> None:
    body = check(changed(rows, "id", [0, 2, 3, 4]), contract).to_dict()
    assert (body["rows"], body["good"], body["bad"], body["passed"]) == (4, 3, 1, False)
    assert body["findings"][0]["code"] == "contract/between"


values = st.none() | st.sampled_from([-1.0, 0.0, 5.0, 10.0, math.nan, math.inf])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(values, st.none() | st.sampled_from(["a", "b", "c"])), max_size=20))
def test_no_row_is_lost_and_each_is_judged_as_one_by_one(table: list[tuple[float | None, str | None]]) -> None:
    contract = Contract(
        name="c",
        columns=(Column("x", "float", nullable=True, between=(0, 9)), Column("s", "text", one_of=("a", "b"))),
        rules=(Rule(sql="x > 1 OR s = 'a'"),),
    )
    frame = pl.DataFrame(table, schema={"x": pl.Float64, "s": pl.String}, orient="row")
    verdict = check(frame, contract)

    def fine(x: float | None, s: str | None) -> bool:
        ruled = s == "a" or x is None or x > 1 or (s is None)
        return s in ("a", "b") and (x is None or (math.isfinite(x) and 0 <= x <= 9)) and ruled

    assert [fine(*row) for row in table].count(True) == verdict.good.height
    assert verdict.good.height + verdict.bad.height == len(table)
    assert all(len(rules) >= 1 for rules in verdict.bad["_rules"].to_list())


def test_many_rows_are_judged_as_a_few_at_a_time_are() -> None:
    """From 10,000 rows on whole columns and different values are asked first, which may change nothing."""
    rng = np.random.default_rng(5)
    n = 30_000
    words = ["AB", "CD", "EF", "gh", "I", ""]
    frame = pl.DataFrame(
        {
            "i": rng.integers(0, 30, n),
            "x": np.where(rng.random(n) < 0.001, np.nan, rng.normal(size=n)),
            "y": np.where(rng.random(n) < 0.001, np.inf, rng.normal(size=n)),
            "few": [word or None for word in rng.choice(words, n, p=[0.3, 0.3, 0.3, 0.01, 0.01, 0.08]).tolist()],
            "many": [f"{number:05d}" + ("x" if number % 997 == 0 else "") for number in rng.integers(0, 99_999, n)],
            "text": rng.choice(["1", "2.5", " ", "NA", "twelve", ""], n).tolist(),
            "clean": rng.integers(0, 9, n),
        }
    )
    agreed = Contract(
        name="t",
        columns=(
            Column("i", "int", between=(0.5, 28)),
            Column("x", "float", between=(-2, 2)),
            Column("y", "float", severity="warning"),
            Column("few", pattern="[A-Z]{2}"),
            Column("many", pattern="[0-9]{5}"),
            Column("text", "float", between=(0, 2)),
            Column("clean", "int", between=(0, 8)),
        ),
        rules=(Rule(sql="few <> 'AB' AND x < 1.9"),),
        null=("NA",),
    )
    whole, parts = check(frame, agreed), [check(part, agreed) for part in frame.iter_slices(3_000)]
    assert pl.concat([part.good for part in parts]).equals(whole.good)
    assert pl.concat([part.bad for part in parts]).equals(whole.bad)
    for rule, count in whole.counts.items():
        assert count.broken == sum(part.counts[rule].broken for part in parts), rule
        assert count.unknown == sum(part.counts[rule].unknown for part in parts), rule
    assert {rule for rule, count in whole.counts.items() if count.broken} == {
        "i/between", "x/finite", "x/between", "y/finite", "few/null", "few/pattern", "many/pattern", "text/type",
        "text/null", "text/between", "rule/few <> 'AB' AND x < 1.9",
    }  # fmt: skip

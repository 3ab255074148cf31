"""`tenon check` on files as they come: raw text is judged, read as the file writes it, and told for people and CI."""

from __future__ import annotations

import gzip
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from tenon.contract import Column, Contract, Rule
from tenon.errors import ConfigError, MissingError
from tenon.flow import single
from tenon.flow.check import Ask, Checked, check

ROWS = """id;code;age;amount;when;plan
1;007;34;1,50;05.01.2024;free
2;012;12a;2,75;06.01.2024;pro
3;13;NULL;1.003,00;27.02.2024;pro
4;044;45;-;31.02.2024;team
4;045;400;9,99;08.03.2024;Free
"""
AGREED = Contract(
    name="people",
    columns=(
        Column("id", "int", unique=True),
        Column("code", pattern="[0-9]{3}"),
        Column("age", "int", between=(0, 120), nullable=True),
        Column("amount", "float", unit="EUR", nullable=True),
        Column("when", "date"),
        Column("plan", one_of=("free", "pro", "team"), threshold_pct=25),
    ),
    rules=(Rule(sql="amount IS NULL OR amount < 1000", name="small"),),
    null=("-",),
)


def checked(tmp_path: Path, data: Path | list[Path], agreed: Contract = AGREED) -> tuple[Checked, pl.DataFrame]:
    (tmp_path / "c.yaml").write_text(agreed.to_odcs(), "utf-8")
    paths = [data] if isinstance(data, Path) else data
    asked = Ask(data=paths, contract=tmp_path / "c.yaml", good=tmp_path / "g.parquet", bad=tmp_path / "b.parquet")
    found = check(replace(asked, junit=tmp_path / "j.xml"))
    bad = pl.read_parquet(tmp_path / "b.parquet") if found.verdict.bad_rows else pl.DataFrame()
    return found, bad


def test_raw_text_is_judged_before_the_cast_and_read_as_the_file_writes_it(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(ROWS, "utf-8")
    found, bad = checked(tmp_path, tmp_path / "a.csv")
    assert bad["age"].to_list() == ["12a", "NULL", "45", "400"]
    assert bad["_rules"].to_list() == [
        ["age/type"],
        ["code/pattern", "rule/small"],
        ["id/unique", "when/type"],
        ["id/unique", "age/between", "plan/one_of"],
    ]
    good = pl.read_parquet(tmp_path / "g.parquet")
    assert good.rows()[0][:2] == (1, "007")  # a pattern sees leading zeros, a number is one
    assert good["amount"].to_list() == [1.5]
    assert "got '12a'" in found.verdict.counts["age/type"].said
    assert found.verdict.counts["plan/one_of"].broken_pct == 20
    assert not found.verdict.counts["plan/one_of"].exceeded
    assert not found.passed


def test_what_ingest_drafts_the_same_file_keeps(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(ROWS, "utf-8")
    done = single.read(single.Read(paths=(tmp_path / "a.csv",), out=tmp_path))
    draft = next(path for path in done.written if path.suffix == ".yaml")
    text = draft.read_text("utf-8")
    assert text.startswith("# A draft from 5 rows of a.csv")
    assert "read as missing: 'NULL'" in text and "read as missing: '-'" in text
    assert Contract.from_odcs(text).inferred
    assert check(Ask(data=[tmp_path / "a.csv"], contract=draft)).passed


def test_a_draft_looks_at_few_rows_where_they_are_large(tmp_path: Path) -> None:
    cell = "word " * 40_000
    (tmp_path / "a.csv").write_text("id,said\n" + "".join(f"{n},{cell}{n}\n" for n in range(900)), "utf-8")
    done = single.read(single.Read(paths=(tmp_path / "a.csv",), out=tmp_path))
    text = next(path for path in done.written if path.suffix == ".yaml").read_text("utf-8")
    rows = int(text.removeprefix("# A draft from the first ").split()[0])
    assert done.ingested.rows == 900 and 600 < rows < 700  # 128 MiB of them


def test_doubts_stand_as_comments_beside_their_column(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("id,day\n1,01/02/2024\n2,03/04/2024\n3,05/06/2024\n", "utf-8")
    single.read(single.Read(paths=(tmp_path / "d.csv",), out=tmp_path))
    lines = (tmp_path / "d.contract.yaml").read_text("utf-8").splitlines()
    at = lines.index("  - name: day")
    assert "%d/%m/%Y and %m/%d/%Y" in lines[at + 1]
    assert lines[at + 1].startswith("    # ")


def test_any_form_of_the_same_rows_is_judged_alike(tmp_path: Path) -> None:
    rows = pl.DataFrame({"id": ["1", "2", "x", "2"], "code": ["007", "01", "011", None]})
    agreed = Contract(name="t", columns=(Column("id", "int", unique=True), Column("code", pattern="[0-9]{3}")))
    broken = [["id/unique", "code/pattern"], ["id/type"], ["id/unique", "code/null"]]
    rows.write_csv(tmp_path / "pipe.csv", separator="|")
    rows.write_ndjson(tmp_path / "rows.jsonl")
    rows.write_parquet(tmp_path / "rows.parquet")
    (tmp_path / "utf16.txt").write_bytes(rows.write_csv(separator="\t").encode("utf-16"))
    (tmp_path / "packed.csv.gz").write_bytes(gzip.compress(rows.write_csv().encode()))
    (tmp_path / "many").mkdir()
    rows.head(1).write_csv(tmp_path / "many" / "1.csv")
    rows.tail(3).write_csv(tmp_path / "many" / "2.csv")
    for data in ("pipe.csv", "rows.jsonl", "rows.parquet", "utf16.txt", "packed.csv.gz", "many", "many/*.csv"):
        found, bad = checked(tmp_path, tmp_path / data, agreed)
        assert bad["_rules"].to_list() == broken, data
        assert (found.verdict.rows, found.unread) == (4, 0), data
    found, bad = checked(tmp_path, [tmp_path / "many" / "1.csv", tmp_path / "many" / "2.csv"], agreed)
    assert bad["_rules"].to_list() == broken


@pytest.mark.parametrize(
    ("cells", "kind", "values"),
    [
        (["$1,200.50", "$3.00", "soon"], "float", [1200.5, 3.0, None]),
        (["1.200,50", "3,25", "(4,00)"], "float", [1200.5, 3.25, -4.0]),
        (["12/31/2024", "02/01/2024", "31/12/2024"], "date", ["2024-12-31", "2024-02-01", None]),
        (["2024-01-05T10:00:00", "2024-01-05", "2024-01-05 10:00:00.5"], "timestamp", [10, 0, 10]),
        (["ja", "nein", "vielleicht"], "bool", [True, False, None]),
        (["1", "2", "3.5"], "int", [1, 2, None]),
    ],
)
def test_values_are_read_as_the_file_writes_them(
    tmp_path: Path, cells: list[str], kind: str, values: list[object]
) -> None:
    text = "\n".join(f'{number}|"{cells[number if number < 3 else number % 2]}"' for number in range(40))
    (tmp_path / "a.csv").write_text(f"n|v\n{text}\n", "utf-8")
    agreed = Contract(name="t", columns=(Column("v", kind, severity="warning"),))  # type: ignore[arg-type]
    found, _ = checked(tmp_path, tmp_path / "a.csv", agreed)
    good = pl.read_parquet(tmp_path / "g.parquet")["v"].head(3)
    told = good.dt.hour() if kind == "timestamp" else good.cast(pl.String) if kind == "date" else good
    assert told.to_list() == values
    assert found.verdict.counts["v/type"].broken == sum(value is None for value in values)


def test_a_stale_file_fails(tmp_path: Path) -> None:
    agreed = Contract(name="t", columns=(Column("at", "timestamp"),), time="at", freshness="24h")
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() - 3600))
    (tmp_path / "new.csv").write_text(f"at,n\n2013-01-01T00:00:00,1\n{moment},2\n", "utf-8")
    (tmp_path / "old.csv").write_text("at,n\n2013-01-01T00:00:00,1\n2013-01-02T00:00:00,2\n", "utf-8")
    assert checked(tmp_path, tmp_path / "new.csv", agreed)[0].passed
    stale, _ = checked(tmp_path, tmp_path / "old.csv", agreed)
    assert [finding.code for finding in stale.findings] == ["contract/freshness"]
    assert ElementTree.parse(tmp_path / "j.xml").getroot().get("failures") == "1"


def test_the_report_for_a_ci_is_what_a_ci_reads(tmp_path: Path) -> None:
    junitparser = pytest.importorskip("junitparser")
    (tmp_path / "a.csv").write_text(ROWS, "utf-8")
    found, _ = checked(tmp_path, tmp_path / "a.csv")
    suites = list(junitparser.JUnitXml.fromroot(ElementTree.parse(tmp_path / "j.xml").getroot()))
    cases = [case for suite in suites for case in suite] if isinstance(suites[0], junitparser.TestSuite) else suites
    assert len(cases) == len(found.verdict.counts)
    failed = {case.name for case in cases if any(isinstance(one, junitparser.Failure) for one in case.result)}
    assert failed == {rule for rule, count in found.verdict.counts.items() if count.exceeded}


def test_a_wrong_contract_is_refused_with_its_file_before_the_data_is_read(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "apiVersion: v3.1.0\nschema:\n- name: t\n  properties: [{name: x, logicalType: txt}]"
    )
    with pytest.raises(ConfigError, match=r"c\.yaml: expected a type of the standard, got 'txt'"):
        check(Ask(data=[tmp_path / "nothing.csv"], contract=tmp_path / "c.yaml"))
    for rule in ("x >", "hourr(x) > 1"):
        agreed = Contract(name="t", columns=(Column("x", "int"),), rules=(Rule(sql=rule),))
        with pytest.raises(ConfigError, match=r"c\.yaml: expected"):
            checked(tmp_path, tmp_path / "nothing.csv", agreed)
    with pytest.raises(MissingError, match=r"nothing\.csv"):
        checked(tmp_path, tmp_path / "nothing.csv")

"""Contracts in open formats: out and back with the same digest, valid by the published schemas, and files of others."""

from __future__ import annotations

import importlib.resources
import json
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tenon.contract import Column, Contract, Rule
from tenon.contract.column import ColumnType, Severity
from tenon.errors import ConfigError

names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=12)
words = st.text(max_size=20)
TYPES: list[ColumnType] = ["int", "float", "text", "bool", "date", "timestamp"]
SEVERITIES: list[Severity] = ["info", "warning", "error"]
severities = st.sampled_from(SEVERITIES)
percents = st.sampled_from([0.0, 0.5, 5, 100.0])


@st.composite
def columns(draw: st.DrawFn) -> Column:
    kind: ColumnType = draw(st.sampled_from(TYPES))
    body: dict[str, Any] = {}
    if kind in ("int", "float"):
        ends = st.integers(-1000, 1000) if kind == "int" else st.floats(-1000, 1000)
        body["between"] = draw(st.none() | st.lists(ends, min_size=2, max_size=2).map(lambda two: tuple(sorted(two))))
        body["one_of"] = draw(st.none() | st.lists(ends, min_size=1, max_size=3).map(tuple))
    elif kind == "text":
        body["one_of"] = draw(st.none() | st.lists(words, min_size=1, max_size=3).map(tuple))
        body["pattern"] = draw(st.sampled_from(["", "[A-Z]{2}", r"\d+: \"x\""]))
        body["between"] = draw(st.none() | st.just(("a", "b")))
    elif kind in ("date", "timestamp"):
        body["between"] = draw(st.none() | st.just(("2013-01-01", "2013-12-31")))
    looked_up = draw(st.booleans())
    return Column(
        draw(names),
        kind,
        unit=draw(st.sampled_from(["", "km"])),
        nullable=draw(st.booleans()),
        unique=draw(st.booleans()),
        derive=draw(words) or "x" if looked_up else draw(st.sampled_from(["", "a + 1", "-- odd\n1"])),
        of="airports" if looked_up else "",
        on="dest" if looked_up else "",
        late=draw(st.booleans()),
        severity=draw(severities),
        threshold_pct=draw(percents),
        description=draw(words),
        **body,
    )


@st.composite
def contracts(draw: st.DrawFn) -> Contract:
    drawn = draw(st.lists(columns(), max_size=4))
    found = tuple({column.name: column for column in drawn}.values())
    keyed, timed, known = (draw(st.booleans()) for _ in range(3))
    key = tuple(column.name for column in found[:2]) if keyed else ()
    rule = st.builds(
        lambda sql, name, severity, percent, said: Rule(
            sql=sql, name=name, severity=severity, threshold_pct=percent, description=said
        ),
        st.sampled_from(["a > 1", "x = ')'", "a > 1 -- why"]),
        words,
        severities,
        percents,
        words,
    )
    return Contract(
        name=draw(names),
        columns=found,
        key=key,
        time=found[0].name if found and timed else "",
        known=found[-1].name if found and known else "",
        rules=tuple(draw(st.lists(rule, max_size=2))),
        null=tuple(draw(st.lists(words, max_size=2))),
        strict=draw(st.booleans()),
        freshness=draw(st.sampled_from(["", "24h", "1.5d"])),
        key_severity=draw(severities) if key else "error",
        key_threshold_pct=draw(percents) if key else 0.0,
        inferred=draw(st.booleans()),
        version=draw(st.sampled_from(["1.0.0", "2"])),
        description=draw(words),
    )


@settings(max_examples=150, deadline=None)
@given(contracts())
def test_a_contract_comes_back_from_every_format_with_its_digest(contract: Contract) -> None:
    for back in (
        Contract.from_dict(json.loads(json.dumps(contract.to_dict()))),
        Contract.from_odcs(contract.to_odcs()),
        Contract.from_frictionless(json.loads(json.dumps(contract.to_frictionless())), contract.name),
    ):
        assert back.digest == contract.digest
        assert back.unread == ()


def test_a_contract_and_its_source_are_two_views_of_one_thing(contract: Contract) -> None:
    assert Contract.of(contract.source("trips.csv")).digest == contract.digest


def test_the_digest_changes_with_every_word(contract: Contract) -> None:
    others = [
        replace(contract, strict=True),
        replace(contract, null=("NA",)),
        replace(contract, rules=contract.rules[:1]),
        replace(contract, columns=contract.columns[1:]),
        replace(contract, key=()),
        replace(contract, inferred=True),
    ]
    assert len({each.digest for each in (contract, *others)}) == 7
    assert replace(contract, unread=("x",)).digest == contract.digest


@settings(max_examples=25, deadline=None)
@given(contracts())
def test_the_yaml_is_valid_by_the_published_schema_of_odcs(contract: Contract) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    package = pytest.importorskip("open_data_contract_standard")
    schema = json.loads((importlib.resources.files(package) / "schema.json").read_text("utf-8"))
    assert "v3.1.0" in schema["properties"]["apiVersion"]["enum"]
    jsonschema.Draft201909Validator(schema).validate(yaml.safe_load(contract.to_odcs()))


FOREIGN = """
apiVersion: v3.0.2
kind: DataContract
id: 53581432-6c55-4ba2-a65f-72344a91553a
version: 1.1.0
status: active
team: [{username: ceastwood, role: Data Scientist}]
description: {purpose: Payments., usage: Sparingly.}
schema:
- name: payments
  physicalName: tbl_1
  properties:
  - name: id
    logicalType: integer
    primaryKey: true
    primaryKeyPosition: 1
    required: true
    logicalTypeOptions: {exclusiveMinimum: 0}
  - name: country
    logicalType: string
    logicalTypeOptions: {minLength: 2, maxLength: 2}
    quality:
    - {type: library, metric: nullValues, mustBe: 0}
    - {type: library, metric: invalidValues, arguments: {validValues: [CH, DE]}, mustBeLessOrEqualTo: 5, unit: percent}
  - name: amount
    logicalType: number
    classification: restricted
    logicalTypeOptions: {minimum: 0, maximum: 100}
  - {name: tags, logicalType: array}
  - {name: paid on, logicalType: date, logicalTypeOptions: {minimum: 2020-01-01}}
  quality:
  - {type: sql, query: "SELECT COUNT(*) FROM payments WHERE NOT (amount > id)", mustBe: 0, severity: warning}
  - {type: custom, engine: soda, implementation: x}
slaProperties:
- {property: freshness, value: 4, unit: d}
- {property: retention, value: 3, unit: y}
"""


def test_a_contract_of_others_is_read_as_far_as_it_goes_and_the_rest_is_named() -> None:
    found = Contract.from_odcs(FOREIGN)
    assert found.key == ("id",)
    assert found.freshness == "4d"
    country = found.column("country")
    assert country is not None
    assert (country.one_of, country.threshold_pct, country.nullable) == (("CH", "DE"), 5.0, False)
    assert {rule.sql: rule.severity for rule in found.rules} == {
        '"id" > 0': "error",
        'length("country") >= 2': "error",
        'length("country") <= 2': "error",
        "\"paid on\" >= '2020-01-01'": "error",
        "amount > id": "warning",
    }
    assert set(found.unread) == {
        "$.team",
        "$.schema.payments.amount.classification",
        "$.schema.payments.tags.logicalType: array",
        "$.schema.payments.quality[1]",
        "$.slaProperties[1]",
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "expected YAML"),
        ("- 1", "a data contract of ODCS v3, got list"),
        ("apiVersion: v2.2.2", "apiVersion 'v2.2.2'"),
        ("apiVersion: v3.1.0", "one table in the contract, got 0"),
        ("apiVersion: v3.1.0\nschema: 7", "a list of mappings, got int - at $.schema"),
        ("apiVersion: v3.1.0\nschema: [{name: a}, {name: b}]", "name one: a, b"),
        ("apiVersion: v3.1.0\nschema: [{name: a, properties: [{logicalType: string}]}]", "a column with a name"),
        ("!!python/object/apply:os.system ['true']", "expected YAML"),
    ],
)
def test_what_is_no_contract_is_refused_in_words(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Contract.from_odcs(text)
    assert said in str(refused.value)


def test_one_of_several_tables_is_picked_by_name() -> None:
    text = "apiVersion: v3.1.0\nschema: [{name: a}, {name: b, properties: [{name: x}]}]"
    assert Contract.from_odcs(text, "b").column("x") is not None
    with pytest.raises(ConfigError, match="a table of the contract, got 'c'"):
        Contract.from_odcs(text, "c")


def test_a_table_schema_of_others_is_read() -> None:
    body = {
        "fields": [
            {"name": "id", "type": "integer", "constraints": {"required": True, "minimum": 1}},
            {"name": "x", "type": "number", "constraints": {"minimum": 0, "maximum": 9}},
            {"name": "s", "constraints": {"enum": ["a"], "maxLength": 3}},
            {"name": "where", "type": "geopoint", "format": "array"},
        ],
        "primaryKey": "id",
        "missingValues": ["", "NA"],
    }
    found = Contract.from_frictionless(body, "t")
    assert found.key == ("id",)
    assert found.null == ("NA",)
    assert [column.nullable for column in found.columns] == [False, True, True, True]
    assert {rule.sql for rule in found.rules} == {'"id" >= 1', 'length("s") <= 3'}
    assert found.unread == ("$.fields.where.type: geopoint", "$.fields.where.format: array")
    with pytest.raises(ConfigError, match="fields, each with a name"):
        Contract.from_frictionless({"fields": [{}]}, "t")


def test_a_written_table_schema_is_one_by_its_standard(contract: Contract) -> None:
    frictionless = pytest.importorskip("frictionless")
    schema = frictionless.Schema.from_descriptor(contract.to_frictionless())
    assert schema.field_names == [column.name for column in contract.columns]

"""Contracts as Frictionless Table Schema (https://datapackage.org/standard/table-schema), out and back.

Table Schema has words for names, types, required, unique, minimum, maximum, enum, pattern, the primary key and the
words that mean missing. What a Contract says beyond that (rules, thresholds, units, derived columns, times) is
written under the key "tenon", which the standard allows and other readers pass over; so a contract comes back with
its digest.

From a schema written by others, constraints that a column cannot hold (a bound on one side, lengths) become row rules,
and types that tenon does not have are read as text and named in `Contract.unread`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tenon.contract.agreement import Contract, Rule, column_from
from tenon.contract.column import Column, ColumnType
from tenon.errors import ConfigError, sentence

PROFILE = "https://datapackage.org/profiles/2.0/tableschema.json"
_OUT = {
    "int": "integer",
    "float": "number",
    "text": "string",
    "bool": "boolean",
    "date": "date",
    "timestamp": "datetime",
}
_IN: dict[str, ColumnType] = {
    "integer": "int",
    "number": "float",
    "string": "text",
    "boolean": "bool",
    "date": "date",
    "datetime": "timestamp",
    "year": "int",
    "any": "text",
}


def to_frictionless(contract: Contract) -> dict[str, Any]:
    """Write the contract as a Table Schema descriptor (plain data, for JSON)."""
    whole = contract.to_dict()
    fields = []
    for column, said in zip(contract.columns, whole.pop("columns"), strict=True):
        constraints: dict[str, Any] = {}
        if not column.nullable:
            constraints["required"] = True
        if column.unique:
            constraints["unique"] = True
        if column.between is not None and column.type != "text":
            constraints["minimum"], constraints["maximum"] = column.between
        if column.one_of is not None:
            constraints["enum"] = list(column.one_of)
        if column.pattern:
            constraints["pattern"] = column.pattern
        field: dict[str, Any] = {"name": column.name, "type": _OUT[column.type]}
        if column.description:
            field["description"] = column.description
        if constraints:
            field["constraints"] = constraints
        fields.append({**field, "tenon": said})
    body: dict[str, Any] = {"$schema": PROFILE, "fields": fields}
    if contract.key:
        body["primaryKey"] = list(contract.identity)
    if contract.null:
        body["missingValues"] = ["", *contract.null]
    return {**body, "tenon": whole}


def from_frictionless(body: Mapping[str, Any], name: str) -> Contract:
    """Read a Table Schema descriptor; ConfigError says where it is not one."""
    fields = body.get("fields")
    if not isinstance(fields, list) or not all(isinstance(field, dict) and field.get("name") for field in fields):
        raise ConfigError(
            sentence("fields, each with a name", repr(fields)[:60], at=f"table schema of '{name}': $.fields")
        )
    own = body.get("tenon")
    if isinstance(own, dict) and all(isinstance(field.get("tenon"), dict) for field in fields):
        return Contract.from_dict({**own, "columns": [field["tenon"] for field in fields]})
    rules: list[Rule] = []
    unread: list[str] = []
    columns = tuple(_column(field, rules, unread) for field in fields)
    key = body.get("primaryKey") or []
    missing = body.get("missingValues") or [""]
    words = [str(each.get("value", "")) if isinstance(each, dict) else str(each) for each in missing]
    if body.get("foreignKeys"):
        unread.append("$.foreignKeys")
    return Contract(
        name=name,
        columns=columns,
        key=(key,) if isinstance(key, str) else tuple(key),
        rules=tuple(rules),
        null=tuple(word for word in words if word),
        unread=tuple(unread),
    )


def _column(field: Mapping[str, Any], rules: list[Rule], unread: list[str]) -> Column:
    name, said = str(field["name"]), str(field.get("type", "string"))
    kind = _IN.get(said)
    if kind is None:
        unread.append(f"$.fields.{name}.type: {said}")
        kind = "text"
    given = dict(field.get("constraints") or {})
    body: dict[str, Any] = {"name": name, "type": kind, "description": str(field.get("description", ""))}
    body["nullable"] = not given.pop("required", False)
    body["unique"] = bool(given.pop("unique", False))
    if "enum" in given:
        body["one_of"] = given.pop("enum")
    if kind == "text" and "pattern" in given:
        body["pattern"] = given.pop("pattern")
    if kind != "text" and "minimum" in given and "maximum" in given:
        body["between"] = (given.pop("minimum"), given.pop("maximum"))
    told = '"' + name.replace('"', '""') + '"'
    signs = {"minimum": ">=", "maximum": "<=", "exclusiveMinimum": ">", "exclusiveMaximum": "<"}
    for key, value in given.items():
        literal = str(value) if isinstance(value, int | float) else "'" + str(value).replace("'", "''") + "'"
        if key in signs:
            rules.append(Rule(sql=f"{told} {signs[key]} {literal}"))
        elif key in ("minLength", "maxLength"):
            rules.append(Rule(sql=f"length({told}) {'>=' if key == 'minLength' else '<='} {int(value)}"))
        else:
            unread.append(f"$.fields.{name}.constraints.{key}")
    column = column_from(body)
    if field.get("format", "default") not in ("default", "any"):
        unread.append(f"$.fields.{name}.format: {field['format']}")
    return replace(column, description=column.description or str(field.get("title", "")))

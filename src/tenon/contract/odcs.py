"""Contracts as YAML of the Open Data Contract Standard 3.1 (https://bitol.io), out and back without loss.

What the standard has a word for is written in that word, so that other tools understand it: types, required, unique,
primary key, minimum and maximum, patterns, valid values, row rules as SQL that counts the rows breaking them,
thresholds, the transform of derived columns, freshness as a service level. What it has no word for (a unit, a late
column, the two times) goes into `customProperties`, its place for such things. Reading back gives the same digest.

A file written by others is read as far as a Contract can hold it: bounds that exclude their end, lengths and multiples
become row rules; everything else is named in `Contract.unread`, so that a person sees what is not being checked.

The words are those of the published JSON Schema, odcs-json-schema-v3.1.0; a test validates against it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from tenon.contract.agreement import Contract, Rule
from tenon.contract.column import Column, ColumnType, Severity
from tenon.errors import ConfigError, nearest, sentence

VERSION = "v3.1.0"
MAX_BYTES = 4 * 1024 * 1024
MAX_VALUES = 500_000
_MEND = "mend the file"
_LOGICAL = {
    "int": "integer",
    "float": "number",
    "text": "string",
    "bool": "boolean",
    "date": "date",
    "timestamp": "timestamp",
}
_TYPES: dict[str, ColumnType] = {
    "integer": "int",
    "number": "float",
    "string": "text",
    "boolean": "bool",
    "date": "date",
    "timestamp": "timestamp",
}
_SLA_UNITS = {"s": "s", "m": "min", "h": "h", "d": "d", "w": "wk"}
_SLA_WORDS = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), "s"),
    **dict.fromkeys(("m", "min", "minute", "minutes"), "m"),
    **dict.fromkeys(("h", "hr", "hour", "hours"), "h"),
    **dict.fromkeys(("d", "day", "days"), "d"),
    **dict.fromkeys(("w", "wk", "week", "weeks"), "w"),
}


# ── out ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def to_odcs(contract: Contract, notes: Mapping[str, Sequence[str]] | None = None) -> str:
    """Write the contract as ODCS 3.1 YAML; `notes` by column ("" for the whole) become comments for who reviews it."""
    body: dict[str, Any] = {
        "apiVersion": VERSION,
        "kind": "DataContract",
        "id": contract.name,
        "name": contract.name,
        "version": contract.version,
        "status": "draft" if contract.inferred else "active",
    }
    if contract.description:
        body["description"] = {"purpose": contract.description}
    table: dict[str, Any] = {"name": contract.name, "logicalType": "object"}
    table["properties"] = [_property(contract, column) for column in contract.columns]
    quality = [_rule(contract.name, rule) for rule in contract.rules]
    if contract.key:
        quality.append(_key(contract))
    if quality:
        table["quality"] = quality
    body["schema"] = [table]
    if contract.freshness:
        number, unit = contract.freshness.strip()[:-1].strip(), contract.freshness.strip()[-1]
        element = f"{contract.name}.{contract.known or contract.time}".rstrip(".")
        body["slaProperties"] = [
            {"property": "freshness", "value": _number(number), "unit": _SLA_UNITS[unit], "element": element}
        ]
    custom = {
        "time": contract.time,
        "known": contract.known,
        "null": list(contract.null),
        "strict": contract.strict,
        "inferred": contract.inferred,
    }
    extra = _custom({name: value for name, value in custom.items() if value})
    if extra:
        body["customProperties"] = extra
    text: str = yaml.dump(body, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return _noted(text, contract, notes) if notes else text


def _noted(text: str, contract: Contract, notes: Mapping[str, Sequence[str]]) -> str:
    """Put notes above the file and below the names of their columns, as comments of one line each."""
    lines = [f"# {_comment(note)}" for note in notes.get("", ())]
    waiting = iter(contract.columns)
    inside = False
    for line in text.removesuffix("\n").split("\n"):
        lines.append(line)
        inside = line == "  properties:" or (inside and line.startswith(("  -", "   ")))
        if inside and line.startswith("  - name:"):
            lines += [f"    # {_comment(note)}" for note in notes.get(next(waiting).name, ())]
    return "\n".join(lines) + "\n"


def _comment(text: str) -> str:
    """Leave nothing in a comment that could end it."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def _text(dumper: Any, text: str) -> Any:
    odd = any(sign in text for sign in "\x85\u2028\u2029\ufeff")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if odd else None)


# PyYAML's writer, but for text with signs that it would write plain and read back as line ends.
_Dumper: Any = type("_Dumper", (yaml.SafeDumper,), {})
_Dumper.add_representer(str, _text)


def _property(contract: Contract, column: Column) -> dict[str, Any]:
    body: dict[str, Any] = {"name": column.name, "logicalType": _LOGICAL[column.type]}
    if column.description:
        body["description"] = column.description
    body["required"] = not column.nullable
    if column.unique:
        body["unique"] = True
    if column.name in contract.key:
        body["primaryKey"] = True
        body["primaryKeyPosition"] = contract.key.index(column.name) + 1
    options: dict[str, Any] = {}
    custom: dict[str, Any] = {"unit": column.unit, "late": column.late, "on": column.on}
    if column.between is not None:
        if column.type == "text":
            custom["between"] = list(column.between)
        else:
            options["minimum"], options["maximum"] = column.between
    if column.pattern:
        options["pattern"] = column.pattern
    if options:
        body["logicalTypeOptions"] = options
    if column.derive:
        body["transformLogic"] = column.derive
    if column.of:
        body["transformSourceObjects"] = [column.of]
    if column.one_of is not None or column.severity != "error" or column.threshold_pct:
        check: dict[str, Any] = {"type": "library", "metric": "invalidValues", "name": f"{column.name} is valid"}
        if column.one_of is not None:
            check["arguments"] = {"validValues": list(column.one_of)}
        body["quality"] = [check | _limit(column.threshold_pct, column.severity)]
    extra = _custom({name: value for name, value in custom.items() if value})
    if extra:
        body["customProperties"] = extra
    return body


def _rule(table: str, rule: Rule) -> dict[str, Any]:
    body: dict[str, Any] = {"type": "sql", "name": rule.label}
    if rule.description:
        body["description"] = rule.description
    end = "\n" if "--" in rule.sql else ""  # a comment in the rule must not swallow the bracket after it
    body["query"] = f'SELECT COUNT(*) FROM "{table}" WHERE NOT ({rule.sql}{end})'
    custom: dict[str, Any] = {"rule": rule.sql} | ({"name": rule.name} if rule.name else {})
    return body | _limit(rule.threshold_pct, rule.severity) | {"customProperties": _custom(custom)}


def _key(contract: Contract) -> dict[str, Any]:
    body: dict[str, Any] = {"type": "library", "metric": "duplicateValues", "name": "key"}
    body["arguments"] = {"properties": list(contract.identity)}
    return body | _limit(contract.key_threshold_pct, contract.key_severity)


def _limit(threshold_pct: float, severity: str) -> dict[str, Any]:
    bound = (
        {"mustBeLessOrEqualTo": threshold_pct, "unit": "percent"} if threshold_pct else {"mustBe": 0, "unit": "rows"}
    )
    return {**bound, "severity": severity}


def _custom(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"property": name, "value": value} for name, value in values.items()]


def _number(text: str) -> int | float:
    return float(text) if "." in text else int(text)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# ── back ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def from_odcs(text: str, schema: str = "") -> Contract:
    """Read ODCS 3 YAML; ConfigError says what is not there or not of the right shape."""
    if len(text) > MAX_BYTES:
        raise ConfigError(sentence(f"a contract of at most {MAX_BYTES:,} characters", f"{len(text):,}", at="ODCS file"))
    body = _load(text)
    if not isinstance(body, dict) or not str(body.get("apiVersion", "")).startswith("v3."):
        got = f"apiVersion '{body.get('apiVersion', '')}'" if isinstance(body, dict) else type(body).__name__
        raise ConfigError(sentence("a data contract of ODCS v3", got, at="ODCS file", hint="see https://bitol.io"))
    reader = _Reader()
    tables = {str(table.get("name", "")): table for table in reader.maps(body, "schema", "$")}
    if schema and schema not in tables:
        raise ConfigError(
            sentence("a table of the contract", f"'{schema}'", at="$.schema", hint=nearest(schema, tables))
        )
    if not schema and len(tables) != 1:
        hint = f"name one: {', '.join(tables)}" if tables else "add a schema"
        raise ConfigError(sentence("one table in the contract", f"{len(tables)}", at="$.schema", hint=hint))
    name, table = (schema, tables[schema]) if schema else next(iter(tables.items()))
    return reader.contract(body, name, table)


def _load(text: str) -> Any:
    """Read YAML of plain data; what would unfold to far more than is written, or never end, is refused."""
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        values = _unfolded(node, {}) if node is not None else 0
        if values > MAX_VALUES:
            got = "one that refers to itself" if values == float("inf") else f"{values:,.0f} once aliases are unfolded"
            raise ConfigError(sentence(f"a contract of at most {MAX_VALUES:,} values", got, at="ODCS file"))
        return loader.construct_document(node) if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"ODCS file, line {mark.line + 1}, column {mark.column + 1}" if mark else "ODCS file"
        raise ConfigError(sentence("YAML", error.problem or error.context or "none", at=at, hint=_MEND)) from error
    except RecursionError as error:
        raise ConfigError(sentence("YAML", "values nested too deeply", at="ODCS file", hint=_MEND)) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ConfigError(sentence("YAML", str(error).splitlines()[0], at="ODCS file", hint=_MEND)) from error
    finally:
        if loader is not None:
            loader.dispose()


def _unfolded(node: Any, known: dict[int, float]) -> float:
    """Count the values below a node as often as they are referred to; infinite where a node is part of itself."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = float("inf")
    below = (
        [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode)
        else node.value if isinstance(node, yaml.SequenceNode) else []
    )  # fmt: skip
    known[id(node)] = 1 + sum(_unfolded(each, known) for each in below)
    return known[id(node)]


class _Reader:
    """Reads plain YAML data into a Contract, keeping a list of what it could not hold."""

    def __init__(self) -> None:
        self.unread: list[str] = []
        self.rules: list[Rule] = []

    def contract(self, body: Mapping[str, Any], name: str, table: Mapping[str, Any]) -> Contract:
        custom = self.custom(body, "$")
        place = f"$.schema.{name}"
        columns, positions = [], {}
        for number, each in enumerate(self.maps(table, "properties", place)):
            column = self.column(each, f"{place}.{each.get('name', number)}")
            columns.append(column)
            if self.flag(each, "primaryKey", place):
                position = each.get("primaryKeyPosition")
                positions[column.name] = position if isinstance(position, int) and position > 0 else number + 1
        bounds = list(self.rules)
        self.rules.clear()
        limit: dict[str, Any] = {}
        for number, check in enumerate(self.maps(table, "quality", place)):
            arguments = self.map(check, "arguments", f"{place}.quality[{number}]")
            if check.get("metric") == "duplicateValues" and isinstance(arguments.get("properties"), list):
                limit = self.limit(check, f"{place}.quality[{number}]")
                positions = positions or {str(each): i for i, each in enumerate(arguments["properties"])}
            else:
                self.row_rule(check, f"{place}.quality[{number}]")
        self.note(body, "$", _TOP)
        self.note(table, place, {"name", "logicalType", "physicalType", "physicalName", "properties", "quality"})
        said = body.get("description")
        null = tuple(str(word) for word in self.list(custom, "null", "$.customProperties")) if "null" in custom else ()
        custom.pop("null", None)
        return Contract(
            name=name,
            columns=tuple(columns),
            key=tuple(sorted(positions, key=lambda each: positions[each])),
            time=str(custom.pop("time", "")),
            known=str(custom.pop("known", "")),
            rules=(*self.rules, *bounds),
            null=null,
            strict=bool(custom.pop("strict", False)),
            freshness=self.freshness(body),
            key_severity=limit.get("severity", "error"),
            key_threshold_pct=limit.get("threshold_pct", 0.0),
            inferred=bool(custom.pop("inferred", False)),
            version=str(body.get("version", "1.0.0")),
            description=str(said.get("purpose", "") if isinstance(said, dict) else said or ""),
            unread=(*self.unread, *(f"$.customProperties.{name}" for name in custom)),
        )

    def column(self, body: Mapping[str, Any], place: str) -> Column:
        name, logical = body.get("name"), body.get("logicalType", "string")
        if not isinstance(name, str) or not name:
            raise ConfigError(sentence("a column with a name", repr(name), at=place, hint="add name:"))
        kind = _TYPES.get(str(logical))
        if kind is None:
            if logical not in _OTHER_TYPES:
                hint = nearest(str(logical), [*_TYPES, *_OTHER_TYPES])
                raise ConfigError(
                    sentence("a type of the standard", f"'{logical}'", at=f"{place}.logicalType", hint=hint)
                )
            self.unread.append(f"{place}.logicalType: {logical}")
            kind = "text"
        custom = self.custom(body, place)
        limits = self.limits(self.map(body, "logicalTypeOptions", place), name, kind, place)
        one_of, limit = None, {}
        nullable, unique = not self.flag(body, "required", place), self.flag(body, "unique", place)
        for number, check in enumerate(self.maps(body, "quality", place)):
            at = f"{place}.quality[{number}]"
            arguments = self.map(check, "arguments", at)
            metric = check.get("metric") or check.get("rule")
            if metric == "invalidValues" and set(arguments) <= {"validValues", "pattern"}:
                one_of = (
                    self.list(arguments, "validValues", f"{at}.arguments") if "validValues" in arguments else one_of
                )
                limits["pattern"] = arguments.get("pattern") or limits.get("pattern", "")
                limit = self.limit(check, at)
            elif metric == "nullValues" and check.get("mustBe") == 0:
                nullable = False
            elif metric == "duplicateValues" and check.get("mustBe") == 0:
                unique = True
            else:
                self.row_rule(check, at)
        sources = body.get("transformSourceObjects") or []
        self.note(body, place, _PROPERTY)
        self.unread += [f"{place}.customProperties.{key}" for key in custom.keys() - {"unit", "late", "on", "between"}]
        between = limits.get("between") or (self.list(custom, "between", place) if "between" in custom else None)
        return Column(
            name,
            kind,
            unit=str(custom.get("unit", "")),
            nullable=nullable,
            between=between,
            one_of=one_of,
            pattern=limits.get("pattern", ""),
            unique=unique,
            derive=str(body.get("transformLogic", "")),
            of=str(sources[0]) if sources and custom.get("on") else "",
            on=str(custom.get("on", "")),
            late=bool(custom.get("late", False)),
            description=str(body.get("description", "")),
            **limit,
        )

    def limits(self, options: Mapping[str, Any], name: str, kind: str, place: str) -> dict[str, Any]:
        """Read bounds; what a column cannot hold becomes a row rule, and what no rule can is noted."""
        found: dict[str, Any] = {"pattern": str(options.get("pattern", ""))}
        low, high = options.get("minimum"), options.get("maximum")
        told = '"' + name.replace('"', '""') + '"'
        if low is not None and high is not None:
            found["between"] = (low, high) if kind in ("int", "float") else (str(low), str(high))
        else:
            options = {**options, **({"at least": low} if low is not None else {})}
            options = {**options, **({"at most": high} if high is not None else {})}
        signs = {"exclusiveMinimum": ">", "exclusiveMaximum": "<", "at least": ">=", "at most": "<="}
        for key, value in options.items():
            said = str(value) if kind in ("int", "float") else "'" + str(value).replace("'", "''") + "'"
            if key in signs:
                self.rules.append(Rule(sql=f"{told} {signs[key]} {said}"))
            elif key in ("minLength", "maxLength", "multipleOf") and not _is_number(value):
                at = f"{place}.logicalTypeOptions.{key}"
                raise ConfigError(sentence("a number", repr(value)[:60], at=at, hint="write it without quotes"))
            elif key in ("minLength", "maxLength"):
                self.rules.append(Rule(sql=f"length({told}) {'>=' if key == 'minLength' else '<='} {value}"))
            elif key == "multipleOf":
                self.rules.append(Rule(sql=f"mod({told}, {value}) = 0"))
            elif key not in ("minimum", "maximum", "pattern"):
                self.unread.append(f"{place}.logicalTypeOptions.{key}")
        return found

    def row_rule(self, check: Mapping[str, Any], place: str) -> None:
        custom = self.custom(check, place)
        query = _COUNTS.fullmatch(str(check.get("query", "")))
        said = custom.get("rule") or (query[1].strip() if query else "")
        if not said:
            self.unread.append(place)
            return
        self.rules.append(
            Rule(
                sql=str(said),
                name=str(custom.get("name", "")),
                description=str(check.get("description", "")),
                **self.limit(check, place),
            )
        )

    def limit(self, check: Mapping[str, Any], place: str) -> dict[str, Any]:
        """Read severity and threshold of one check."""
        severity = str(check.get("severity", "error")).lower()
        if severity not in _SEVERITIES:
            self.unread.append(f"{place}.severity: {severity} ({nearest(severity, _SEVERITIES)})")
        threshold = check.get("mustBeLessOrEqualTo", check.get("mustBe", 0))
        percent = check.get("unit") in ("percent", "%")
        if threshold and not (percent and isinstance(threshold, int | float)):
            self.unread.append(f"{place}: a limit of {threshold} {check.get('unit', 'rows')}")
            threshold = 0.0
        if threshold and not 0 <= threshold <= 100:
            raise ConfigError(sentence("a limit from 0 to 100 percent", f"{threshold}", at=place))
        return {"severity": _SEVERITIES.get(severity, "error"), "threshold_pct": float(threshold or 0.0)}

    def freshness(self, body: Mapping[str, Any]) -> str:
        found = ""
        for number, each in enumerate(self.maps(body, "slaProperties", "$")):
            unit = _SLA_WORDS.get(str(each.get("unit", "")))
            if each.get("property") == "freshness" and unit is not None and not found:
                found = f"{each.get('value')}{unit}"
            else:
                self.unread.append(f"$.slaProperties[{number}]")
        return found

    def flag(self, body: Mapping[str, Any], key: str, place: str) -> bool:
        """Return true or false (left out), or say where it is neither: the text "no" is not false."""
        found = body.get(key)
        if found is not None and not isinstance(found, bool):
            raise ConfigError(sentence("true or false", repr(found)[:60], at=f"{place}.{key}", hint="without quotes"))
        return bool(found)

    def map(self, body: Mapping[str, Any], key: str, place: str) -> Mapping[str, Any]:
        """Return a mapping (left out: an empty one), or say where it is none."""
        found = body.get(key) or {}
        if not isinstance(found, dict):
            raise ConfigError(sentence("a mapping", repr(found)[:60], at=f"{place}.{key}"))
        return found

    def list(self, body: Mapping[str, Any], key: str, place: str) -> tuple[Any, ...]:
        """Return a list as a tuple, or say where it is none."""
        found = body.get(key)
        if not isinstance(found, list):
            raise ConfigError(sentence("a list", repr(found)[:60], at=f"{place}.{key}"))
        return tuple(found)

    def maps(self, body: Mapping[str, Any], key: str, place: str) -> Sequence[dict[str, Any]]:
        """Return a list of mappings, or say where it is not one."""
        found = body.get(key) or []
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            raise ConfigError(sentence("a list of mappings", type(found).__name__, at=f"{place}.{key}"))
        return found

    def custom(self, body: Mapping[str, Any], place: str) -> dict[str, Any]:
        return {str(each.get("property")): each.get("value") for each in self.maps(body, "customProperties", place)}

    def note(self, body: Mapping[str, Any], place: str, read: set[str]) -> None:
        self.unread += [f"{place}.{key}" for key in body if key not in read | {"customProperties", "id"}]


_COUNTS = re.compile(r"(?is)\s*select\s+count\(\*\)\s+from\s+\S+\s+where\s+not\s*\((.*)\)\s*;?\s*")
_TOP = {"apiVersion", "kind", "name", "version", "status", "description", "schema", "slaProperties"}
_OTHER_TYPES = ("array", "object", "time")
_SEVERITIES: dict[str, Severity] = {
    **{"info": "info", "low": "info", "warning": "warning", "medium": "warning"},
    **{"error": "error", "high": "error", "critical": "error"},
}
_PROPERTY = {
    "name",
    "logicalType",
    "physicalType",
    "physicalName",
    "description",
    "required",
    "unique",
    "primaryKey",
    "primaryKeyPosition",
    "logicalTypeOptions",
    "transformLogic",
    "transformSourceObjects",
    "quality",
}

"""sqlglot's tree becomes ours: the syntax of the language, and what is refused.

sqlglot parses the text in DuckDB's dialect with its function table emptied, so that every call arrives with the name
its author wrote and only syntax (CAST, EXTRACT, INTERVAL, ...) stays special. The walk below then builds `Node`s and
refuses every class it has no entry for: subqueries, windows, JSON paths, placeholders. Nothing else in tenon sees
sqlglot, so a release that renames its classes is felt here alone.

Hostile text is bounded before it is parsed (length, nesting), and running out of stack is an error in words.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlglot import exp
from sqlglot.dialects.duckdb import DuckDB
from sqlglot.errors import SqlglotError

from tenon.contract.sql_functions import AGGREGATES, call
from tenon.contract.sql_tree import NULL, UNITS_US, UNKNOWN, Node, read_interval
from tenon.contract.sql_types import INTERVAL, Meaning, short
from tenon.errors import ConfigError, nearest, quoted, sentence

MAX_TEXT = 10_000
MAX_DEPTH = 100
CASTS = {
    "TINYINT": "int",
    "SMALLINT": "int",
    "INT": "int",
    "BIGINT": "int",
    "FLOAT": "float",
    "DOUBLE": "float",
    "DECIMAL": "float",
    "VARCHAR": "text",
    "TEXT": "text",
    "CHAR": "text",
    "BOOLEAN": "bool",
    "DATE": "date",
    "TIMESTAMP": "timestamp",
    "TIMESTAMPNTZ": "timestamp",
    "DATETIME": "timestamp",
}
# what a cast may start from; a pair outside is a mistake when the type is known and null when it is not
_KEPT = ("CAST", "TRY_CAST", "EXTRACT", "SUBSTRING", "TRIM")


class _Calls(DuckDB.Parser):  # type: ignore[misc, valid-type]
    """DuckDB's parser without its functions: a call is a name and its arguments."""

    FUNCTIONS: dict[str, Any] = {}
    NO_PAREN_FUNCTIONS: dict[Any, Any] = {}
    FUNCTION_PARSERS = {name: DuckDB.Parser.FUNCTION_PARSERS[name] for name in _KEPT}


def parse_node(text: str, place: str, types: Mapping[str, str] | None) -> Node:
    """Parse one SQL expression into a Node, or raise ConfigError with words that name `place`."""
    if len(text) > MAX_TEXT or max(_depths(text)) > MAX_DEPTH:
        raise ConfigError(
            sentence(
                f"SQL of at most {MAX_TEXT:,} characters, nested at most {MAX_DEPTH} deep",
                f"{len(text):,} characters, {max(_depths(text))} deep",
                at=place,
                hint="derive a column for a part of it",
            )
        )
    try:
        dialect = DuckDB()
        trees = _Calls(dialect=dialect).parse(dialect.tokenize(text), text)
    except (SqlglotError, RecursionError, ValueError, IndexError) as error:
        said = re.sub(r"\x1b\[\d*m", "", str(error).splitlines()[0] if str(error) else type(error).__name__)
        raise ConfigError(
            sentence("an SQL expression", f"'{short(text)}' ({said})", at=place, hint="check the syntax")
        ) from error
    if len(trees) != 1 or trees[0] is None:
        got = "nothing" if not any(trees) else f"{len(trees)} statements"
        raise ConfigError(sentence("one SQL expression", got, at=place, hint="write one expression"))
    try:
        return _Translator(meaning=Meaning(text=text, place=place), types=types).node(trees[0])
    except RecursionError as error:
        raise ConfigError(
            sentence(
                "a simpler SQL expression", "one nested too deep", at=place, hint="derive a column for a part of it"
            )
        ) from error


def _depths(text: str) -> Iterator[int]:
    depth = 0
    yield 0
    for char in text:
        depth += (char in "([") - (char in ")]")
        yield depth


_BINARY: dict[type[exp.Expression], str] = {
    exp.Add: "add",
    exp.Sub: "sub",
    exp.Mul: "mul",
    exp.Div: "div",
    exp.IntDiv: "floordiv",
    exp.Mod: "mod",
    exp.Pow: "pow",
    exp.EQ: "eq",
    exp.NEQ: "ne",
    exp.LT: "lt",
    exp.LTE: "le",
    exp.GT: "gt",
    exp.GTE: "ge",
    exp.And: "and",
    exp.Or: "or",
    exp.DPipe: "join",
    exp.NullSafeEQ: "same",
    exp.NullSafeNEQ: "differs",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Translator:
    """Turns sqlglot's tree into Nodes: one method for each piece of syntax."""

    meaning: Meaning
    types: Mapping[str, str] | None
    in_aggregate: bool = False

    def node(self, tree: Any) -> Node:
        """Translate one sqlglot node and everything below it."""
        kind = type(tree)
        if kind in _BINARY:
            return self.meaning.build(_BINARY[kind], self.node(tree.this), self.node(tree.expression))
        method = _SYNTAX.get(kind)
        if method is None:
            said = tree.sql(dialect="duckdb") if isinstance(tree, exp.Expression) else str(tree)
            self.meaning.fail("a scalar expression over columns", f"'{short(said)}'", _LANGUAGE)
        return method(self, tree)

    # syntax

    def paren(self, tree: Any) -> Node:
        return self.node(tree.this)

    def column(self, tree: Any) -> Node:
        name = tree.name
        if tree.args.get("table") is not None:
            self.meaning.fail("a column name alone", f"'{tree.sql()}'", f"write '{name}'; of= names the source")
        if self.types is not None and name not in self.types:
            self.meaning.fail("a column that exists", f"'{name}'", nearest(name, self.types))
        return Node("column", value=name, type=(self.types or {}).get(name, UNKNOWN))

    def literal(self, tree: Any) -> Node:
        if tree.is_string:
            return Node("literal", value=str(tree.this), type="text")
        said = str(tree.this)
        if re.fullmatch(r"[0-9]+", said):
            number = int(said)
            if number >= 2**63:
                self.meaning.fail("a whole number of 64 bits", said, "write it as a decimal: 1e20")
            return Node("literal", value=number, type="int")
        return Node("literal", value=float(said), type="float")

    def boolean(self, tree: Any) -> Node:
        return Node("literal", value=bool(tree.this), type="bool")

    def null(self, tree: Any) -> Node:
        return NULL

    def negative(self, tree: Any) -> Node:
        return self.meaning.build("neg", self.node(tree.this))

    def negation(self, tree: Any) -> Node:
        return self.meaning.build("not", self.node(tree.this))

    def between(self, tree: Any) -> Node:
        value = self.node(tree.this)
        low = self.meaning.build("ge", value, self.node(tree.args["low"]))
        return self.meaning.build("and", low, self.meaning.build("le", value, self.node(tree.args["high"])))

    def isin(self, tree: Any) -> Node:
        if tree.args.get("query") is not None or not tree.expressions:
            self.meaning.fail("a list after IN", "something else", "write x IN (1, 2, 3)")
        value, among = self.node(tree.this), [self.node(item) for item in tree.expressions]
        equals = [self.meaning.build("eq", value, item) for item in among]  # checks the types and converts the literals
        plain = all(each.args[1].op == "literal" and each.args[1].value is not None for each in equals)
        if plain and len({each.args[0] for each in equals}) == 1 and (value.type or equals[0].args[1].type == "text"):
            return Node("in", (equals[0].args[0],), tuple(each.args[1].value for each in equals), "bool")
        found = equals[0]
        for each in equals[1:]:
            found = self.meaning.build("or", found, each)
        return found

    def like(self, tree: Any) -> Node:
        value, pattern = self.meaning.text_arg("LIKE", self.node(tree.this)), self.node(tree.expression)
        if pattern.op != "literal" or not isinstance(pattern.value, str):
            self.meaning.fail("a text literal after LIKE", "an expression", "use contains(x, y) or starts_with(x, y)")
        found = Node("like", (value,), pattern.value, "bool")
        return self.meaning.build("not", found) if tree.args.get("negate") else found

    def case(self, tree: Any) -> Node:
        subject = self.node(tree.this) if tree.this is not None else None
        tests, values = [], []
        for branch in tree.args["ifs"]:
            test = self.node(branch.this)
            tests.append(
                self.meaning.build("eq", subject, test) if subject is not None else self.meaning.condition("WHEN", test)
            )
            values.append(self.node(branch.args["true"]))
        default = tree.args.get("default")
        return self.meaning.choose(tests, [*values, self.node(default) if default is not None else NULL])

    def iff(self, tree: Any) -> Node:
        other = tree.args.get("false")
        test = self.meaning.condition("if()", self.node(tree.this))
        return self.meaning.choose(
            [test], [self.node(tree.args["true"]), self.node(other) if other is not None else NULL]
        )

    def identity(self, tree: Any) -> Node:
        value, what = self.node(tree.this), self.node(tree.expression)
        if what.op != "literal" or not (what.value is None or isinstance(what.value, bool)):
            self.meaning.fail("NULL, TRUE or FALSE after IS", f"'{tree.expression.sql()}'", "use = to compare")
        if what.value is None:
            return Node("is_null", (value,), None, "bool")
        return Node("same", (self.meaning.condition("IS", value), what), None, "bool")

    def cast(self, tree: Any) -> Node:
        said = tree.args["to"].this
        target = CASTS.get(getattr(said, "value", str(said)))
        if target is None:
            self.meaning.fail(
                "a type to cast to", f"'{tree.args['to'].sql()}'", f"one of {quoted(set(CASTS.values()))}"
            )
        value = self.node(tree.this)
        if value.op == "literal" and value.type == "text" and target in ("date", "timestamp"):
            return self.meaning.moment(value, target)
        return self.meaning.convert(value, target)

    def extract(self, tree: Any) -> Node:
        return call(self.meaning, tree.this.name.lower(), [self.node(tree.expression)])

    def substring(self, tree: Any) -> Node:
        given = (tree.this, tree.args.get("start"), tree.args.get("length"))
        return call(self.meaning, "substr", [self.node(item) for item in given if item is not None])

    def trim(self, tree: Any) -> Node:
        name = {"LEADING": "ltrim", "TRAILING": "rtrim"}.get(str(tree.args.get("position") or ""), "trim")
        chars = tree.args.get("expression")
        return call(self.meaning, name, [self.node(tree.this), *([self.node(chars)] if chars is not None else [])])

    def interval(self, tree: Any) -> Node:
        unit, amount = tree.args.get("unit"), tree.this
        said = str(amount.this) if isinstance(amount, exp.Literal) else None
        name = str(unit.name if unit is not None else "").lower().removesuffix("s")
        if said is not None and (unit is None or re.fullmatch(r"\s*[+-]?[0-9]+\s*", said)):
            micros = read_interval(f"{said} {name}")
            if micros is None or abs(micros) >= 2**63:
                self.meaning.fail("an interval of fixed length", f"'{said} {name}'".replace(" '", "'"), INTERVAL)
            return Node("literal", value=dt.timedelta(microseconds=micros), type="duration")
        if name not in UNITS_US:
            self.meaning.fail("a unit of fixed length", f"'{name}'", INTERVAL)
        one = Node("literal", value=dt.timedelta(microseconds=UNITS_US[name]), type="duration")
        return self.meaning.build("mul", self.node(amount), one)

    def filtered(self, tree: Any) -> Node:
        """avg(x) FILTER (WHERE c) is avg(CASE WHEN c THEN x END)."""
        found = self.node(tree.this)
        if found.op != "aggregate":
            self.meaning.fail("an aggregate before FILTER", f"'{tree.this.sql()}'")
        test = self.meaning.condition("FILTER", self.node(tree.expression.this))
        value = found.args[0] if found.args else Node("literal", value=1, type="int")
        return Node("aggregate", (Node("case", (test, value, NULL), None, value.type),), found.value, found.type)

    def function(self, tree: Any) -> Node:
        name = str(tree.this).lower()
        if name in AGGREGATES:
            return self.aggregate(name, tree)
        return call(self.meaning, name, [self.node(item) for item in tree.expressions])

    def aggregate(self, name: str, tree: Any) -> Node:
        if self.in_aggregate:
            self.meaning.fail("an aggregate of columns", f"'{name}()' inside another aggregate", "take one of them out")
        inner = _Translator(meaning=self.meaning, types=self.types, in_aggregate=True)
        known, given, distinct = AGGREGATES[name], list(tree.expressions), False
        if len(given) == 1 and isinstance(given[0], exp.Distinct):
            given, distinct = list(given[0].expressions), True
        if known == "count" and not distinct and (not given or (len(given) == 1 and isinstance(given[0], exp.Star))):
            return Node("aggregate", (), ("count", False), "int")
        if len(given) != 1:
            self.meaning.fail(f"one argument of {name}()", str(len(given)), "give one expression")
        if distinct and known != "count":
            self.meaning.fail("DISTINCT inside count()", f"inside {name}()", "leave it out")
        argument = inner.node(given[0])
        if known in ("avg", "sum", "stddev"):
            argument = self.meaning.number(f"{name}()", argument)
        kinds = {"avg": "float", "stddev": "float", "count": "int"}
        return Node("aggregate", (argument,), (known, distinct), kinds.get(known, argument.type))

    # meaning


_LANGUAGE = "one row's columns, arithmetic, comparisons, CASE and the functions of docs/contract.md"
_SYNTAX: dict[type[Any], Callable[[_Translator, Any], Node]] = {
    exp.Paren: _Translator.paren,
    exp.Column: _Translator.column,
    exp.Literal: _Translator.literal,
    exp.Boolean: _Translator.boolean,
    exp.Null: _Translator.null,
    exp.Neg: _Translator.negative,
    exp.Not: _Translator.negation,
    exp.Between: _Translator.between,
    exp.In: _Translator.isin,
    exp.Like: _Translator.like,
    exp.Case: _Translator.case,
    exp.If: _Translator.iff,
    exp.Is: _Translator.identity,
    exp.Cast: _Translator.cast,
    exp.TryCast: _Translator.cast,
    exp.Extract: _Translator.extract,
    exp.Substring: _Translator.substring,
    exp.Trim: _Translator.trim,
    exp.Interval: _Translator.interval,
    exp.Filter: _Translator.filtered,
    exp.Anonymous: _Translator.function,
}

"""SQL text becomes a small typed tree: the whole language of derived columns, row rules and features.

sqlglot parses the text (DuckDB's dialect, with its function table emptied so that every call keeps the name its author
wrote); `translate` walks that tree once and builds `Node`s, refusing everything that is not in the tables below. The
rest of tenon sees only Nodes: `sql_columns` runs them by Polars over a frame, `sql_rows` as closures over one row, and
neither depends on what sqlglot calls things this year.

Types are worked out from the leaves up. A column's type is known when the caller gave `types`; without them it is ""
(unknown), and then what a value is decides at run time. Where types are known, conversions become explicit nodes (an
int compared with a float is cast, a text literal beside a timestamp is read as one), which is what makes the two
executions agree to the last bit, and mistakes are found before any data is read.

Rejected: running sqlglot's own optimiser for types (it knows twenty engines and none of our rules), and keeping
sqlglot's nodes as the tree (their classes and argument names change between releases).
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from sqlglot import exp
from sqlglot.dialects.dialect import Dialect
from sqlglot.errors import SqlglotError

from tenon.errors import ConfigError, nearest, quoted, sentence

MAX_TEXT = 10_000
MAX_DEPTH = 100
UNKNOWN = ""
NUMBERS = ("int", "float", "bool", "null", UNKNOWN)
MOMENTS = ("date", "timestamp", "null", UNKNOWN)
PARTS = {
    "year": "year",
    "quarter": "quarter",
    "month": "month",
    "week": "week",
    "day": "day",
    "hour": "hour",
    "minute": "minute",
    "second": "second",
    "dayofweek": "isodow",
    "day_of_week": "isodow",
    "isodow": "isodow",
    "dayofyear": "doy",
    "day_of_year": "doy",
    "doy": "doy",
}
UNITS_US = {
    "microsecond": 1,
    "millisecond": 1_000,
    "second": 1_000_000,
    "minute": 60_000_000,
    "hour": 3_600_000_000,
    "day": 86_400_000_000,
    "week": 604_800_000_000,
}
TRUNC = ("second", "minute", "hour", "day", "week", "month", "quarter", "year")
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
CASTABLE = {
    "int": ("int", "float", "bool", "text"),
    "float": ("int", "float", "bool", "text"),
    "bool": ("bool", "int", "float", "text"),
    "text": ("text", "int", "float", "bool", "date", "timestamp"),
    "date": ("date", "timestamp", "text"),
    "timestamp": ("timestamp", "date", "text"),
}
AGGREGATES = {
    "avg": "avg",
    "mean": "avg",
    "count": "count",
    "sum": "sum",
    "min": "min",
    "max": "max",
    "stddev": "stddev",
    "stddev_samp": "stddev",
    "first": "first",
    "last": "last",
}
_NAMES = {
    "int": "a whole number",
    "float": "a number",
    "text": "text",
    "bool": "true or false",
    "date": "a date",
    "timestamp": "a timestamp",
    "duration": "an interval",
    "null": "null",
}


@dataclass(frozen=True, slots=True)
class Node:
    """One operation of the language: its name, operands, constant (if any) and type ("" when unknown)."""

    op: str
    args: tuple[Node, ...] = ()
    value: Any = None
    type: str = UNKNOWN

    def walk(self) -> Iterator[Node]:
        """Yield this node and every node below it."""
        yield self
        for arg in self.args:
            yield from arg.walk()

    def swap(self, change: Callable[[Node], Node | None]) -> Node:
        """Return the tree with every node for which `change` gives another replaced by it, from the root down."""
        other = change(self)
        if other is not None:
            return other
        if not self.args:
            return self
        return Node(self.op, tuple(arg.swap(change) for arg in self.args), self.value, self.type)


NULL = Node("literal", value=None, type="null")


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
        dialect = Dialect.get_or_raise("duckdb")
        parser = dialect.parser()
        # With no function table every call arrives as written, name and arguments; only syntax stays special.
        parser.FUNCTIONS = {}
        parser.NO_PAREN_FUNCTIONS = {}
        special = ("CAST", "TRY_CAST", "EXTRACT", "SUBSTRING", "TRIM")
        parser.FUNCTION_PARSERS = {name: parser.FUNCTION_PARSERS[name] for name in special}
        trees = parser.parse(dialect.tokenize(text), text)
    except (SqlglotError, RecursionError, ValueError, IndexError) as error:
        said = re.sub(r"\x1b\[\d*m", "", str(error).splitlines()[0] if str(error) else type(error).__name__)
        raise ConfigError(
            sentence("an SQL expression", f"'{_short(text)}' ({said})", at=place, hint="check the syntax")
        ) from error
    if len(trees) != 1 or trees[0] is None:
        got = "nothing" if not any(trees) else f"{len(trees)} statements"
        raise ConfigError(sentence("one SQL expression", got, at=place, hint="write one expression"))
    try:
        return _Translator(text=text, place=place, types=types).node(trees[0])
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


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


# ── literals ─────────────────────────────────────────────────────────────────────────────────────────────────────────

_DATE = r"(000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})-([0-9]{2})-([0-9]{2})"
DATE_PATTERN = rf"^{_DATE}$"
TIMESTAMP_PATTERN = rf"^{_DATE}(?:[T ]([0-9]{{2}}):([0-9]{{2}})(?::([0-9]{{2}})(?:\.([0-9]{{1,6}}))?)?)?Z?$"
INT_PATTERN = r"^[+-]?[0-9]+$"
FLOAT_PATTERN = r"^[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?$"
_TIMESTAMP = re.compile(TIMESTAMP_PATTERN)
_DATE_ONLY = re.compile(DATE_PATTERN)


def read_date(text: str) -> dt.date | None:
    """Read ``2013-11-01``; None when it is anything else."""
    if not _DATE_ONLY.match(text) or text.endswith("\n"):
        return None
    try:
        return dt.date(int(text[:4]), int(text[5:7]), int(text[8:10]))
    except ValueError:
        return None


def read_timestamp(text: str) -> dt.datetime | None:
    """Read ``2013-11-01``, ``2013-11-01 05:15``, ``2013-11-01T05:15:00.25Z``; None when it is anything else."""
    found = _TIMESTAMP.match(text)
    if not found or text.endswith("\n"):
        return None
    year, month, day, hour, minute, second, fraction = found.groups()
    try:
        return dt.datetime(
            int(year),
            int(month),
            int(day),
            int(hour or 0),
            int(minute or 0),
            int(second or 0),
            int((fraction or "").ljust(6, "0")),
        )
    except ValueError:
        return None


def _micros(text: str) -> int | None:
    """Read ``1 hour`` or ``1 hour 30 minutes`` as microseconds; None when it is no interval of fixed length."""
    pairs = re.findall(r"\s*([+-]?[0-9]+)\s*([A-Za-z]+)", text)
    if not pairs or re.sub(r"\s*([+-]?[0-9]+)\s*([A-Za-z]+)", "", text).strip():
        return None
    total = 0
    for number, unit in pairs:
        name = unit.lower().removesuffix("s")
        if name not in UNITS_US:
            return None
        total += int(number) * UNITS_US[name]
    return total


# ── translation ──────────────────────────────────────────────────────────────────────────────────────────────────────

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
_SIGNS = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "div": "/",
    "floordiv": "//",
    "mod": "%",
    "eq": "=",
    "ne": "<>",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "and": "AND",
    "or": "OR",
    "join": "||",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Translator:
    """Turns sqlglot's tree into Nodes; it only carries what every error must name."""

    text: str
    place: str
    types: Mapping[str, str] | None
    in_aggregate: bool = False

    def fail(self, expected: str, got: str, hint: str = "") -> NoReturn:
        raise ConfigError(sentence(expected, got, at=f"{self.place}: {_short(self.text)}", hint=hint))

    def node(self, tree: Any) -> Node:
        """Translate one sqlglot node and everything below it."""
        kind = type(tree)
        if kind in _BINARY:
            return self.build(_BINARY[kind], self.node(tree.this), self.node(tree.expression))
        method = _SYNTAX.get(kind)
        if method is None:
            said = tree.sql(dialect="duckdb") if isinstance(tree, exp.Expression) else str(tree)
            self.fail("a scalar expression over columns", f"'{_short(said)}'", _LANGUAGE)
        return method(self, tree)

    # syntax

    def paren(self, tree: Any) -> Node:
        return self.node(tree.this)

    def column(self, tree: Any) -> Node:
        name = tree.name
        if tree.args.get("table") is not None:
            self.fail("a column name alone", f"'{tree.sql()}'", f"write '{name}'; of= names the source")
        if self.types is not None and name not in self.types:
            self.fail("a column that exists", f"'{name}'", nearest(name, self.types))
        return Node("column", value=name, type=(self.types or {}).get(name, UNKNOWN))

    def literal(self, tree: Any) -> Node:
        if tree.is_string:
            return Node("literal", value=str(tree.this), type="text")
        said = str(tree.this)
        if re.fullmatch(r"[0-9]+", said):
            number = int(said)
            if number >= 2**63:
                self.fail("a whole number of 64 bits", said, "write it as a decimal: 1e20")
            return Node("literal", value=number, type="int")
        return Node("literal", value=float(said), type="float")

    def boolean(self, tree: Any) -> Node:
        return Node("literal", value=bool(tree.this), type="bool")

    def null(self, tree: Any) -> Node:
        return NULL

    def negative(self, tree: Any) -> Node:
        return self.build("neg", self.node(tree.this))

    def negation(self, tree: Any) -> Node:
        return self.build("not", self.node(tree.this))

    def between(self, tree: Any) -> Node:
        value = self.node(tree.this)
        low = self.build("ge", value, self.node(tree.args["low"]))
        return self.build("and", low, self.build("le", value, self.node(tree.args["high"])))

    def isin(self, tree: Any) -> Node:
        if tree.args.get("query") is not None or not tree.expressions:
            self.fail("a list after IN", "something else", "write x IN (1, 2, 3)")
        value, among = self.node(tree.this), [self.node(item) for item in tree.expressions]
        equals = [self.build("eq", value, item) for item in among]  # checks the types and converts the literals
        plain = all(each.args[1].op == "literal" and each.args[1].value is not None for each in equals)
        if plain and len({each.args[0] for each in equals}) == 1 and (value.type or equals[0].args[1].type == "text"):
            return Node("in", (equals[0].args[0],), tuple(each.args[1].value for each in equals), "bool")
        found = equals[0]
        for each in equals[1:]:
            found = self.build("or", found, each)
        return found

    def like(self, tree: Any) -> Node:
        value, pattern = self.text_arg("LIKE", self.node(tree.this)), self.node(tree.expression)
        if pattern.op != "literal" or not isinstance(pattern.value, str):
            self.fail("a text literal after LIKE", "an expression", "use contains(x, y) or starts_with(x, y)")
        found = Node("like", (value,), pattern.value, "bool")
        return self.build("not", found) if tree.args.get("negate") else found

    def case(self, tree: Any) -> Node:
        subject = self.node(tree.this) if tree.this is not None else None
        tests, values = [], []
        for branch in tree.args["ifs"]:
            test = self.node(branch.this)
            tests.append(self.build("eq", subject, test) if subject is not None else self.condition("WHEN", test))
            values.append(self.node(branch.args["true"]))
        default = tree.args.get("default")
        return self.choose(tests, [*values, self.node(default) if default is not None else NULL])

    def iff(self, tree: Any) -> Node:
        other = tree.args.get("false")
        test = self.condition("if()", self.node(tree.this))
        return self.choose([test], [self.node(tree.args["true"]), self.node(other) if other is not None else NULL])

    def choose(self, tests: Sequence[Node], values: Sequence[Node]) -> Node:
        values, kind = self.unify("CASE", values)
        pairs = [node for pair in zip(tests, values, strict=False) for node in pair]
        return Node("case", (*pairs, values[-1]), None, kind)

    def identity(self, tree: Any) -> Node:
        value, what = self.node(tree.this), self.node(tree.expression)
        if what.op != "literal" or not (what.value is None or isinstance(what.value, bool)):
            self.fail("NULL, TRUE or FALSE after IS", f"'{tree.expression.sql()}'", "use = to compare")
        if what.value is None:
            return Node("is_null", (value,), None, "bool")
        return Node("same", (self.condition("IS", value), what), None, "bool")

    def cast(self, tree: Any) -> Node:
        said = tree.args["to"].this
        target = CASTS.get(getattr(said, "value", str(said)))
        if target is None:
            self.fail("a type to cast to", f"'{tree.args['to'].sql()}'", f"one of {quoted(set(CASTS.values()))}")
        value = self.node(tree.this)
        if value.op == "literal" and value.type == "text" and target in ("date", "timestamp"):
            return self.moment(value, target)
        return self.convert(value, target)

    def extract(self, tree: Any) -> Node:
        return self.call(tree.this.name.lower(), [self.node(tree.expression)])

    def substring(self, tree: Any) -> Node:
        given = (tree.this, tree.args.get("start"), tree.args.get("length"))
        return self.call("substr", [self.node(item) for item in given if item is not None])

    def trim(self, tree: Any) -> Node:
        name = {"LEADING": "ltrim", "TRAILING": "rtrim"}.get(str(tree.args.get("position") or ""), "trim")
        chars = tree.args.get("expression")
        return self.call(name, [self.node(tree.this), *([self.node(chars)] if chars is not None else [])])

    def interval(self, tree: Any) -> Node:
        unit, amount = tree.args.get("unit"), tree.this
        said = str(amount.this) if isinstance(amount, exp.Literal) else None
        name = str(unit.name if unit is not None else "").lower().removesuffix("s")
        if said is not None and (unit is None or re.fullmatch(r"\s*[+-]?[0-9]+\s*", said)):
            micros = _micros(f"{said} {name}")
            if micros is None or abs(micros) >= 2**63:
                self.fail("an interval of fixed length", f"'{said} {name}'".replace(" '", "'"), _INTERVAL)
            return Node("literal", value=dt.timedelta(microseconds=micros), type="duration")
        if name not in UNITS_US:
            self.fail("a unit of fixed length", f"'{name}'", _INTERVAL)
        one = Node("literal", value=dt.timedelta(microseconds=UNITS_US[name]), type="duration")
        return self.build("mul", self.node(amount), one)

    def filtered(self, tree: Any) -> Node:
        """avg(x) FILTER (WHERE c) is avg(CASE WHEN c THEN x END)."""
        found = self.node(tree.this)
        if found.op != "aggregate":
            self.fail("an aggregate before FILTER", f"'{tree.this.sql()}'")
        test = self.condition("FILTER", self.node(tree.expression.this))
        value = found.args[0] if found.args else Node("literal", value=1, type="int")
        return Node("aggregate", (Node("case", (test, value, NULL), None, value.type),), found.value, found.type)

    def function(self, tree: Any) -> Node:
        name = str(tree.this).lower()
        if name in AGGREGATES:
            return self.aggregate(name, tree)
        if name not in FUNCTIONS:
            self.fail("a function tenon knows", f"'{tree.this}()'", nearest(name, [*FUNCTIONS, *AGGREGATES]))
        return self.call(name, [self.node(item) for item in tree.expressions])

    def aggregate(self, name: str, tree: Any) -> Node:
        if self.in_aggregate:
            self.fail("an aggregate of columns", f"'{name}()' inside another aggregate", "take one of them out")
        inner = _Translator(text=self.text, place=self.place, types=self.types, in_aggregate=True)
        known, given, distinct = AGGREGATES[name], list(tree.expressions), False
        if len(given) == 1 and isinstance(given[0], exp.Distinct):
            given, distinct = list(given[0].expressions), True
        if known == "count" and not distinct and (not given or (len(given) == 1 and isinstance(given[0], exp.Star))):
            return Node("aggregate", (), ("count", False), "int")
        if len(given) != 1:
            self.fail(f"one argument of {name}()", str(len(given)), "give one expression")
        if distinct and known != "count":
            self.fail("DISTINCT inside count()", f"inside {name}()", "leave it out")
        argument = inner.node(given[0])
        if known in ("avg", "sum", "stddev"):
            argument = self.number(f"{name}()", argument)
        kinds = {"avg": "float", "stddev": "float", "count": "int"}
        return Node("aggregate", (argument,), (known, distinct), kinds.get(known, argument.type))

    # meaning

    def call(self, name: str, args: list[Node]) -> Node:
        """Check a function's argument count and build it."""
        if name not in FUNCTIONS:
            self.fail("a function tenon knows", f"'{name}()'", nearest(name, FUNCTIONS))
        low, high, build = FUNCTIONS[name]
        if not low <= len(args) <= high:
            wanted = f"{low}" if low == high else f"{low} to {high}" if high < 99 else f"{low} or more"
            self.fail(f"{wanted} arguments of {name}()", str(len(args)))
        return build(self, name, args)

    def build(self, op: str, *args: Node) -> Node:
        """Build an operator's node: operands checked and converted, type known where it can be."""
        sign = _SIGNS.get(op, op)
        if op in ("and", "or", "not"):
            return Node(op, tuple(self.condition(sign.upper(), arg) for arg in args), None, "bool")
        if op in ("eq", "ne", "lt", "le", "gt", "ge", "same", "differs"):
            return Node(op, self.unify(sign, args)[0], None, "bool")
        if op == "neg":
            if args[0].op == "literal" and args[0].type in ("int", "float", "duration"):
                return Node("literal", value=-args[0].value, type=args[0].type)
            if args[0].type == "duration":
                return Node("mul", (args[0], Node("literal", value=-1, type="int")), "scale", "duration")
            return self.numeric("neg", "-", args)
        if op == "join":
            return Node("join", tuple(self.convert(arg, "text") for arg in args), None, "text")
        if op == "pow":
            return Node("pow", tuple(self.convert(self.number(sign, arg), "float") for arg in args), None, "float")
        kinds = {arg.type for arg in args}
        if op in ("add", "sub", "mul", "div") and kinds & {"date", "timestamp", "duration"}:
            return self.temporal(op, sign, *args)
        return self.numeric(op, sign, args)

    def numeric(self, op: str, sign: str, args: Sequence[Node]) -> Node:
        args = [self.number(sign, arg) for arg in args]
        kinds = {arg.type for arg in args}
        kind = UNKNOWN if UNKNOWN in kinds else "float" if "float" in kinds else "int"
        if kinds == {"null"}:
            return NULL
        if op == "div":
            kind = "float"
            args = [self.convert(arg, "float") if arg.type else arg for arg in args]
        elif kind == "float":
            args = [self.convert(arg, "float") for arg in args]
        return Node(op, tuple(args), None, kind)

    def temporal(self, op: str, sign: str, left: Node, right: Node) -> Node:
        """Arithmetic with dates, timestamps and intervals; dates count as their midnight."""
        left, right = (self.convert(arg, "timestamp") if arg.type == "date" else arg for arg in (left, right))
        kinds = (left.type, right.type)
        open_types = ("null", UNKNOWN)
        if op == "mul" and "duration" in kinds:
            span, factor = (left, right) if left.type == "duration" else (right, left)
            return Node("mul", (span, self.number(sign, factor)), "scale", "duration")
        if op == "div" and kinds == ("duration", "duration"):
            seconds = [Node("epoch", (arg,), None, "float") for arg in (left, right)]
            return Node("div", tuple(seconds), None, "float")
        if op == "sub" and left.type in ("timestamp", *open_types) and right.type in ("timestamp", *open_types):
            return Node(op, (left, right), None, "duration")
        if op in ("add", "sub") and right.type == "duration" and left.type in ("timestamp", "duration", *open_types):
            return Node(op, (left, right), None, left.type if left.type != "null" else "timestamp")
        if op == "add" and left.type == "duration" and right.type in ("timestamp", *open_types):
            return Node(op, (right, left), None, right.type if right.type != "null" else "timestamp")
        if op == "add" and "timestamp" in kinds and UNKNOWN in kinds:
            return Node(op, (left, right), None, "timestamp")
        self.fail("a timestamp and an interval", f"{self.said(left)} {sign} {self.said(right)}", _INTERVAL)

    def convert(self, node: Node, target: str) -> Node:
        """Cast, leaving out casts that change nothing."""
        if node.type in (target, "null"):
            return node if node.type == target else Node("cast", (node,), target, target)
        if node.type and node.type not in CASTABLE[target]:
            hint = "use epoch(x) for seconds" if node.type in ("date", "timestamp", "duration") else ""
            self.fail(f"something that can be cast to {target}", self.said(node), hint)
        if node.op == "literal" and node.type == "int" and target == "float":
            return Node("literal", value=float(node.value), type="float")
        return Node("cast", (node,), target, target)

    def unify(self, where: str, nodes: Sequence[Node]) -> tuple[tuple[Node, ...], str]:
        """Bring operands that meet (compared, chosen between) to one type; literals of text are read as moments."""
        kinds = {node.type for node in nodes} - {"null"}
        moments = kinds & {"date", "timestamp"}
        if moments and kinds <= {"date", "timestamp", "text"}:
            target = "timestamp" if "timestamp" in kinds else "date"
            texts = [node for node in nodes if node.type == "text"]
            if any(node.op != "literal" for node in texts):
                self.fail(f"{_NAMES[target]} on both sides of {where}", self.said(texts[0]), f"cast(x AS {target})")
            if target == "date" and any(read_date(node.value) is None for node in texts):
                target = "timestamp"
            done = [self.moment(n, target) if n.type == "text" else self.convert(n, target) for n in nodes]
            return tuple(done), target
        if UNKNOWN in kinds:
            return tuple(nodes), UNKNOWN
        if kinds == {"int", "float"}:
            return tuple(self.convert(node, "float") for node in nodes), "float"
        if len(kinds) > 1:
            told = " and ".join(dict.fromkeys(self.said(node) for node in nodes if node.type != "null"))
            self.fail(f"the same type on both sides of {where}", told, "cast one of them: cast(x AS int)")
        return tuple(nodes), kinds.pop() if kinds else "null"

    def moment(self, node: Node, target: str) -> Node:
        value = read_date(node.value) if target == "date" else read_timestamp(node.value)
        if value is None:
            self.fail(_NAMES[target], f"'{node.value}'", "write it as '2013-11-01' or '2013-11-01 05:15:00'")
        return Node("literal", value=value, type=target)

    def said(self, node: Node) -> str:
        what = f"column '{node.value}'" if node.op == "column" else f"'{node.value}'" if node.op == "literal" else ""
        return f"{_NAMES.get(node.type, 'something')} ({what})" if what else _NAMES.get(node.type, "something")

    def condition(self, where: str, node: Node) -> Node:
        if node.type not in ("bool", "null", UNKNOWN):
            self.fail(f"a condition with {where}", self.said(node), "compare it with something: x > 0")
        return node

    def number(self, where: str, node: Node) -> Node:
        if node.type not in NUMBERS:
            self.fail(f"numbers with {where}", self.said(node), "cast(x AS float) reads text as a number")
        return self.convert(node, "int") if node.type == "bool" else node

    def text_arg(self, where: str, node: Node) -> Node:
        if node.type not in ("text", "null", UNKNOWN):
            self.fail(f"text with {where}", self.said(node), "cast(x AS text)")
        return node

    def moment_arg(self, where: str, node: Node) -> Node:
        if node.op == "literal" and node.type == "text":
            return self.moment(node, "timestamp")
        if node.type not in MOMENTS:
            self.fail(f"a date or timestamp with {where}", self.said(node), "cast(x AS timestamp)")
        return node

    def constant(self, name: str, node: Node) -> Any:
        if node.op != "literal" or node.value is None:
            self.fail(f"a literal as this argument of {name}()", "an expression", "write the value itself")
        return node.value


_INTERVAL = f"write interval '1 hour' or interval n minute; units: {', '.join(UNITS_US)}"
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

# ── functions: name -> fewest arguments, most, how its node is built ─────────────────────────────────────────────────

_Build = Callable[[_Translator, str, list[Node]], Node]


def _same_number(t: _Translator, name: str, args: list[Node]) -> Node:
    op = {"ceiling": "ceil"}.get(name, name)
    value = t.number(f"{name}()", args[0])
    return Node(op, (value,), None, value.type)


def _float(t: _Translator, name: str, args: list[Node]) -> Node:
    op = {"power": "pow", "log": "ln"}.get(name, name)
    return Node(op, tuple(t.convert(t.number(f"{name}()", arg), "float") for arg in args), None, "float")


def _round(t: _Translator, name: str, args: list[Node]) -> Node:
    digits = t.constant(name, args[1]) if len(args) > 1 else 0
    if not isinstance(digits, int) or not 0 <= digits <= 15:
        t.fail("0 to 15 digits in round()", f"'{digits}'", "round(x / 100) * 100 rounds to hundreds")
    value = t.number("round()", args[0])
    return Node("round", (value,), digits, value.type)


def _mod(t: _Translator, name: str, args: list[Node]) -> Node:
    return t.build("mod" if name == "mod" else "floordiv", *args)


def _coalesce(t: _Translator, name: str, args: list[Node]) -> Node:
    nodes, kind = t.unify(f"{name}()", args)
    return Node({"ifnull": "coalesce"}.get(name, name), nodes, None, kind)


def _nullif(t: _Translator, name: str, args: list[Node]) -> Node:
    test = t.build("eq", *args)
    return Node("case", (test, Node("cast", (NULL,), args[0].type, args[0].type), args[0]), None, args[0].type)


def _text(t: _Translator, name: str, args: list[Node]) -> Node:
    op = {"lcase": "lower", "ucase": "upper", "len": "length", "startswith": "starts_with"}.get(name, name)
    op = {"endswith": "ends_with", "suffix": "ends_with", "prefix": "starts_with"}.get(op, op)
    kind = {"lower": "text", "upper": "text", "length": "int"}.get(op, "bool")
    return Node(op, tuple(t.text_arg(f"{name}()", arg) for arg in args), None, kind)


def _trim(t: _Translator, name: str, args: list[Node]) -> Node:
    chars = str(t.constant(name, args[1])) if len(args) > 1 else " \t\n\r\x0b\x0c"
    return Node(name, (t.text_arg(f"{name}()", args[0]),), chars, "text")


def _substr(t: _Translator, name: str, args: list[Node]) -> Node:
    value = t.text_arg(f"{name}()", args[0])
    return Node("substr", (value, *(t.convert(t.number(f"{name}()", arg), "int") for arg in args[1:])), None, "text")


def _concat(t: _Translator, name: str, args: list[Node]) -> Node:
    return Node("concat", tuple(t.convert(arg, "text") for arg in args), None, "text")


def _replace(t: _Translator, name: str, args: list[Node]) -> Node:
    old, new = (t.constant(name, arg) for arg in args[1:])
    if not (isinstance(old, str) and isinstance(new, str)):
        t.fail("text to replace and its replacement", "something else", "replace(x, 'a', 'b')")
    return Node("replace", (t.text_arg("replace()", args[0]),), (old, new), "text")


def _part(t: _Translator, name: str, args: list[Node]) -> Node:
    return Node("part", (t.moment_arg(f"{name}()", args[0]),), PARTS[name], "int")


def _unit(t: _Translator, name: str, node: Node) -> str:
    said = str(t.constant(name, node)).lower()
    unit = said.removesuffix("s")
    if unit not in TRUNC:
        t.fail(f"a unit as the first argument of {name}()", f"'{said}'", nearest(unit, TRUNC))
    return unit


def _trunc(t: _Translator, name: str, args: list[Node]) -> Node:
    return Node("date_trunc", (t.moment_arg(f"{name}()", args[1]),), _unit(t, name, args[0]), "timestamp")


def _diff(t: _Translator, name: str, args: list[Node]) -> Node:
    moments = tuple(t.moment_arg(f"{name}()", arg) for arg in args[1:])
    return Node("date_diff", moments, _unit(t, name, args[0]), "int")


def _epoch(t: _Translator, name: str, args: list[Node]) -> Node:
    value = args[0] if args[0].type == "duration" else t.moment_arg(f"{name}()", args[0])
    return Node("epoch", (value,), None, "float")


def _make(t: _Translator, name: str, args: list[Node]) -> Node:
    if len(args) not in (3, 6):
        t.fail("3 or 6 arguments of make_timestamp()", str(len(args)), "year, month, day, hour, minute, second")
    numbers = [t.number(f"{name}()", arg) for arg in args]
    numbers += [Node("literal", value=0, type="int")] * (6 - len(numbers))
    whole = [*(t.convert(arg, "int") for arg in numbers[:5]), t.convert(numbers[5], "float")]
    made = Node("make_timestamp", tuple(whole), None, "timestamp")
    return t.convert(made, "date") if name == "make_date" else made


def _to_timestamp(t: _Translator, name: str, args: list[Node]) -> Node:
    return Node("to_timestamp", (t.convert(t.number(f"{name}()", args[0]), "float"),), None, "timestamp")


def _date(t: _Translator, name: str, args: list[Node]) -> Node:
    if args[0].op == "literal" and args[0].type == "text":
        return t.moment(args[0], name)
    return t.convert(args[0], name)


def _isnull(t: _Translator, name: str, args: list[Node]) -> Node:
    return Node("is_null", (args[0],), None, "bool")


FUNCTIONS: dict[str, tuple[int, int, _Build]] = {
    **{name: (1, 1, _same_number) for name in ("abs", "floor", "ceil", "ceiling", "sign")},
    **{name: (1, 1, _float) for name in ("sqrt", "ln", "exp")},
    **{name: (2, 2, _float) for name in ("pow", "power")},
    **{name: (1, 99, _coalesce) for name in ("coalesce", "least", "greatest")},
    **{name: (1, 1, _text) for name in ("lower", "lcase", "upper", "ucase", "length", "len")},
    **{name: (2, 2, _text) for name in ("contains", "starts_with", "startswith", "ends_with", "endswith")},
    **{name: (1, 2, _trim) for name in ("trim", "ltrim", "rtrim")},
    **{name: (1, 1, _part) for name in PARTS},
    "ifnull": (2, 2, _coalesce),
    "isnull": (1, 1, _isnull),
    "round": (1, 2, _round),
    "mod": (2, 2, _mod),
    "div": (2, 2, _mod),
    "nullif": (2, 2, _nullif),
    "substr": (2, 3, _substr),
    "substring": (2, 3, _substr),
    "concat": (1, 99, _concat),
    "replace": (3, 3, _replace),
    "date_trunc": (2, 2, _trunc),
    "date_diff": (3, 3, _diff),
    "datediff": (3, 3, _diff),
    "epoch": (1, 1, _epoch),
    "to_timestamp": (1, 1, _to_timestamp),
    "make_timestamp": (3, 6, _make),
    "make_date": (3, 3, _make),
    "date": (1, 1, _date),
    "timestamp": (1, 1, _date),
}

"""What the operators of the language mean: operands checked, converted where they must be, and the type of the result.

Types are worked out from the leaves up. A column's type is known when the caller gave types; without them it is ""
(unknown), and then what a value is decides at run time. Where types are known, conversions become explicit nodes (an
int compared with a float is cast, a text literal beside a timestamp is read as one), which is what makes the
executions of `sql_columns` and `sql_rows` agree to the last bit, and mistakes are found before any data is read.

Rejected: sqlglot's own typing optimiser. It knows twenty engines and none of our rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from tenon.contract.sql_tree import (
    CASTABLE,
    UNITS_US,
    UNKNOWN,
    Node,
    read_date,
    read_timestamp,
)
from tenon.errors import ConfigError, sentence

NUMBERS = ("int", "float", "bool", "null", UNKNOWN)
MOMENTS = ("date", "timestamp", "null", UNKNOWN)
NAMES = {
    "int": "a whole number",
    "float": "a number",
    "text": "text",
    "bool": "true or false",
    "date": "a date",
    "timestamp": "a timestamp",
    "duration": "an interval",
    "null": "null",
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
INTERVAL = f"write interval '1 hour' or interval n minute; units: {', '.join(UNITS_US)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """Builds checked and typed nodes; it carries only what every error must name."""

    text: str
    place: str

    def fail(self, expected: str, got: str, hint: str = "") -> NoReturn:
        """Raise ConfigError at this expression."""
        raise ConfigError(sentence(expected, got, at=f"{self.place}: {short(self.text)}", hint=hint))

    def build(self, op: str, *args: Node) -> Node:
        """Build an operator's node: operands checked and converted, type known where it can be."""
        sign = _SIGNS.get(op, op)
        if op in ("and", "or", "not"):
            return Node(op, tuple(self.condition(sign.upper(), arg) for arg in args), None, "bool")
        if op in ("eq", "ne", "lt", "le", "gt", "ge", "same", "differs"):
            return Node(op, self.unify(sign, args)[0], None, "bool")
        if op == "neg":
            if args[0].op == "literal" and args[0].type in ("int", "float", "duration"):
                value = args[0].value
                return Node("literal", value=None if value is None else -value, type=args[0].type)
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
        if op == "div":
            kind = "float"
            args = [self.convert(arg, "float") if arg.type else arg for arg in args]
        elif kind:
            args = [self.convert(arg, kind) for arg in args]
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
        return self.fail("a timestamp and an interval", f"{self.said(left)} {sign} {self.said(right)}", INTERVAL)

    def convert(self, node: Node, target: str) -> Node:
        """Cast, leaving out casts that change nothing."""
        if node.type == target:
            return node
        if node.type == "null" or (node.op == "literal" and node.value is None):
            return Node("literal", value=None, type=target)
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
                self.fail(f"{NAMES[target]} on both sides of {where}", self.said(texts[0]), f"cast(x AS {target})")
            if target == "date" and any(node.value and not read_date(node.value) for node in texts):
                target = "timestamp"
            done = [self.moment(n, target) if n.type == "text" else self.convert(n, target) for n in nodes]
            return tuple(done), target
        if UNKNOWN in kinds and moments:  # what meets a moment is read as one
            return tuple(self.convert(node, "timestamp") for node in nodes), "timestamp"
        if UNKNOWN in kinds:
            return tuple(nodes), UNKNOWN
        if kinds == {"int", "float"}:
            return tuple(self.convert(node, "float") for node in nodes), "float"
        if len(kinds) > 1:
            told = " and ".join(dict.fromkeys(self.said(node) for node in nodes if node.type != "null"))
            self.fail(f"the same type on both sides of {where}", told, "cast one of them: cast(x AS int)")
        kind = kinds.pop() if kinds else "null"
        return tuple(self.convert(node, kind) for node in nodes), kind

    def moment(self, node: Node, target: str) -> Node:
        if node.value is None:
            return self.convert(node, target)
        value = read_date(node.value) if target == "date" else read_timestamp(node.value)
        if value is None:
            self.fail(NAMES[target], f"'{node.value}'", "write it as '2013-11-01' or '2013-11-01 05:15:00'")
        return Node("literal", value=value, type=target)

    def said(self, node: Node) -> str:
        what = f"column '{node.value}'" if node.op == "column" else f"'{node.value}'" if node.op == "literal" else ""
        return f"{NAMES.get(node.type, 'something')} ({what})" if what else NAMES.get(node.type, "something")

    def condition(self, where: str, node: Node) -> Node:
        if node.type not in ("bool", "null", UNKNOWN):
            self.fail(f"a condition with {where}", self.said(node), "compare it with something: x > 0")
        return self.convert(node, "bool") if node.type == "null" else node

    def number(self, where: str, node: Node) -> Node:
        if node.type not in NUMBERS:
            self.fail(f"numbers with {where}", self.said(node), "cast(x AS float) reads text as a number")
        return self.convert(node, "int") if node.type in ("bool", "null") else node

    def text_arg(self, where: str, node: Node) -> Node:
        if node.type not in ("text", "null", UNKNOWN):
            self.fail(f"text with {where}", self.said(node), "cast(x AS text)")
        return self.convert(node, "text") if node.type == "null" else node

    def moment_arg(self, where: str, node: Node) -> Node:
        if node.op == "literal" and node.type == "text":
            return self.moment(node, "timestamp")
        if node.type not in MOMENTS:
            self.fail(f"a date or timestamp with {where}", self.said(node), "cast(x AS timestamp)")
        return self.convert(node, "timestamp") if node.type == "null" else node

    def constant(self, name: str, node: Node) -> Any:
        if node.op != "literal" or node.value is None:
            self.fail(f"a literal as this argument of {name}()", "an expression", "write the value itself")
        return node.value

    def choose(self, tests: Sequence[Node], values: Sequence[Node]) -> Node:
        """Build CASE: the value of the first test that holds, the last value when none does."""
        values, kind = self.unify("CASE", values)
        pairs = [node for pair in zip(tests, values, strict=False) for node in pair]
        return Node("case", (*pairs, values[-1]), None, kind)


def short(text: str) -> str:
    """Cut text to what fits an error's sentence."""
    return text if len(text) <= 80 else text[:77] + "..."

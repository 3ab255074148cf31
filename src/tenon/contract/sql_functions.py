"""The functions an expression may call: name, how many arguments, and how its node is built.

The table is the whitelist; docs/contract.md lists the same names (a test compares them). A function that reads the
clock or draws at random is not here and will not be: an expression must mean the same offline, online and next year.
Several names for one function are the names several engines have for it.
"""

from __future__ import annotations

from collections.abc import Callable

from tenon.contract.sql_tree import NULL, PARTS, TRUNC, Node
from tenon.contract.sql_types import Meaning
from tenon.errors import nearest

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
_Build = Callable[[Meaning, str, list[Node]], Node]


def _same_number(t: Meaning, name: str, args: list[Node]) -> Node:
    op = {"ceiling": "ceil"}.get(name, name)
    value = t.number(f"{name}()", args[0])
    return Node(op, (value,), None, value.type)


def _float(t: Meaning, name: str, args: list[Node]) -> Node:
    op = {"power": "pow"}.get(name, name)
    return Node(op, tuple(t.convert(t.number(f"{name}()", arg), "float") for arg in args), None, "float")


def _round(t: Meaning, name: str, args: list[Node]) -> Node:
    digits = t.constant(name, args[1]) if len(args) > 1 else 0
    if not isinstance(digits, int) or not 0 <= digits <= 15:
        t.fail("0 to 15 digits in round()", f"'{digits}'", "round(x / 100) * 100 rounds to hundreds")
    value = t.number("round()", args[0])
    return Node("round", (value,), digits, value.type)


def _mod(t: Meaning, name: str, args: list[Node]) -> Node:
    return t.build("mod" if name == "mod" else "floordiv", *args)


def _coalesce(t: Meaning, name: str, args: list[Node]) -> Node:
    nodes, kind = t.unify(f"{name}()", args)
    return Node({"ifnull": "coalesce"}.get(name, name), nodes, None, kind)


def _nullif(t: Meaning, name: str, args: list[Node]) -> Node:
    test = t.build("eq", *args)
    kind = args[0].type
    return Node("case", (test, t.convert(NULL, kind) if kind else NULL, args[0]), None, kind)


def _text(t: Meaning, name: str, args: list[Node]) -> Node:
    op = {"lcase": "lower", "ucase": "upper", "len": "length", "startswith": "starts_with"}.get(name, name)
    op = {"endswith": "ends_with", "suffix": "ends_with", "prefix": "starts_with"}.get(op, op)
    kind = {"lower": "text", "upper": "text", "length": "int"}.get(op, "bool")
    return Node(op, tuple(t.text_arg(f"{name}()", arg) for arg in args), None, kind)


def _trim(t: Meaning, name: str, args: list[Node]) -> Node:
    chars = str(t.constant(name, args[1])) if len(args) > 1 else " \t\n\r\x0b\x0c"
    return Node(name, (t.text_arg(f"{name}()", args[0]),), chars, "text")


def _substr(t: Meaning, name: str, args: list[Node]) -> Node:
    value = t.text_arg(f"{name}()", args[0])
    return Node("substr", (value, *(t.convert(t.number(f"{name}()", arg), "int") for arg in args[1:])), None, "text")


def _concat(t: Meaning, name: str, args: list[Node]) -> Node:
    return Node("concat", tuple(t.convert(arg, "text") for arg in args), None, "text")


def _replace(t: Meaning, name: str, args: list[Node]) -> Node:
    old, new = (t.constant(name, arg) for arg in args[1:])
    if not (isinstance(old, str) and isinstance(new, str)):
        t.fail("text to replace and its replacement", "something else", "replace(x, 'a', 'b')")
    return Node("replace", (t.text_arg("replace()", args[0]),), (old, new), "text")


def _part(t: Meaning, name: str, args: list[Node]) -> Node:
    return Node("part", (t.moment_arg(f"{name}()", args[0]),), PARTS[name], "int")


def _unit(t: Meaning, name: str, node: Node) -> str:
    said = str(t.constant(name, node)).lower()
    unit = said.removesuffix("s")
    if unit not in TRUNC:
        t.fail(f"a unit as the first argument of {name}()", f"'{said}'", nearest(unit, TRUNC))
    return unit


def _trunc(t: Meaning, name: str, args: list[Node]) -> Node:
    return Node("date_trunc", (t.moment_arg(f"{name}()", args[1]),), _unit(t, name, args[0]), "timestamp")


def _diff(t: Meaning, name: str, args: list[Node]) -> Node:
    moments = tuple(t.moment_arg(f"{name}()", arg) for arg in args[1:])
    return Node("date_diff", moments, _unit(t, name, args[0]), "int")


def _epoch(t: Meaning, name: str, args: list[Node]) -> Node:
    value = args[0] if args[0].type == "duration" else t.moment_arg(f"{name}()", args[0])
    return Node("epoch", (value,), None, "float")


def _make(t: Meaning, name: str, args: list[Node]) -> Node:
    if len(args) not in (3, 6):
        t.fail("3 or 6 arguments of make_timestamp()", str(len(args)), "year, month, day, hour, minute, second")
    numbers = [t.number(f"{name}()", arg) for arg in args]
    numbers += [Node("literal", value=0, type="int")] * (6 - len(numbers))
    whole = [*(t.convert(arg, "int") for arg in numbers[:5]), t.convert(numbers[5], "float")]
    made = Node("make_timestamp", tuple(whole), None, "timestamp")
    return t.convert(made, "date") if name == "make_date" else made


def _to_timestamp(t: Meaning, name: str, args: list[Node]) -> Node:
    return Node("to_timestamp", (t.convert(t.number(f"{name}()", args[0]), "float"),), None, "timestamp")


def _date(t: Meaning, name: str, args: list[Node]) -> Node:
    if args[0].op == "literal" and args[0].type == "text":
        return t.moment(args[0], name)
    return t.convert(args[0], name)


def _isnull(t: Meaning, name: str, args: list[Node]) -> Node:
    return Node("is_null", (args[0],), None, "bool")


FUNCTIONS: dict[str, tuple[int, int, _Build]] = {
    **dict.fromkeys(("abs", "floor", "ceil", "ceiling", "sign"), (1, 1, _same_number)),
    **dict.fromkeys(("sqrt", "ln", "exp"), (1, 1, _float)),
    **dict.fromkeys(("pow", "power"), (2, 2, _float)),
    **dict.fromkeys(("coalesce", "least", "greatest"), (1, 99, _coalesce)),
    **dict.fromkeys(("lower", "lcase", "upper", "ucase", "length", "len"), (1, 1, _text)),
    **dict.fromkeys(("contains", "starts_with", "startswith", "ends_with", "endswith"), (2, 2, _text)),
    **dict.fromkeys(("trim", "ltrim", "rtrim"), (1, 2, _trim)),
    **dict.fromkeys(PARTS, (1, 1, _part)),
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


def call(t: Meaning, name: str, args: list[Node]) -> Node:
    """Check a function's name and argument count and build its node."""
    if name not in FUNCTIONS:
        t.fail("a function tenon knows", f"'{name}()'", nearest(name, [*FUNCTIONS, *AGGREGATES]))
    low, high, build = FUNCTIONS[name]
    if not low <= len(args) <= high:
        wanted = f"{low}" if low == high else f"{low} to {high}" if high < 99 else f"{low} or more"
        t.fail(f"{wanted} arguments of {name}()", str(len(args)))
    return build(t, name, args)

"""SQL expressions over one row: the one language of derived columns, row rules and features.

`parse` turns text into an `Expr`, checked and typed; `to_polars` runs it over a frame and `to_function` over one row of
plain values, with equal results to the last bit (a property test holds it). Semantics, where engines differ:

- Null in, null out, but for IS NULL, AND, OR, CASE, coalesce, least, greatest (they pass nulls over) and concat (it
  leaves them out; `||` does not). A rule that is null is neither met nor broken: unknown.
- `/` is always float division. `//` and `div` round down, `%` and `mod` have the sign of the divisor. Whole numbers
  are 64 bits and wrap. Division by zero, the root or logarithm of a negative number and a cast that cannot be made
  are null.
- NaN equals NaN and is larger than every number. round() rounds halves away from zero. true counts as 1 in arithmetic.
- cast to int cuts off the fraction; text is read strictly (`12`, `-1.5e3`, `true`/`yes`/`1`, ISO dates); else null.
- Timestamps have no zone (UTC) and microseconds, years 1 to 9999; a date counts as its midnight. dayofweek and isodow
  both count Monday 1 to Sunday 7; week is the ISO week. date_trunc('week', t) is its Monday. date_diff(unit, a, b)
  counts the borders of the unit between a and b (as DuckDB does); epoch(b) - epoch(a) are the exact seconds.
  Intervals have a fixed length (microsecond to week): `t + interval '90 minutes'`, `t - n * interval '1 day'`,
  `interval n minute`.
- substr counts from 1. trim cuts blanks, tabs and line ends. LIKE knows % and _, and is sensitive to case.
- Nothing depends on the moment of asking: there is no now() and no random().
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tenon.contract import sql_rows
from tenon.contract.sql_parse import parse_node
from tenon.contract.sql_tree import Node
from tenon.errors import ConfigError, sentence

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, slots=True, kw_only=True)
class Expr:
    """A checked expression: its text, the place it is written at (for errors) and its tree of `sql_tree.Node`s."""

    text: str
    place: str
    tree: Node

    @property
    def type(self) -> str:
        """Name the type of its value: a column type, "duration", "null", or "" when the columns' types are unknown."""
        return self.tree.type


def parse(text: str, place: str, types: Mapping[str, str] | None = None) -> Expr:
    """Parse one SQL expression; ConfigError names `place`, what is wrong and the nearest thing that is right.

    With `types` (column name -> type) a column that does not exist and a comparison of unlike types are found here.
    Without it columns are of unknown type and the values decide when the expression runs.
    """
    return Expr(text=text, place=place, tree=_fold(parse_node(text, place, types)))


def columns(expr: Expr) -> set[str]:
    """Return the names of the columns an expression reads."""
    return {node.value for node in expr.tree.walk() if node.op == "column"}


def to_polars(expr: Expr) -> pl.Expr:
    """Return the expression for Polars, lazily evaluated and streaming; ConfigError if it holds an aggregate.

    The frame's columns must have the types of `frame.DTYPES` (Int64, Float64, ..., Datetime("us")); `frame.normal`
    makes them so.
    """
    from tenon.contract import sql_columns

    return sql_columns.build(_scalar(expr))


def to_function(expr: Expr) -> Callable[[Mapping[str, Any]], Any]:
    """Return the expression as a function of one row of plain values; ConfigError if it holds an aggregate.

    Values are what the types say: int, float, str, bool, date, datetime without a zone, None. A row must hold every
    column the expression reads (KeyError otherwise).
    """
    return sql_rows.build(_scalar(expr))


def aggregate_of(expr: Expr) -> tuple[str, Expr | None, bool] | None:
    """Return (name, argument, distinct) when the expression is one aggregate, None otherwise; count(*) has no argument.

    Names are avg, count, sum, min, max, stddev, first and last. FILTER (WHERE ...) is already inside the argument.
    """
    node = expr.tree
    if node.op != "aggregate":
        return None
    name, distinct = node.value
    return name, _below(expr, node.args[0]) if node.args else None, distinct


def split(expr: Expr) -> tuple[Expr, dict[str, tuple[str, Expr | None, bool]]]:
    """Return the expression with each aggregate replaced by a column ``_agg0``, ``_agg1``, ..., and what each one is.

    ``avg(x) / max(y)`` becomes ``_agg0 / _agg1`` with both aggregates as `aggregate_of` gives them; equal ones are
    shared.
    """
    found: dict[Node, str] = {}

    def change(node: Node) -> Node | None:
        if node.op != "aggregate":
            return None
        name = found.setdefault(node, f"_agg{len(found)}")
        return Node("column", value=name, type=node.type)

    outer = _below(expr, expr.tree.swap(change))
    parts = {}
    for node, name in found.items():
        part = aggregate_of(_below(expr, node))
        assert part is not None, node
        parts[name] = part
    return outer, parts


def _fold(node: Node) -> Node:
    """Compute what depends on no column, once; a constant then has the frame's height wherever Polars meets it."""
    if not node.args:
        return node
    folded = Node(node.op, tuple(_fold(arg) for arg in node.args), node.value, node.type)
    if node.op == "aggregate" or any(arg.op != "literal" for arg in folded.args):
        return folded
    return Node("literal", value=sql_rows.build(folded)({}), type=node.type)


def _below(expr: Expr, node: Node) -> Expr:
    return Expr(text=expr.text, place=expr.place, tree=node)


def _scalar(expr: Expr) -> Node:
    for node in expr.tree.walk():
        if node.op == "aggregate":
            raise ConfigError(
                sentence(
                    "an expression over one row",
                    f"the aggregate {node.value[0]}()",
                    at=f"{expr.place}: {expr.text}",
                    hint="a feature aggregates with over= and window=",
                )
            )
    return expr.tree

"""A first draft of a contract from what is in a frame, for a person to review.

What was seen once is no law, so the draft errs on the wide side: ranges are rounded outward to a round number, a set
of allowed values is proposed only for text that clearly repeats, a pattern only where every value has one plain form.
A column with missing values may have them; one without may not. The first column (in file order) whose values are all
there and all different is proposed as the key. `Contract.inferred` stays true until somebody has read it.

Read-only; a few passes of Polars over the frame.
"""

from __future__ import annotations

import math
import re
from typing import Any

import polars as pl

from tenon.contract.agreement import Contract
from tenon.contract.column import Column, ColumnType
from tenon.contract.frame import normal, type_of

MANY_ROWS = 100  # fewer say too little about sets, patterns and uniqueness
FEW_VALUES = 20
SHARE_OF_ROWS = 0.05
LONGEST_PATTERN = 24
LOOK = 10_000  # values that are looked at first
_CLASSES = ("[0-9]", "[A-Z]", "[a-z]", "[0-9A-Z]", "[0-9a-z]", "[A-Za-z]", "[0-9A-Za-z]")


def infer(frame: pl.DataFrame, name: str) -> Contract:
    """Return a contract that the frame keeps, marked as inferred."""
    frame = normal(frame)
    columns, keys = [], []
    for series in frame.get_columns():
        kind = type_of(series.dtype)
        if kind is None:  # a list or a struct: nothing a contract can hold
            continue
        column, whole = _column(series, kind)
        columns.append(column)
        if whole and kind in ("int", "text"):
            keys.append(series.name)
    return Contract(name=name, columns=tuple(columns), key=tuple(keys[:1]), inferred=True)


def _column(series: pl.Series, kind: ColumnType) -> tuple[Column, bool]:
    """Return the column as it looks, and whether its values are all there and all different."""
    there = series.drop_nulls()
    nullable = len(there) < len(series)
    distinct = _distinct(there) if kind in ("int", "text") else 0
    whole = not nullable and len(there) >= MANY_ROWS and distinct == len(there)
    body: dict[str, Any] = {"nullable": nullable or not len(series), "unique": whole}
    if kind in ("int", "float"):
        body["between"] = _range(there, kind)
    elif kind == "text" and len(there) >= MANY_ROWS:
        if distinct <= FEW_VALUES and distinct <= SHARE_OF_ROWS * len(there):
            body["one_of"] = tuple(sorted(there.unique().to_list()))
        else:
            body["pattern"] = _pattern(there)
    return Column(series.name, kind, **body), whole


def _distinct(values: pl.Series) -> int:
    """Count the different values; only those at the beginning where they show that not all differ and many do."""
    begin = values.head(LOOK)
    found = begin.n_unique()
    return found if FEW_VALUES < found < len(begin) else values.n_unique()


def _range(values: pl.Series, kind: str) -> tuple[float, float] | None:
    """Round the smallest and largest value outward to a tenth of a power of ten of the span."""
    finite = values.filter(values.is_finite()) if kind == "float" else values
    low, high = finite.min(), finite.max()
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        return None
    span = max(float(high) - float(low), abs(float(high)) / 10, 1.0 if kind == "int" else 1e-9)
    if not math.isfinite(span):
        return None
    step = 10.0 ** math.floor(math.log10(span))
    bottom, top = math.floor(low / step) * step, math.ceil(high / step) * step
    if kind == "int":
        return (min(math.floor(bottom), low), max(math.ceil(top), high))
    digits = max(0, 1 - math.floor(math.log10(step)))
    return (min(round(bottom, digits), float(low)), max(round(top, digits), float(high)))


def _pattern(values: pl.Series) -> str:
    """Return the plain form that all values have: one class of characters, or the same shape with signs between."""
    lengths = values.str.len_chars()
    shortest, longest = lengths.min(), lengths.max()
    if not isinstance(shortest, int) or not isinstance(longest, int) or not 0 < longest <= LONGEST_PATTERN:
        return ""
    many = f"{{{shortest}}}" if shortest == longest else f"{{{shortest},{longest}}}"
    for each in _CLASSES:
        if longest - shortest <= 1 and _all(values, f"^{each}{many}$"):
            return each + many
    shape = re.sub(r"[0-9]", "9", re.sub(r"[A-Z]", "A", re.sub(r"[a-z]", "a", values[0])))
    runs = re.findall(r"9+|A+|a+|[^9Aa]", shape)
    told = {"9": "[0-9]", "A": "[A-Z]", "a": "[a-z]"}
    pattern = "".join(
        told[run[0]] + (f"{{{len(run)}}}" if len(run) > 1 else "") if run[0] in told else re.escape(run) for run in runs
    )
    return pattern if len(runs) > 1 and _all(values, f"^(?:{pattern})$") else ""


def _all(values: pl.Series, pattern: str) -> bool:
    """Whether all values have a form; looks at a few first."""
    few = values.head(LOOK).str.contains(pattern).all()
    return bool(few and values.str.contains(pattern).all())

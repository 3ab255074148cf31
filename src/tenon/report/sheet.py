"""The sheet on which facts are gathered: every figure is written down together with where it comes from.

A figure without a source cannot be entered, so a page cannot show one. A source names the record (kind and id), the
field in it, the blob that holds the data behind it where there is one, and the formula where the figure was reckoned
from others. A value that is not there is not entered; what is missing and worth saying is written with `lack`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tenon.metric import NAMES as METRIC_NAMES


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a figure comes from."""

    record: str
    id: str
    field: str = ""
    blob: str = ""
    formula: str = ""
    said: str = ""

    def to_dict(self) -> dict[str, str]:
        """Return the origin as plain data."""
        return {
            "record": self.record,
            "id": self.id,
            "field": self.field,
            "blob": self.blob,
            "formula": self.formula,
            "said": self.said,
        }


@dataclass(slots=True)
class Sheet:
    """Figures, tables and gaps as they are gathered; written by `fact` alone."""

    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    missing: list[dict[str, str]] = field(default_factory=list)

    def figure(self, key: str, value: Any, label: str, origin: Origin, *, unit: str = "", of: Any = None) -> None:
        """Enter a figure, with the interval of `of` where it has one; a value that is no finite number is left out."""
        number = finite(value)
        if number is None:
            return
        entry: dict[str, Any] = {"value": number, "unit": unit, "label": label, "source": origin.to_dict()}
        if isinstance(of, Mapping):
            low, high = finite(of.get("low")), finite(of.get("high"))
            if low is not None and high is not None:
                entry |= {"low": low, "high": high}
        self.figures[key] = entry

    def estimates(
        self, key: str, found: Mapping[str, Any], label: str, origin: Origin, field: str, *, unit: str = ""
    ) -> None:
        """Enter every metric of a mapping name -> {value, low, high}, or name -> number."""
        for name, estimate in found.items():
            value = estimate.get("value") if isinstance(estimate, Mapping) else estimate
            place = Origin(record=origin.record, id=origin.id, field=f"{field}.{name}", said=origin.said)
            self.figure(f"{key}.{name}", value, f"{metric_name(name)}, {label}", place, unit=unit, of=estimate)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], origin: Origin) -> None:
        """Enter a table; an empty one is left out."""
        if rows:
            self.tables[name] = {"rows": [dict(row) for row in rows], "source": origin.to_dict()}

    def lack(self, what: str, said: str, todo: str) -> None:
        """Say what is not known, why that matters, and what would make it known."""
        self.missing.append({"what": what, "said": said, "todo": todo})

    def number(self, key: str) -> float | None:
        """Return a figure already entered, or None."""
        entry = self.figures.get(key)
        return None if entry is None else entry["value"]


def finite(value: Any) -> float | int | None:
    """Return a number as it is, and None for what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if math.isfinite(value) else None


def total(values: Iterable[Any]) -> float:
    """Add up what is there; exact to the last digit in any order."""
    return math.fsum(number for value in values if (number := finite(value)) is not None)


def metric_name(name: str) -> str:
    """Write a metric as the field writes it; one that tenon does not know, as it came."""
    return METRIC_NAMES.get(name, name.replace("_", " "))

"""The words of features: a Feature is SQL text with where and when it may look; a Label is what to predict.

One definition serves offline (a point-in-time matrix over a year, by Polars) and online (one request, by compiled
closures): see `feature.compile`. A feature has one of three forms:

    Feature("hour", "hour(sched_dep)")                                          of the row itself
    Feature("wind", "wind_speed", of="weather", within="3h")                    as of: the last row known by then
    Feature("late_7d", "avg(arr_delay > 30)", over="carrier", window="7d")      an aggregate of rows known by then
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tenon.contract.column import Source
from tenon.errors import ConfigError, sentence


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature: its name and SQL, and for the two forms that look elsewhere, where and how far back.

    `of` is the source it reads (default: the model's own). `on` names this row's columns that match the other source's
    key (default: columns of the same names). `over` names the columns that group an aggregate. `window` is how far back
    an aggregate looks and `within` how old the last known row may be: a number and a unit of s, m, h, d or w.
    Text values make a categorical feature, anything else a numeric one.
    `function`, instead of SQL, is called with the Polars columns named in `columns` and returns a column (offline and
    online alike); it must depend on its own row only.
    """

    name: str
    sql: str = ""
    of: str | Source = ""
    on: str | tuple[str, ...] = ()
    over: str | tuple[str, ...] = ()
    window: str = ""
    within: str = ""
    function: Callable[..., Any] | None = None
    columns: tuple[str, ...] = ()
    description: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.of, Source):
            object.__setattr__(self, "of", self.of.name)
        for field in ("on", "over"):
            value = getattr(self, field)
            object.__setattr__(self, field, (value,) if isinstance(value, str) and value else tuple(value))
        if bool(self.sql) == (self.function is not None):
            raise ConfigError(
                sentence("either SQL or a function", "both or neither", at=f"feature '{self.name}'", hint="give one")
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the definition as plain data; a function is named by module and qualified name."""
        named = f"{self.function.__module__}:{self.function.__qualname__}" if self.function else ""
        return {
            "name": self.name,
            "sql": self.sql,
            "of": self.of,
            "on": list(self.on),
            "over": list(self.over),
            "window": self.window,
            "within": self.within,
            "function": named,
            "columns": list(self.columns),
            "description": self.description,
        }


@dataclass(frozen=True, slots=True)
class Label:
    """What to predict, as SQL over the model's source; `known` is the column that says when it became known.

    A true-or-false expression makes a binary task, a number a regression. A null label is a row nothing can be learned
    from (a cancelled flight never arrives): it is left out of training and counted.
    """

    sql: str
    known: str = ""
    name: str = "label"

"""What the cells of a column look like, learnt from rows that read without trouble; `gauge` judges other cells by it.

A repaired row is accepted because its fields fit these profiles, so a profile must say "no" to the neighbour's values
and "yes" to values it has not seen. Cost 0 means that nothing speaks against a cell; MISFIT that it cannot be read as
the column's type. In between, for text: a closed vocabulary, a few shapes (`AB-1234`), a common beginning, the lengths
seen, how cells begin. An empty cell costs by how rare missing values are.

Costs are added up over a row and compared between readings of it, so they are rough logarithms of odds, base 10.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tenon.ingest.detect import shape
from tenon.ingest.values import Reading

MISFIT = 6.0
SHAPES = 4  # a text column with more shapes than this is judged by length and beginning
VOCABULARY = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The look of one column. `shapes` and `words` are empty where the column is too varied for them; `exact` shapes
    keep how many capitals and digits there are. Of plain numbers, `shortest` and `longest` count the digits before the
    point and `decimals` those after it (-1: not known).
    """

    reading: Reading = Reading()
    missing: float = 0.0
    cells: int = 0
    words: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    exact: bool = False
    prefix: str = ""
    shortest: int = 0
    longest: int = 0
    begins: str = ""
    decimals: int = -1

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as plain data."""
        body = {name: getattr(self, name) for name in self.__slots__ if name != "reading"}
        return {**body, "reading": self.reading.to_dict()}

    @staticmethod
    def from_dict(body: Mapping[str, Any]) -> Profile:
        """Rebuild the profile from plain data."""
        plain: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in body.items()
        }
        plain["reading"] = Reading.from_dict(body["reading"])
        return Profile(**plain)

    @property
    def typed(self) -> bool:
        """Whether the column has a type that most text does not fit."""
        return self.reading.type != "text"

    @property
    def open(self) -> bool:
        """Whether the column holds free text: it may contain a delimiter."""
        return not self.typed and not self.words and not self.shapes

    @property
    def empty_cost(self) -> float:
        """Return what an empty cell costs: nothing where most are empty, 3 where none was ever seen."""
        if self.missing > 0.005:
            return -0.5 * math.log10(self.missing)
        return 3.0


def learn(cells: Sequence[str], reading: Reading) -> Profile:
    """Describe a column by its cells."""
    null = set(reading.null)
    full = [cell for cell in cells if cell.strip() and cell not in null]
    missing = 1 - len(full) / len(cells) if cells else 0.0
    base: dict[str, Any] = {"reading": reading, "missing": missing, "cells": len(cells)}
    if reading.type in ("int", "float") and reading.plain:
        return Profile(**{**base, **_digits(full)})
    if reading.type != "text" or not full:
        return Profile(**base)
    sizes = sorted(map(len, full))
    base |= {"shortest": sizes[len(sizes) // 200], "longest": sizes[-1 - len(sizes) // 200]}
    distinct = set(full)
    if len(distinct) <= VOCABULARY and len(full) >= 10 * len(distinct):
        return Profile(**base, words=tuple(sorted(distinct)))
    prefix = _common(min(distinct), max(distinct)) if len(distinct) > 5 else ""
    base["prefix"] = prefix if len(prefix) >= 3 else ""
    for draw, exact in ((_drawn, True), (_shape, False)):
        shapes = Counter(draw(cell) for cell in full)
        kept = [drawn for drawn, count in shapes.most_common(SHAPES) if count >= 0.002 * len(full)]
        telling = all(re.search(r"[^a ]", drawn) for drawn in kept)
        if len(full) >= 10 and sum(shapes[drawn] for drawn in kept) >= 0.995 * len(full) and telling:
            return Profile(**base, shapes=tuple(kept), exact=exact)
    counts = Counter(_begin(cell) for cell in full)
    begins = "".join(_CLASSES[sign] for sign in sorted(counts) if counts[sign] >= 0.002 * len(full))
    return Profile(**base, begins=begins)


def _common(first: str, last: str) -> str:
    """Return what two texts, and all that sort between them, begin with."""
    size = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:size]


def _digits(cells: Sequence[str]) -> dict[str, int]:
    """Return how many digits stand before the point, least and most, and after it, most, of cells that are numbers."""
    bare = [cell.strip(" +-") for cell in cells]
    numbers = [cell.partition(".") for cell in bare if cell.replace(".", "", 1).isdigit()]
    if not numbers:
        return {}
    whole = [len(before) for before, _, _ in numbers]
    return {"shortest": min(whole), "longest": max(whole), "decimals": max(len(after) for _, _, after in numbers)}


def _shape(cell: str) -> str:
    return shape(cell.encode()).decode("utf-8", "replace")


def _drawn(cell: str) -> str:
    """Return the cell with every capital and digit drawn, runs of small letters as one sign: `AB-1234` is `AA-9999`."""
    return re.sub(r"[a-z\u0080-\U0010ffff]+", "a", re.sub(r"\d", "9", re.sub(r"[A-Z]", "A", cell)))


_CLASSES = {
    "A": "A-Z\u00c0-\u00de\u0410-\u042f",
    "a": "a-z\u00df-\u00ff\u0430-\u044f",
    "9": "0-9",
    "_": r"\s\p{P}\p{S}",
}


def _begin(cell: str) -> str:
    first = cell[0]
    if first.isdigit():
        return "9"
    if first.isalpha():
        return "a" if first.islower() else "A"
    return "_"

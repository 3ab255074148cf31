"""How columns of features become the float32 matrix a model reads: learnt once in training, applied everywhere.

Training, the parity check and serving all encode through `Encoding.compile`, so there is one body and no skew. The
encoding is plain data (`to_dict`) and travels in the model's manifest; it needs only NumPy, because serving imports it.

Two forms. `ordinal` is for trees: a number is itself, a category is its rank when levels are ordered by the mean label
in training, shrunk towards the overall mean as if SMOOTHING more rows of each level had been seen (Micci-Barreca,
SIGKDD Explorations 3, 2001; ordering loses nothing for a split on one category: Fisher, JASA 53, 1958). `onehot` is for
linear models: numbers standardised and cut at CLIP deviations, one column for each level with at least RARE rows (the
LEVELS most frequent), one for the rest.

Why not a tree library's own categorical splits: they become one ONNX node for each level, so the graph explodes, and an
unseen level falls wherever a bitset happens to end. A float32 matrix keeps every threshold the same in ONNX.

Missing values: where training saw missing ones, a missing value is NaN (trees) or its own indicator column (linear).
Where training saw none, a model has learnt nothing about them (LightGBM would read NaN as zero), so a missing number
takes the training median, and a missing or unseen level the rank of the overall mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tenon.errors import InputError, quoted, sentence

Matrix = NDArray[np.float32]
Floats = NDArray[np.float64]

SMOOTHING = 20.0  # rows of the overall mean that each level is mixed with
RARE = 20  # a level with fewer rows in training is treated as unseen
LEVELS = 50  # columns one category may take in the onehot form
RANKS = 20_000  # levels one category may rank in the ordinal form: they all travel in the manifest
CLIP = 8.0  # standard deviations: a stray value must not carry a linear score away
NAN = float("nan")

FORMS = ("ordinal", "onehot")
_NUMERIC = frozenset((float, int, bool, type(None), np.float64, np.float32, np.int64, np.int32, np.bool_))
_TEXT = frozenset((str, type(None)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """How one number is encoded; `fill` is NaN where training saw missing values, else the training median."""

    name: str
    fill: float
    median: float = 0.0
    mean: float = 0.0
    scale: float = 1.0

    @property
    def missing(self) -> bool:
        """Whether training saw missing values, so that the model has learnt what they mean."""
        return self.fill != self.fill


@dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    """How one category is encoded: its levels in order, and the rank of a level that training did not see."""

    name: str
    levels: tuple[str, ...]
    unseen: float
    missing: bool  # training saw missing values
    pooled: bool = False  # training saw levels too rare to keep


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """The features of a model in order, and how each becomes columns of the matrix; compile it to use it."""

    form: str
    features: tuple[Number | Category, ...]

    @classmethod
    def learn(
        cls, columns: Mapping[str, Any], y: ArrayLike, kinds: Mapping[str, str], form: str = "ordinal"
    ) -> Encoding:
        """Learn the encoding of the features named in `kinds`, in that order, from training rows and their labels."""
        assert form in FORMS, form
        _demand(columns, kinds)
        labels = np.asarray(y, np.float64)
        features: list[Number | Category] = []
        for name, kind in kinds.items():
            if kind == "category":
                features.append(_learn_category(name, _texts(name, columns[name]), labels, form))
            else:
                features.append(_learn_number(name, _numbers(name, columns[name])))
        return cls(form=form, features=tuple(features))

    @property
    def names(self) -> tuple[str, ...]:
        """Name the features it reads, in order."""
        return tuple(feature.name for feature in self.features)

    @property
    def columns(self) -> tuple[tuple[str, str], ...]:
        """Name each column of the matrix: the feature it comes from, and what it holds ("" for the value itself)."""
        if self.form == "ordinal":
            return tuple((feature.name, "") for feature in self.features)
        found: list[tuple[str, str]] = []
        for feature in self.features:
            if isinstance(feature, Number):
                found.append((feature.name, ""))
            else:
                found += [(feature.name, f"= {level}") for level in feature.levels]
                if feature.pooled:
                    found.append((feature.name, "other"))
            if feature.missing:
                found.append((feature.name, "missing"))
        return tuple(found)

    def places(self) -> dict[str, list[int]]:
        """Return, for each feature, which columns of the matrix it has become."""
        found: dict[str, list[int]] = {name: [] for name in self.names}
        for i, (name, _) in enumerate(self.columns):
            found[name].append(i)
        return found

    @property
    def width(self) -> int:
        """Count the columns of the matrix."""
        return len(self.columns)

    def compile(self) -> Callable[[Mapping[str, Any]], Matrix]:
        """Return the function that turns columns (lists, arrays or Polars series by name) into the matrix.

        The function is pure and may be shared by threads. It raises InputError for a column that is missing, of
        another length, or of values that are no numbers where numbers belong.
        """
        return _ordinal(self) if self.form == "ordinal" else _onehot(self)

    def matrix(self, columns: Mapping[str, Any]) -> Matrix:
        """Encode once; to encode often, compile once and keep the function."""
        return self.compile()(columns)

    def to_dict(self) -> dict[str, Any]:
        """Return the encoding as plain JSON data; NaN is written as null."""
        features: list[dict[str, Any]] = []
        for feature in self.features:
            if isinstance(feature, Number):
                fill = None if feature.missing else feature.fill
                features.append(
                    {
                        "name": feature.name,
                        "kind": "number",
                        "fill": fill,
                        "median": feature.median,
                        "mean": feature.mean,
                        "scale": feature.scale,
                    }
                )
            else:
                features.append(
                    {
                        "name": feature.name,
                        "kind": "category",
                        "levels": list(feature.levels),
                        "unseen": feature.unseen,
                        "missing": feature.missing,
                        "pooled": feature.pooled,
                    }
                )
        return {"form": self.form, "features": features}

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Encoding:
        """Read an encoding back from plain data; unknown fields are skipped, a broken body is an InputError."""
        try:
            if body["form"] not in FORMS:
                raise InputError(sentence(f"a form of encoding ({quoted(FORMS)})", f"'{body['form']}'", at="manifest"))
            return cls(form=body["form"], features=tuple(_read(feature) for feature in body["features"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                sentence(
                    "the encoding of a manifest", f"one that cannot be read ({error!r})", hint="compile the model again"
                )
            ) from error


# ── learning ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _learn_number(name: str, values: Matrix) -> Number:
    finite = values[np.isfinite(values)].astype(np.float64)
    if len(finite) == 0:
        return Number(name=name, fill=NAN)
    median = float(np.median(finite))
    spread = float(finite.std())
    missing = bool(np.isnan(values).any())
    return Number(
        name=name,
        fill=NAN if missing else median,
        median=median,
        mean=float(finite.mean()),
        scale=spread if spread > 0 else 1.0,
    )


def _learn_category(name: str, values: Iterable[str | None], y: Floats, form: str) -> Category:
    index: dict[str | None, int] = {}
    codes = np.fromiter((index.setdefault(value, len(index)) for value in values), np.int64, len(y))
    rows = np.bincount(codes, minlength=len(index))
    sums = np.bincount(codes, weights=y, minlength=len(index))
    overall = float(y.mean())
    missing = None in index
    seen = [(level, at) for level, at in index.items() if level is not None]
    kept = [(level, at) for level, at in seen if rows[at] >= RARE]
    most = LEVELS if form == "onehot" else RANKS
    if len(kept) > most:
        kept = sorted(kept, key=lambda pair: (-rows[pair[1]], pair[0]))[:most]
    shrunk = {level: (sums[at] + SMOOTHING * overall) / (rows[at] + SMOOTHING) for level, at in kept}
    levels = sorted(shrunk, key=lambda level: (shrunk[level], level))
    below = sum(shrunk[level] < overall for level in levels)
    return Category(
        name=name, levels=tuple(levels), unseen=float(below) - 0.5, missing=missing, pooled=len(kept) < len(seen)
    )


def _read(body: Mapping[str, Any]) -> Number | Category:
    """Read one feature of an encoding back from plain data."""
    if body["kind"] == "number":
        fill = body["fill"]
        return Number(
            name=str(body["name"]),
            fill=NAN if fill is None else float(fill),
            median=float(body["median"]),
            mean=float(body["mean"]),
            scale=float(body["scale"]),
        )
    return Category(
        name=str(body["name"]),
        levels=tuple(str(level) for level in body["levels"]),
        unseen=float(body["unseen"]),
        missing=bool(body["missing"]),
        pooled=bool(body.get("pooled", False)),
    )


# ── encoding ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _ordinal(encoding: Encoding) -> Callable[[Mapping[str, Any]], Matrix]:
    """Build the encoder for trees: one matrix column for each feature, in order."""
    names = encoding.names
    wide = len(names)
    numbers = [f.name for f in encoding.features if isinstance(f, Number)]
    slots = [i for i, f in enumerate(encoding.features) if isinstance(f, Number)]
    fills = [(i, f.fill) for i, f in enumerate(encoding.features) if isinstance(f, Number) and not f.missing]
    categories = [
        (i, f.name, _ranks(f).get, f.unseen) for i, f in enumerate(encoding.features) if isinstance(f, Category)
    ]

    def encode(columns: Mapping[str, Any]) -> Matrix:
        rows = _rows(columns, names)
        out = np.empty((rows, wide), np.float32)
        out[:, slots] = _block(columns, numbers, rows).T
        for i, name, rank, unseen in categories:
            out[:, i] = [rank(value, unseen) for value in _texts(name, columns[name])]
        for i, fill in fills:
            column = out[:, i]
            column[np.isnan(column)] = fill
        return out

    return encode


def _ranks(category: Category) -> dict[str | None, float]:
    """Map each level to its rank; a missing value is NaN where training saw some, else as good as unseen."""
    ranks: dict[str | None, float] = {level: float(i) for i, level in enumerate(category.levels)}
    if category.missing:
        ranks[None] = NAN
    return ranks


def _onehot(encoding: Encoding) -> Callable[[Mapping[str, Any]], Matrix]:
    """Build the encoder for linear models: standardised numbers, a column for each level, indicators of missing."""
    names = encoding.names
    slots = {pair: i for i, pair in enumerate(encoding.columns)}
    wide = len(slots)
    numbers = [f for f in encoding.features if isinstance(f, Number)]
    median, mean, scale = (
        np.array([getattr(f, field) for f in numbers], np.float32) for field in ("median", "mean", "scale")
    )
    number_names = [f.name for f in numbers]
    number_slots = [slots[f.name, ""] for f in numbers]
    learnt = [i for i, f in enumerate(numbers) if f.missing]
    learnt_slots = [slots[numbers[i].name, "missing"] for i in learnt]
    categories = [
        (f.name, _slots(f, slots).get, slots.get((f.name, "other"), wide))
        for f in encoding.features
        if isinstance(f, Category)
    ]

    def encode(columns: Mapping[str, Any]) -> Matrix:
        rows = _rows(columns, names)
        out = np.zeros((rows, wide + 1), np.float32)  # the last column takes what has no place of its own
        values = _block(columns, number_names, rows).T
        absent = np.isnan(values)
        np.copyto(values, median, where=absent)
        values -= mean
        values /= scale
        out[:, number_slots] = np.minimum(np.maximum(values, -CLIP), CLIP)
        out[:, learnt_slots] = absent[:, learnt]
        every = np.arange(rows)
        for name, slot, other in categories:
            out[every, [slot(value, other) for value in _texts(name, columns[name])]] = 1.0
        return np.ascontiguousarray(out[:, :wide])

    return encode


def _slots(category: Category, slots: Mapping[tuple[str, str], int]) -> dict[str | None, int]:
    """Map each level to its column; the column after the last is thrown away."""
    found: dict[str | None, int] = {level: slots[category.name, f"= {level}"] for level in category.levels}
    found[None] = slots.get((category.name, "missing"), len(slots))
    return found


# ── reading columns ──────────────────────────────────────────────────────────────────────────────────────────────────


def _demand(columns: Mapping[str, Any], names: Iterable[str]) -> None:
    """Refuse columns that lack a feature."""
    absent = [name for name in names if name not in columns]
    if absent:
        raise InputError(
            sentence(
                f"the features {quoted(absent)}",
                f"columns {quoted(columns) or 'without names'}",
                hint="give every feature a column",
            )
        )


def _rows(columns: Mapping[str, Any], names: Sequence[str]) -> int:
    """Count the rows, the same in every feature's column."""
    try:
        lengths = {len(columns[name]) for name in names}
    except KeyError:
        _demand(columns, names)
        raise
    except TypeError as error:
        single = next(name for name in names if not hasattr(columns[name], "__len__"))
        got = repr(columns[single])[:60]
        raise InputError(
            sentence("a list of values", got, at=f"feature '{single}'", hint="put it in a list")
        ) from error
    if len(lengths) == 1:
        return lengths.pop()
    if not lengths:  # a model that reads no feature still answers once for each row it is given
        return max((len(values) for values in columns.values()), default=0)
    counts = ", ".join(f"'{name}' {len(columns[name]):,}" for name in names[:5])
    raise InputError(
        sentence("columns of one length", f"{counts} rows", hint="give each feature a value for every row")
    )


def _block(columns: Mapping[str, Any], names: Sequence[str], rows: int) -> Matrix:
    """Return the numbers of several features, a row of the block for each; plain lists, as requests hold, in one go.

    What no float32 can hold becomes infinite, as in any float arithmetic.
    """
    values = [columns[name] for name in names]
    with np.errstate(over="ignore"):
        if all(type(column) is list for column in values) and _NUMERIC.issuperset(map(type, chain(*values))):
            try:
                return np.array(values, np.float32).reshape(len(names), rows)
            except OverflowError:
                pass  # a whole number beyond any float: found and named below
        block = np.empty((len(names), rows), np.float32)
        for i, name in enumerate(names):
            try:
                block[i] = _numbers(name, columns[name])
            except OverflowError as error:
                got = "one that is larger"
                raise InputError(sentence("a number a float can hold", got, at=f"feature '{name}'")) from error
    return block


def _numbers(name: str, values: Any) -> Any:
    """Return values that NumPy reads as float32 with NaN for missing, or say which are no numbers."""
    if isinstance(values, list | tuple):
        if not _NUMERIC.issuperset(map(type, values)):
            values = [_number(name, value) for value in values]
        return np.array(values, np.float32)
    array = np.asarray(values.to_numpy() if hasattr(values, "to_numpy") else values)
    if array.dtype.kind == "O":
        return _numbers(name, array.tolist())
    if array.dtype.kind not in "fiub":
        raise InputError(
            sentence(
                "numbers",
                f"values of type {array.dtype}",
                at=f"feature '{name}'",
                hint="turn them into numbers in the feature's SQL",
            )
        )
    return array.astype(np.float32, copy=False)


def _number(name: str, value: Any) -> float:
    """Read one value of an unusual type as a number; text is never read as one."""
    if value is None:
        return NAN
    if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        raise InputError(
            sentence(
                "a number",
                repr(value)[:60],
                at=f"feature '{name}'",
                hint="send it as a number, or null when it is missing",
            )
        )
    return float(value)


def _texts(name: str, values: Any) -> Iterable[str | None]:
    """Return the values as text with None for missing; any scalar is known by how it is written."""
    if isinstance(values, str):
        raise InputError(
            sentence("a list of values", repr(values)[:60], at=f"feature '{name}'", hint="put it in a list")
        )
    if not isinstance(values, list | tuple):
        values = values.to_list() if hasattr(values, "to_list") else np.asarray(values).tolist()
    if _TEXT.issuperset(map(type, values)):
        return values  # type: ignore[no-any-return]
    return map(_text, values, repeat(name))


def _text(value: Any, name: str) -> str | None:
    if value is None or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # 1 and 1.0 are one level, however the number travelled
    if isinstance(value, str | int | float | np.generic):
        return str(value)
    raise InputError(
        sentence("text", repr(value)[:60], at=f"feature '{name}'", hint="send it as text, or null when it is missing")
    )

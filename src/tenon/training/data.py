"""What a trainer is given: three parts of rows in order of time, the features' names and kinds, and the task.

The parts are taken as they come: who splits (by time, in `flow`) decides. `check` says in words what cannot be trained
on before any work is done: an empty side, a label that never varies, a feature that is not there. `Data.matrix` encodes
all three parts with what is learnt from the training part alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tenon.encoding import Encoding, Matrix
from tenon.errors import TrainingError, nearest, quoted, sentence

Task = Literal["binary", "regression"]
Floats = NDArray[np.float64]
KINDS = ("category", "number")


@dataclass(frozen=True, slots=True)
class Part:
    """One side of the split: features `x`, labels `y` (0 and 1 for a binary task) and when each row happened."""

    x: pl.DataFrame
    y: Floats
    time: Any = None

    def __len__(self) -> int:
        return self.x.height

    def every(self, rows: int) -> Part:
        """Return about `rows` rows spread evenly over all, without their times."""
        step = max(1, len(self) // max(rows, 1))
        return Part(self.x.gather_every(step), self.y[::step])

    @property
    def varies(self) -> bool:
        """Say whether the label takes more than one value here; with no rows there is nothing that could vary."""
        return not len(self) or bool(self.y.min() != self.y.max())

    def to_dict(self) -> dict[str, Any]:
        """Return how many rows there are, how many are positive (or their mean), and from when to when."""
        times: list[str | None] = [None, None]
        if self.time is not None and len(self) and len(self.time):
            known = self.time if hasattr(self.time, "min") else np.asarray(self.time)
            times = [_iso(known.min()), _iso(known.max())]
        return {
            "from": times[0],
            "to": times[1],
            "rows": len(self),
            "rate": float(np.mean(self.y)) if len(self) else 0.0,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrices:
    """The three parts as float32 matrices, and the encoding that made them, learnt on the training part."""

    encoding: Encoding
    train: Matrix
    valid: Matrix
    test: Matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """What a trainer is given: `train` to learn from, `valid` to decide when to stop, `test` to be judged on."""

    train: Part
    valid: Part
    test: Part
    names: tuple[str, ...]
    kinds: Mapping[str, str]
    task: Task = "binary"

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        for side, part in self.parts().items():
            object.__setattr__(part, "y", np.asarray(part.y, dtype=np.float64))
            if part.x.height != len(part.y):
                got = f"{len(part.y):,} labels for {part.x.height:,} rows"
                raise TrainingError(sentence("a label for each row", got, at=f"the {side} side"))

    def parts(self) -> dict[str, Part]:
        """Return the three sides by name, in order of time."""
        return {"train": self.train, "valid": self.valid, "test": self.test}

    @property
    def kind_of(self) -> dict[str, str]:
        """Return the kind of each feature in order; a feature without a declared kind is a number unless it is text."""
        return {
            name: self.kinds.get(name) or ("category" if _is_text(self.train.x[name]) else "number")
            for name in self.names
        }

    def encoding(self, form: str = "ordinal") -> Encoding:
        """Learn from the training part how features become numbers: `ordinal` for trees, `onehot` for linear models."""
        return Encoding.learn(self.train.x.to_dict(), self.train.y, self.kind_of, form)

    def matrix(self, form: str = "ordinal") -> Matrices:
        """Encode the three parts; each call learns and encodes again, and holds 4 bytes for each value."""
        encoding = self.encoding(form)
        encode = encoding.compile()
        return Matrices(
            encoding=encoding,
            train=encode(self.train.x.to_dict()),
            valid=encode(self.valid.x.to_dict()),
            test=encode(self.test.x.to_dict()),
        )

    def check(self) -> None:
        """Raise TrainingError, in words, for data that nothing can be learnt from or measured on."""
        if not self.names:
            raise TrainingError(sentence("at least one feature", "none", hint="declare features=[Feature(...), ...]"))
        for side, part in self.parts().items():
            absent = [name for name in self.names if name not in part.x.columns]
            if absent:
                raise TrainingError(
                    sentence(f"the features {quoted(absent)}", "rows without them", at=f"the {side} side")
                )
            if len(part) == 0:
                raise TrainingError(
                    sentence(
                        f"rows on the {side} side of the split",
                        "none",
                        at=_counts(self),
                        hint="move the dates of split= so that each side has rows with a label",
                    )
                )
            bad = int((~np.isfinite(part.y)).sum())
            if bad:
                raise TrainingError(
                    sentence(
                        "a label that is a number in every row",
                        f"{bad:,} missing of {len(part):,}",
                        at=f"the {side} side",
                        hint="leave out rows whose label is not known",
                    )
                )
        for name, kind in self.kinds.items():
            if kind not in KINDS:
                raise TrainingError(
                    sentence("a kind of feature", f"'{kind}'", at=f"feature '{name}'", hint=nearest(kind, KINDS))
                )
        self._check_labels()

    def _check_labels(self) -> None:
        """Refuse labels that are not 0 and 1 where they should be, and a side on which the label never varies."""
        for side, part in self.parts().items():
            if self.task == "binary":
                odd = part.y[(part.y != 0) & (part.y != 1)]
                if len(odd):
                    raise TrainingError(
                        sentence(
                            "labels 0 and 1 for a binary task",
                            f"{odd[0]:g}",
                            at=f"the {side} side",
                            hint="make the label a condition, or the task a regression",
                        )
                    )
            if not part.varies:
                raise TrainingError(
                    sentence(
                        f"a label that varies on the {side} side",
                        f"{len(part):,} rows that are all {part.y[0]:g}",
                        at=_counts(self),
                        hint="nothing can be learnt from it: check the label's SQL, or move the dates of split=",
                    )
                )


def _counts(data: Data) -> str:
    return "the split " + ", ".join(f"{side} {len(part):,}" for side, part in data.parts().items())


def _is_text(column: pl.Series) -> bool:
    return column.dtype in (pl.String, pl.Categorical, pl.Enum)


def _iso(value: Any) -> str:
    """Write a time as ISO 8601 without a zone, whatever held it."""
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]").item()
    return str(value.isoformat()) if hasattr(value, "isoformat") else str(value)

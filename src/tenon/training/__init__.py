"""Training: the simplest model first, watched by a guard, tracked as a run, with intervals on every score.

`experiment` (in `study`) is the whole of it: check the data, ask `fit` whether it can fit, train the baselines and then
the model, measure them on the same rows. `data` and `option` are what a trainer is given, `fitted` what it returns,
`linear` and `boost` the built-in ones. `Run` (in `track`, with `journal`, `packing` and `setting`) remembers without
making anybody wait; `Guard` stops what burns money. LightGBM and scikit-learn are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenon.training.admit import Fit, fit
    from tenon.training.checkpoint import Checkpoints, Keep
    from tenon.training.data import Data, Matrices, Part
    from tenon.training.fitted import Fitted, Linear
    from tenon.training.guard import Guard
    from tenon.training.option import Options
    from tenon.training.order import Order
    from tenon.training.ranks import Ranks
    from tenon.training.resume import Resume
    from tenon.training.study import TRAINERS, Outcome, experiment
    from tenon.training.track import Run
    from tenon.training.trend import Plan, Rules

# public name -> the module that defines it
_HOME = {
    "Checkpoints": "tenon.training.checkpoint",
    "Data": "tenon.training.data",
    "Fit": "tenon.training.admit",
    "Fitted": "tenon.training.fitted",
    "Guard": "tenon.training.guard",
    "Keep": "tenon.training.checkpoint",
    "Linear": "tenon.training.fitted",
    "Matrices": "tenon.training.data",
    "Options": "tenon.training.option",
    "Order": "tenon.training.order",
    "Outcome": "tenon.training.study",
    "Part": "tenon.training.data",
    "Plan": "tenon.training.trend",
    "Ranks": "tenon.training.ranks",
    "Resume": "tenon.training.resume",
    "Rules": "tenon.training.trend",
    "Run": "tenon.training.track",
    "TRAINERS": "tenon.training.study",
    "experiment": "tenon.training.study",
    "fit": "tenon.training.admit",
}

__all__ = [
    "TRAINERS",
    "Checkpoints",
    "Data",
    "Fit",
    "Fitted",
    "Guard",
    "Keep",
    "Linear",
    "Matrices",
    "Options",
    "Order",
    "Outcome",
    "Part",
    "Plan",
    "Ranks",
    "Resume",
    "Rules",
    "Run",
    "experiment",
    "fit",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'tenon.training' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)

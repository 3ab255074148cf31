"""Training: the simplest model first, watched by a guard, tracked as a run, with intervals on every score.

`experiment` (in `study`) is the whole of it: check the data, ask `fit` whether it can fit, train the baselines and then
the model, measure them on the same rows. `data` and `option` are what a trainer is given, `fitted` what it returns,
`linear` and `boost` the built-in ones. `Run` (in `track`, with `journal`, `packing` and `setting`) remembers without
making anybody wait; `Guard` stops what burns money. LightGBM and scikit-learn are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenon.lazy import lazy

if TYPE_CHECKING:
    from tenon.training.admit import Fit, fit
    from tenon.training.checkpoint import Checkpoints, Keep
    from tenon.training.data import Data, Matrices, Part
    from tenon.training.fitted import Fitted, Linear
    from tenon.training.guard import Guard
    from tenon.training.option import Options
    from tenon.training.order import Order
    from tenon.training.pages import keep_memory
    from tenon.training.ranks import Ranks
    from tenon.training.resume import Resume
    from tenon.training.study import TRAINERS, Join, Outcome, accompany, experiment, takes_ranks
    from tenon.training.track import Run
    from tenon.training.trend import Plan, Rules

# module -> the public names it defines
_HOMES = {
    "admit": ("Fit", "fit"),
    "checkpoint": ("Checkpoints", "Keep"),
    "data": ("Data", "Matrices", "Part"),
    "fitted": ("Fitted", "Linear"),
    "guard": ("Guard",),
    "option": ("Options",),
    "order": ("Order",),
    "pages": ("keep_memory",),
    "ranks": ("Ranks",),
    "resume": ("Resume",),
    "study": ("Join", "Outcome", "TRAINERS", "accompany", "experiment", "takes_ranks"),
    "track": ("Run",),
    "trend": ("Plan", "Rules"),
}

__all__ = [
    "TRAINERS",
    "Checkpoints",
    "Data",
    "Fit",
    "Fitted",
    "Guard",
    "Join",
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
    "accompany",
    "experiment",
    "fit",
    "keep_memory",
    "takes_ranks",
]

__getattr__, __dir__ = lazy(__name__, _HOMES)

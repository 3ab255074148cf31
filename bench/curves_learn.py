"""Fit the trees that `tenon.training.hope` asks to learning curves: what is seen at an evaluation, and what came of it.

An example is what `Trend.read` reads at one evaluation of a run that is not worth its price by then, with all mixed
losses, with one and with none; it is true when a later evaluation is. The trees are boosted (LightGBM), held to the
directions of `hope.READ`, and written as nested lists with few digits.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import curves_train
import numpy as np

from tenon.training import hope
from tenon.training.trend import Plan, Rules, Trend

if TYPE_CHECKING:
    from curves import Curve

LOOKS = (4, 5, 6, 7, 8, 9, 10, 12)  # evaluations after which a run is looked at: from a fifth of its steps on
TOLD = (len(curves_train.TURNS), 1, 0)  # mixed losses
CHANCES = (0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1)  # between which what was told is held against what came
ROUNDS = 300
FIT = {
    "objective": "binary",
    "num_leaves": 16,
    "learning_rate": 0.05,
    "min_data_in_leaf": 100,
    "lambda_l2": 5.0,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "monotone_constraints": list(hope.READ.values()),
    "deterministic": True,
    "seed": 20261201,
    "verbosity": -1,
}


def plan(curve: Curve, **said: Any) -> Plan:
    """Return the plan of a run, with the learning rate that it was to have unless something else is said."""
    pace = curves_train.schedule(curve.schedule(), curve.steps)
    return Plan(**{"steps": curve.steps, "constant": curve.constant, "decays": curve.decays(), "rate": pace, **said})


def looks(curve: Curve, told: int) -> Iterator[tuple[int, Any, bool]]:
    """Yield evaluation, what is read at it, and whether the run came to be worth its price, while it is not."""
    planned = plan(curve)
    trend = Trend(Rules(hopeless=False), planned)
    worthy = curve.worthy()
    for i, step in enumerate(curve.at()[: max(LOOKS)] if curve.open() else []):
        value = float(curve.valid[i])
        if worthy[i] or math.isnan(value):
            return
        trend.evaluated(step, value, curve.mixed[i, :told].tolist())
        if i + 1 in LOOKS:
            yield i + 1, trend.read(planned), bool(worthy[i:].any())


def examples(curves: Sequence[Curve]) -> tuple[Any, Any]:
    """Return what is read from the runs (examples, numbers), and whether they came to be worth their price."""
    seen = [one for curve in curves for told in TOLD for one in looks(curve, told)]
    return np.asarray([read for _, read, _ in seen]), np.asarray([came for *_, came in seen])


def said_and_came(curves: Sequence[Curve], at: int) -> list[list[str]]:
    """Return rows that hold the chance that was told at an evaluation against what came, with all mixed losses."""
    forest = hope.Forest.load()
    seen = [look for curve in curves for look in looks(curve, max(TOLD)) if look[0] == at]
    said, came = np.asarray([forest.chance(read) for _, read, _ in seen]), np.asarray([one for *_, one in seen])
    rows = []
    for low, high in itertools.pairwise(CHANCES):
        among = (said >= low) & (said < high)
        if among.any():
            shares = f"{said[among].mean():.2%}", f"{came[among].mean():.2%}"
            rows.append([f"{low:g} to {high:g}", str(among.sum()), *shares])
    return rows


def fitted(curves: Sequence[Curve]) -> hope.Forest:
    """Fit trees to runs."""
    return nested(boosted(*examples(curves)))


def boosted(read: Any, came: Any) -> Any:
    """Fit LightGBM's trees to examples."""
    import lightgbm

    return lightgbm.train(FIT, lightgbm.Dataset(read, came.astype(int)), ROUNDS)


def nested(model: Any) -> hope.Forest:
    """Return LightGBM's trees as the guard asks them."""
    return hope.Forest([_tree(one["tree_structure"]) for one in model.dump_model()["tree_info"]])


def _tree(node: dict[str, Any]) -> Any:
    if "leaf_value" in node:
        return _short(node["leaf_value"], 3)
    below, above = _tree(node["left_child"]), _tree(node["right_child"])
    return [node["split_feature"], _short(node["threshold"], 5), below, above]


def _short(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


def unseen(curves: Sequence[Curve]) -> Callable[[Curve], hope.Forest]:
    """Return for a run the trees that were fitted to all tasks but its own."""
    tasks = sorted({curve.task() for curve in curves})
    told = {task: examples([one for one in curves if one.task() == task]) for task in tasks}

    def without(task: str) -> hope.Forest:
        read, came = zip(*(told[other] for other in tasks if other != task), strict=True)
        return nested(boosted(np.concatenate(read), np.concatenate(came)))

    forests = {task: without(task) for task in tasks}
    return lambda curve: forests[curve.task()]


def text(forest: hope.Forest, numbers: range) -> str:
    """Return the file that comes with tenon: the trees, a line for each, and what they were fitted to."""
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "lightgbm"))
    trees = ",\n".join(json.dumps(tree, separators=(",", ":")) for tree in forest.trees)
    learnt = f"bench/curves.py --learn {numbers.start} {numbers.stop}, {versions}"
    return f'{{"learnt":{json.dumps(learnt)},\n"read":{json.dumps(list(hope.READ))},\n"trees":[\n{trees}\n]}}\n'

"""A boosted forest becomes an ONNX TreeEnsemble, decision for decision, straight from LightGBM's own dump.

The rows a model reads are float32, LightGBM's thresholds are float64, ONNX's are float32. For a float32 value x,
``x <= t`` holds exactly when ``x <= f`` for f the largest float32 not above t; so thresholds are rounded down, not to
the nearest, and no row can fall on the other side. Leaf values are summed in float32, which moves a score by about one
part in a million. (onnxmltools rounds to the nearest; it stays for the forests that this module cannot write.)

A missing value goes where LightGBM sends it: by the split's default when training saw missing values there, else as if
it were zero. Splits on LightGBM's own categories, linear leaves and zero-as-missing are left to onnxmltools.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

# The attributes of ONNX's TreeEnsembleRegressor that hold one value for each node or leaf.
NODES = (
    "treeids",
    "nodeids",
    "featureids",
    "values",
    "modes",
    "truenodeids",
    "falsenodeids",
    "missing_value_tracks_true",
)


def plain(dump: Mapping[str, Any]) -> bool:
    """Say whether this module can write a dumped forest: one output, numeric splits, constant leaves."""
    known = str(dump["objective"]).split()[0] in ("binary", "regression")
    if not known or dump["num_tree_per_iteration"] != 1 or dump["average_output"]:
        return False
    if "sqrt" in str(dump["objective"]):
        return False
    waiting = [tree["tree_structure"] for tree in dump["tree_info"]]
    while waiting:
        node = waiting.pop()
        if "split_feature" not in node:
            if "leaf_coeff" in node:
                return False
            continue
        if node["decision_type"] != "<=" or node["missing_type"] == "Zero":
            return False
        waiting += (node["left_child"], node["right_child"])
    return True


def attributes(dump: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the attributes of a TreeEnsembleRegressor node that scores as the dumped forest does."""
    nodes: dict[str, list[Any]] = {f"nodes_{name}": [] for name in NODES}
    leaves: dict[str, list[Any]] = {f"target_{name}": [] for name in ("treeids", "nodeids", "ids", "weights")}
    for tree_id, tree in enumerate(dump["tree_info"]):
        waiting = [(tree["tree_structure"], 0)]
        taken = 1  # node numbers given so far; children are numbered when their parent is written
        while waiting:
            node, number = waiting.pop()
            if "split_feature" in node:
                row = (
                    tree_id,
                    number,
                    node["split_feature"],
                    _below(node["threshold"]),
                    "BRANCH_LEQ",
                    taken,
                    taken + 1,
                    int(_missing_left(node)),
                )
                waiting += ((node["left_child"], taken), (node["right_child"], taken + 1))
                taken += 2
            else:
                row = (tree_id, number, 0, 0.0, "LEAF", 0, 0, 0)
                for name, value in zip(leaves, (tree_id, number, 0, float(node["leaf_value"])), strict=True):
                    leaves[name].append(value)
            for name, value in zip(nodes, row, strict=True):
                nodes[name].append(value)
    return {**nodes, **leaves}


def _below(threshold: float) -> float:
    """Return the largest float32 that is not above the threshold."""
    with np.errstate(over="ignore"):
        near = np.float32(threshold)
    return float(np.nextafter(near, np.float32(-np.inf)) if float(near) > threshold else near)


def _missing_left(node: Mapping[str, Any]) -> bool:
    return bool(node["default_left"]) if node["missing_type"] == "NaN" else node["threshold"] >= 0.0

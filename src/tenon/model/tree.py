"""A boosted forest becomes an ONNX TreeEnsemble, decision for decision, straight from LightGBM's own dump.

The operator is that of ai.onnx.ml 5, whose thresholds and leaves are tensors. The one before it (TreeEnsembleRegressor)
gives the same bits from a graph 2.6 times as large, because it writes the mode of each node as a word, and takes up to
1.6 times as long for one row.

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

NOWHERE = {"split_feature": 0, "threshold": 0.0, "missing_type": "None"}
LEQ = 0  # BRANCH_LEQ, as the operator's `nodes_modes` has it
SUM = 1  # the operator's `aggregate_function`


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


def attributes(dump: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a TreeEnsemble node that scores as the dumped forest does."""
    from onnx import numpy_helper

    names = ("featureids", "truenodeids", "falsenodeids", "trueleafs", "falseleafs", "missing_value_tracks_true")
    nodes: dict[str, list[int]] = {name: [] for name in names}
    roots: list[int] = []
    splits: list[float] = []
    leaves: list[float] = []

    def put(node: Mapping[str, Any]) -> int:
        """Number a node and write what is its own; where its sides lead is written when they have numbers."""
        splits.append(_below(node["threshold"]))
        nodes["featureids"].append(node["split_feature"])
        nodes["missing_value_tracks_true"].append(int(_missing_left(node)))
        for name in names[1:5]:
            nodes[name].append(0)
        return len(splits) - 1

    for tree in dump["tree_info"]:
        root = tree["tree_structure"]
        if (
            "split_feature" not in root
        ):  # a tree of one leaf: the operator wants a node, so both its sides are that leaf
            root = {**NOWHERE, "left_child": root, "right_child": root}
        waiting = [(root, put(root))]
        roots.append(waiting[0][1])
        while waiting:
            node, number = waiting.pop()
            for child, side in ((node["left_child"], "true"), (node["right_child"], "false")):
                if "split_feature" in child:
                    nodes[f"{side}nodeids"][number] = put(child)
                    waiting.append((child, nodes[f"{side}nodeids"][number]))
                else:
                    nodes[f"{side}nodeids"][number], nodes[f"{side}leafs"][number] = len(leaves), 1
                    leaves.append(float(child["leaf_value"]))
    return {
        **{f"nodes_{name}": values for name, values in nodes.items()},
        "nodes_splits": numpy_helper.from_array(np.array(splits, np.float32)),
        "nodes_modes": numpy_helper.from_array(np.full(len(splits), LEQ, np.uint8)),
        "tree_roots": roots,
        "leaf_targetids": [0] * len(leaves),
        "leaf_weights": numpy_helper.from_array(np.array(leaves, np.float32)),
        "n_targets": 1,
        "aggregate_function": SUM,
        "post_transform": 0,
    }


def _below(threshold: float) -> float:
    """Return the largest float32 that is not above the threshold."""
    with np.errstate(over="ignore"):
        near = np.float32(threshold)
    return float(np.nextafter(near, np.float32(-np.inf)) if float(near) > threshold else near)


def _missing_left(node: Mapping[str, Any]) -> bool:
    return bool(node["default_left"]) if node["missing_type"] == "NaN" else node["threshold"] >= 0.0

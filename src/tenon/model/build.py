"""A trained model becomes one ONNX graph and one manifest: what serving needs, and nothing of what trained it.

The graph reads a float32 matrix and gives a score for each row; the manifest (JSON data) holds all around it: the
task, the features and how they become that matrix, the decision threshold, where the score stands in the output, the
digest of the graph and the versions that made it. Linear models and LightGBM forests are written here, node by node;
scikit-learn estimators go through skl2onnx, torch modules through torch's exporter, ONNX bytes pass as they are. What
has no ONNX form is refused in words: nothing is pickled.

`compile` is pure. It takes a fitted model (anything with `model`, `encoding`, `task`, `trainer`, `threshold` and
`rounds`, as `training.Fitted` has) and the data it was trained on, for the names and kinds of the features.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import numpy as np

from tenon import __version__
from tenon.errors import InputError, missing_extra, sentence
from tenon.model import tree
from tenon.model.predict import FORMAT, open_session

IR_VERSION = 9
OPSET = 17
ML_OPSET = 5  # the first whose forests are tensors
SKLEARN_ML_OPSET = 3  # the last that skl2onnx writes well
RECORDED = ("lightgbm", "scikit-learn", "torch", "onnx", "onnxruntime", "numpy")  # versions kept in the manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """A model as it is kept: the bytes of an ONNX graph and the manifest that goes with them."""

    onnx: bytes
    manifest: Mapping[str, Any]

    @property
    def size_bytes(self) -> int:
        """Return the size of the graph."""
        return len(self.onnx)


def compile(fitted: Any, data: Any) -> Compiled:
    """Compile a fitted model to ONNX with its manifest; InputError when the model has no ONNX form."""
    graph = _writer(fitted)(fitted)
    name, column = _output(graph)
    manifest = {
        "format": FORMAT,
        "task": fitted.task,
        "trainer": fitted.trainer,
        "names": list(data.names),
        "kinds": {name: data.kind_of[name] for name in data.names},
        "encoding": fitted.encoding.to_dict(),
        "threshold": fitted.threshold if fitted.threshold is not None or fitted.task != "binary" else 0.5,
        "output": {"name": name, "column": column, "kind": "probability" if fitted.task == "binary" else "value"},
        "onnx": {"sha256": hashlib.sha256(graph).hexdigest(), "bytes": len(graph), "columns": fitted.encoding.width},
        "versions": _versions(),
    }
    return Compiled(onnx=graph, manifest=manifest)


def _writer(fitted: Any) -> Callable[[Any], bytes]:
    """Return the function that writes this model, found from what the model is."""
    model = fitted.model
    if isinstance(model, bytes):
        return _given
    if hasattr(model, "weights") and hasattr(model, "bias"):
        return _linear
    if hasattr(model, "dump_model"):
        return _forest
    if hasattr(model, "booster_"):
        return _forest
    if hasattr(model, "state_dict") and hasattr(model, "forward"):
        return _torch
    if hasattr(model, "get_params") and hasattr(model, "fit"):
        return _sklearn
    raise InputError(
        sentence(
            "a LightGBM, scikit-learn, torch or linear model, or ONNX bytes",
            f"{type(model).__module__}.{type(model).__qualname__}",
            hint="export it to ONNX and return the bytes",
        )
    )


# ── graphs written here ──────────────────────────────────────────────────────────────────────────────────────────────


def _linear(fitted: Any) -> bytes:
    """Write a linear score and, for log odds, the logistic function."""
    helper, numpy_helper = _onnx()
    weights = np.asarray(fitted.model.weights, np.float32).reshape(-1, 1)
    constants = [
        numpy_helper.from_array(weights, "weights"),
        numpy_helper.from_array(np.array([fitted.model.bias], np.float32), "bias"),
    ]
    nodes = [helper.make_node("MatMul", ["x", "weights"], ["product"])]
    if fitted.model.logit:
        nodes += [
            helper.make_node("Add", ["product", "bias"], ["odds"]),
            helper.make_node("Sigmoid", ["odds"], ["score"]),
        ]
    else:
        nodes.append(helper.make_node("Add", ["product", "bias"], ["score"]))
    return _graph(nodes, len(weights), constants)


def _forest(fitted: Any) -> bytes:
    """Write a LightGBM forest; one with splits of its own kinds goes through onnxmltools."""
    booster = getattr(fitted.model, "booster_", fitted.model)
    rounds = fitted.rounds or booster.best_iteration
    dump = booster.dump_model(num_iteration=rounds if rounds > 0 else None)
    if not tree.plain(dump):
        return _foreign_forest(booster, rounds, fitted.encoding.width)
    helper, _ = _onnx()
    binary = str(dump["objective"]).startswith("binary")
    ensemble = helper.make_node(
        "TreeEnsemble", ["x"], ["sum" if binary else "score"], domain="ai.onnx.ml", **tree.attributes(dump)
    )
    nodes = [ensemble]
    constants = []
    if binary:
        slope = _sigmoid_slope(str(dump["objective"]))
        odds = "sum"
        if slope != 1.0:
            _, numpy_helper = _onnx()
            constants.append(numpy_helper.from_array(np.array([slope], np.float32), "slope"))
            nodes.append(helper.make_node("Mul", ["sum", "slope"], ["odds"]))
            odds = "odds"
        nodes.append(helper.make_node("Sigmoid", [odds], ["score"]))
    return _graph(nodes, dump["max_feature_idx"] + 1, constants)


def _sigmoid_slope(objective: str) -> float:
    """Read the slope from an objective such as ``binary sigmoid:1``."""
    words = dict(word.split(":") for word in objective.split() if ":" in word)
    return float(words.get("sigmoid", 1.0))


def _graph(nodes: list[Any], columns: int, constants: list[Any]) -> bytes:
    """Wrap nodes into a checked graph from `x` (rows by columns) to `score` (rows by 1)."""
    import onnx

    helper, _ = _onnx()
    graph = helper.make_graph(
        nodes,
        "tenon",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["rows", columns])],
        [helper.make_tensor_value_info("score", onnx.TensorProto.FLOAT, ["rows", 1])],
        constants,
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, producer_name="tenon", producer_version=__version__)
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


# ── graphs written by others ─────────────────────────────────────────────────────────────────────────────────────────


def _given(fitted: Any) -> bytes:
    """Pass ONNX bytes through, once ONNX Runtime has opened them."""
    open_session(fitted.model)
    return bytes(fitted.model)


def _foreign_forest(booster: Any, rounds: int, columns: int) -> bytes:
    """Convert the first `rounds` trees with onnxmltools, which itself would take all of them."""
    try:
        from onnxmltools import convert_lightgbm
        from onnxmltools.convert.common.data_types import FloatTensorType
    except ImportError as error:
        raise missing_extra("onnxmltools", "train", "compile this LightGBM model") from error
    if 0 < rounds < booster.num_trees():
        booster = type(booster)(model_str=booster.model_to_string(num_iteration=rounds))
    try:
        model = convert_lightgbm(
            booster, initial_types=[("x", FloatTensorType([None, columns]))], zipmap=False, target_opset=OPSET - 2
        )
    except Exception as error:  # the edge to onnxmltools, which raises whatever it meets
        raise _no_form("this LightGBM model", error) from error
    return bytes(model.SerializeToString())


def _sklearn(fitted: Any) -> bytes:
    try:
        from skl2onnx import to_onnx
    except ImportError as error:
        raise missing_extra("skl2onnx", "train", "compile a scikit-learn model") from error
    estimator = fitted.model
    options = {id(estimator): {"zipmap": False}} if fitted.task == "binary" else None
    sample = np.zeros((1, fitted.encoding.width), np.float32)
    try:
        model = to_onnx(estimator, sample, options=options, target_opset={"": OPSET, "ai.onnx.ml": SKLEARN_ML_OPSET})
    except Exception as error:  # the edge to skl2onnx, which raises whatever it meets
        raise _no_form(type(estimator).__name__, error) from error
    return bytes(model.SerializeToString())


def _torch(fitted: Any) -> bytes:
    """Export a torch module that reads the matrix and answers with probabilities or values."""
    for package in ("torch", "onnxscript"):  # torch's exporter is written in the second
        if find_spec(package) is None:
            raise missing_extra(package, "torch", "compile a torch module")
    import torch

    module = fitted.model.eval()
    sample = torch.zeros((2, fitted.encoding.width), dtype=torch.float32)
    shapes = ({0: torch.export.Dim("rows", min=1)},)
    names = {"input_names": ["x"], "output_names": ["score"]}
    told = logging.getLogger("torch.onnx")
    level = told.level
    try:
        with warnings.catch_warnings():  # the exporter's notes to its own authors, and what else it could have used
            warnings.simplefilter("ignore")
            told.setLevel(logging.ERROR)
            program = torch.onnx.export(module, (sample,), dynamic_shapes=shapes, dynamo=True, verbose=False, **names)
    except Exception as error:  # the edge to torch's exporter, which raises whatever it meets
        raise _no_form(type(module).__name__, error) from error
    finally:
        told.setLevel(level)
    return bytes(program.model_proto.SerializeToString())


def _no_form(what: str, error: BaseException) -> InputError:
    why = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return InputError(
        sentence(
            "a model that ONNX can express",
            f"{what}, which its converter refuses ({why})",
            hint="use another kind of model, or return ONNX bytes",
        )
    )


# ── what is around the graph ─────────────────────────────────────────────────────────────────────────────────────────


def _output(graph: bytes) -> tuple[str, int]:
    """Find the score among a graph's outputs: the last float one, and in it the column of the positive class."""
    for one in reversed(open_session(graph).get_outputs()):
        if one.type in ("tensor(float)", "tensor(double)"):
            wide = one.shape[1] if len(one.shape) == 2 and isinstance(one.shape[1], int) else 1
            if len(one.shape) <= 2 and wide <= 2:
                return str(one.name), wide - 1
    got = ", ".join(f"{one.name} {one.type} {one.shape}" for one in open_session(graph).get_outputs())
    raise InputError(
        sentence(
            "an output with one score, or two class probabilities, for each row",
            got,
            at="the ONNX graph",
            hint="convert with zipmap=False",
        )
    )


def _onnx() -> tuple[Any, Any]:
    try:
        from onnx import helper, numpy_helper
    except ImportError as error:
        raise missing_extra("onnx", "train", "compile a model") from error
    return helper, numpy_helper


def _versions() -> dict[str, str]:
    found = {"tenon": __version__, "python": platform.python_version()}
    for package in RECORDED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

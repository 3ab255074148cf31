"""What training gives: a model, the encoding of its features, and how to ask it.

A trainer of tenon's own returns a `Fitted`. A user's function may return one too, or just the model it trained: a
LightGBM booster, a scikit-learn estimator, a torch module that answers with probabilities (binary) or values, or the
bytes of an ONNX graph. `settle` then pairs it with the encoding of `data.matrix()`, which is what it learnt from.

`Fitted.predict` is the reference that the compiled model is compared with (`model.parity`): it asks the library that
trained the model, not ONNX.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenon.encoding import Encoding, Matrix
from tenon.errors import TrainingError, missing_extra, sentence
from tenon.training.data import Data

Floats = NDArray[np.float64]
CHUNK_ROWS = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """A linear score over the columns of the matrix; `logit` says that the score is log odds."""

    weights: Floats
    bias: float
    logit: bool

    def predict(self, matrix: Matrix) -> Floats:
        """Return probabilities (logit) or values."""
        score = matrix @ self.weights + self.bias
        return _logistic(score) if self.logit else score


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A trained model with all it needs to answer; `threshold` turns a probability into a decision.

    `gain` is how much each feature contributes, shares that sum to one; `notes` is what the trainer wants remembered
    (rounds, parameters), plain data. `rounds` is how many of a booster's trees count (0: all of them).
    """

    model: Any
    encoding: Encoding
    task: str
    trainer: str
    threshold: float | None = None
    rounds: int = 0
    gain: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)

    def predict(self, x: Any) -> Floats:
        """Return a probability (binary) or value (regression) for each row of a frame or mapping of columns."""
        columns = x.to_dict() if hasattr(x, "to_dict") else x
        return self.score(self.encoding.matrix(columns))

    def score(self, matrix: Matrix) -> Floats:
        """Return the same for rows that are encoded already, a chunk at a time."""
        ask = _asker(self.model, self.task, self.rounds)
        parts = [ask(matrix[start : start + CHUNK_ROWS]) for start in range(0, len(matrix), CHUNK_ROWS)]
        return np.concatenate(parts) if parts else np.empty(0)


def settle(made: Any, data: Data, trainer: str) -> Fitted:
    """Return what a trainer made as a Fitted; a bare model is taken to have learnt from ``data.matrix()``."""
    if isinstance(made, Fitted):
        return made
    if made is None:
        raise TrainingError(
            sentence(
                "a trained model",
                "None",
                at=f"trainer '{trainer}'",
                hint="end the function with `return` and the model",
            )
        )
    encoding = data.encoding()
    fitted = Fitted(model=made, encoding=encoding, task=data.task, trainer=trainer)
    wanted = getattr(made, "n_features_in_", encoding.width)
    got = f"one of {wanted}" if wanted != encoding.width else ""
    if hasattr(made, "state_dict"):  # a torch module says how many columns it takes only when it is asked
        try:
            fitted.score(np.zeros((1, encoding.width), np.float32))
        except RuntimeError as error:
            got = str(error).partition("\n")[0]
    if got:
        hint = "return Fitted(model=..., encoding=...) with the encoding it learnt from"
        wanted = f"a model of the {encoding.width} columns of data.matrix()"
        raise TrainingError(sentence(wanted, got, at=f"trainer '{trainer}'", hint=hint))
    return fitted


# ── asking foreign models ────────────────────────────────────────────────────────────────────────────────────────────


def _asker(model: Any, task: str, rounds: int) -> Callable[[Matrix], Floats]:
    """Return the function that asks the model, found from what the model can do."""
    if isinstance(model, Linear):
        return model.predict
    if isinstance(model, bytes):
        return _onnx(model)
    booster = getattr(model, "booster_", model)  # LightGBM's estimators hold one
    if hasattr(booster, "dump_model"):
        return lambda matrix: np.asarray(booster.predict(matrix, num_iteration=rounds or None), np.float64)
    if hasattr(model, "state_dict") and hasattr(model, "forward"):
        return _torch(model)
    if task == "binary" and hasattr(model, "predict_proba"):
        return lambda matrix: np.asarray(model.predict_proba(matrix), np.float64)[:, 1]
    if task != "binary" and hasattr(model, "predict"):
        return lambda matrix: np.asarray(model.predict(matrix), np.float64).reshape(-1)
    raise TrainingError(
        sentence(
            "a booster, an estimator with predict_proba or predict, a torch module or ONNX bytes",
            f"{type(model).__module__}.{type(model).__qualname__} for a {task} task",
            hint="return one of these, or Fitted(model=..., encoding=...)",
        )
    )


def _torch(module: Any) -> Callable[[Matrix], Floats]:
    try:
        import torch
    except ImportError as error:
        raise missing_extra("torch", "torch", "ask a torch module") from error

    def ask(matrix: Matrix) -> Floats:
        module.eval()
        with torch.no_grad():
            return np.asarray(module(torch.from_numpy(matrix)).numpy(), np.float64).reshape(-1)

    return ask


def _onnx(graph: bytes) -> Callable[[Matrix], Floats]:
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def ask(matrix: Matrix) -> Floats:
        found = np.asarray(session.run(None, {name: matrix})[-1], np.float64)
        return found[:, -1] if found.ndim == 2 else found

    return ask


def _logistic(score: Floats) -> Floats:
    """Return 1 / (1 + exp(-score)) without overflow."""
    small = np.exp(-np.abs(score))
    return np.where(score >= 0, 1 / (1 + small), small / (1 + small))

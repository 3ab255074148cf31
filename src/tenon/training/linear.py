"""Constant, linear and logistic models: the baselines that anything dearer has to beat, in NumPy alone.

Logistic regression is fitted by Newton's method (iteratively reweighted least squares; Hastie, Tibshirani and
Friedman, "The Elements of Statistical Learning", 4.4.1) with a ridge of strength RIDGE on all weights but the bias,
which is scikit-learn's C=1. With standardised columns it converges in 5 to 8 steps, each two passes over the matrix;
a step that does not lower the loss is halved. Linear regression is one solve of the same normal equations.

The Hessian is summed in float32 over chunks (it only chooses the direction), the gradient in float64 (it decides where
to stop). scikit-learn's lbfgs gives the same weights to four digits and takes longer, and the baselines then need an
extra; a parity test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tenon.encoding import Encoding, Matrix
from tenon.training.data import Data
from tenon.training.fitted import Fitted, Linear
from tenon.training.option import Options

Floats = NDArray[np.float64]
RIDGE = 1.0
STEPS = 50
TOLERANCE = 1e-9  # of the loss of a row: Newton's decrement below which another step changes nothing
CHUNK_ROWS = 4_096


def constant(data: Data, run: Any, options: Options) -> Fitted:
    """Predict the training mean for every row: what a model is worth is what it adds to this."""
    mean = float(data.train.y.mean())
    binary = data.task == "binary"
    bias = float(np.log(mean / (1 - mean))) if binary else mean
    return Fitted(
        model=Linear(weights=np.zeros(0), bias=bias, logit=binary),
        encoding=Encoding(form="ordinal", features=()),
        task=data.task,
        trainer="constant",
        notes={"value": mean},
    )


def linear(data: Data, run: Any, options: Options) -> Fitted:
    """Fit ridge regression on standardised numbers and one-hot categories, in one solve."""
    encoding = data.encoding("onehot")
    matrix = encoding.matrix(data.train.x.to_dict())
    y = data.train.y
    hessian, moment = np.zeros((encoding.width + 1,) * 2), np.zeros(encoding.width + 1)
    with _one_thread():
        for rows, chunk in _chunks(matrix):
            wide = _with_bias(chunk.astype(np.float64))
            hessian += wide.T @ wide
            moment += wide.T @ y[rows]
    weights = _solve(hessian, moment, encoding.width)
    return _fitted(data, encoding, matrix, weights, trainer="linear")


def logistic(data: Data, run: Any, options: Options) -> Fitted:
    """Fit ridge logistic regression on standardised numbers and one-hot categories, logging the loss of each step."""
    encoding = data.encoding("onehot")
    matrix = encoding.matrix(data.train.x.to_dict())
    y = data.train.y
    weights = np.zeros(encoding.width + 1)
    weights[-1] = np.log(y.mean() / (1 - y.mean()))
    with _one_thread():
        weights = _newton(matrix, y, weights, run, options)
    return _fitted(data, encoding, matrix, weights, trainer="logistic")


# ── the arithmetic ───────────────────────────────────────────────────────────────────────────────────────────────────


def _newton(matrix: Matrix, y: Floats, weights: Floats, run: Any, options: Options) -> Floats:
    """Take Newton steps from `weights` until one changes nothing, or the guard says stop."""
    width = len(weights) - 1
    loss = _loss(matrix, y, weights)
    for step in range(1, min(STEPS, options.rounds) + 1):
        hessian, gradient = _derivatives(matrix, y, weights)
        gradient[:-1] += RIDGE * weights[:-1]
        direction = _solve(hessian, gradient, width)
        size = 1.0
        while (tried := _loss(matrix, y, weights - size * direction)) > loss and size > 1e-6:
            size /= 2
        if tried <= loss:
            weights, loss = weights - size * direction, tried
        run.log(step, train_loss=loss / len(y))
        if not options.guard.step(step, loss=loss / len(y)) or gradient @ direction < TOLERANCE * len(y):
            break
    return weights


def _one_thread() -> AbstractContextManager[Any]:
    """Hold BLAS to one thread while the block runs, where threadpoolctl (it comes with scikit-learn) is installed.

    Its threads wait by spinning. On chunks of this size two gain next to nothing on an idle machine (1.5 s against
    1.6 s for the flights example) and lose by ten on a busy one (up to 25 s).
    """
    try:
        limits = import_module("threadpoolctl").threadpool_limits
    except ImportError:
        return nullcontext()
    return cast("AbstractContextManager[Any]", limits(1, user_api="blas"))


def _fitted(data: Data, encoding: Encoding, matrix: Matrix, weights: Floats, *, trainer: str) -> Fitted:
    """Wrap the weights; a feature's gain is the spread of what it adds to the score over the training rows."""
    spread = {name: float((matrix[:, at] @ weights[at]).std()) for name, at in encoding.places().items()}
    total = sum(spread.values()) or 1.0
    return Fitted(
        model=Linear(weights=weights[:-1], bias=float(weights[-1]), logit=trainer == "logistic"),
        encoding=encoding,
        task=data.task,
        trainer=trainer,
        gain={name: value / total for name, value in spread.items()},
        notes={"ridge": RIDGE, "columns": encoding.width},
    )


def _chunks(matrix: Matrix) -> Iterator[tuple[slice, Matrix]]:
    for start in range(0, len(matrix), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        yield rows, matrix[rows]


def _with_bias(chunk: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([chunk, np.ones((len(chunk), 1), chunk.dtype)], axis=1)


def _score(chunk: Matrix, weights: Floats) -> Floats:
    return np.asarray(chunk.astype(np.float64) @ weights[:-1] + weights[-1])


def _loss(matrix: Matrix, y: Floats, weights: Floats) -> float:
    """Return the summed log loss and ridge."""
    total = RIDGE / 2 * float(weights[:-1] @ weights[:-1])
    for rows, chunk in _chunks(matrix):
        score = _score(chunk, weights)
        total += float(np.logaddexp(0, score).sum() - y[rows] @ score)
    return total


def _derivatives(matrix: Matrix, y: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Return Hessian and gradient of the log loss, without the ridge."""
    width = len(weights)
    hessian, gradient = np.zeros((width, width), np.float32), np.zeros(width)
    for rows, chunk in _chunks(matrix):
        p = 1 / (1 + np.exp(-np.clip(_score(chunk, weights), -700, 700)))
        gradient += _with_bias(chunk.astype(np.float64)).T @ (p - y[rows])
        wide = _with_bias(chunk)
        hessian += (wide * (p * (1 - p)).astype(np.float32)[:, None]).T @ wide
    return hessian.astype(np.float64), gradient


def _solve(hessian: Floats, moment: Floats, width: int) -> Floats:
    """Solve the ridge equations; the ridge makes them solvable but for the bias, which rows always give."""
    ridged = hessian.copy()
    ridged[np.arange(width), np.arange(width)] += RIDGE
    ridged[width, width] += 1e-12
    return np.asarray(np.linalg.solve(ridged, moment), np.float64)

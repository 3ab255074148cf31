"""The one body that scores: columns in, a score for each row out, the same for a file, a request and a parity check.

A Predictor is an ONNX graph and its manifest. `score` encodes the columns (`tenon.encoding`, learnt in training and
kept in the manifest) and runs the graph in chunks of CHUNK_ROWS, so memory stays flat; one row is a batch of one and
takes some 40 microseconds for 20 features, and gives the same bits as in a batch. A Predictor may be shared between
threads: the encoder is pure and ONNX Runtime's `run` may be called concurrently. One thread inside each call is the
default, because a server has a request for every core already; `threads` helps with large files, and moves the last
digit, because trees are then summed in another order.

Importing this module brings NumPy and ONNX Runtime and nothing of training: serving starts with it. The manifest
carries the digest of its graph, so a graph that was damaged or swapped is found before it answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from tenon.encoding import Encoding
from tenon.errors import CorruptError, InputError, sentence

Floats = NDArray[np.float64]
CHUNK_ROWS = 65_536
FORMAT = 1  # of the manifest


@dataclass(frozen=True, slots=True, eq=False)
class Predictor:
    """A compiled model that answers; make it with `Predictor.load`."""

    manifest: Mapping[str, Any]
    _encode: Any
    _run: Any
    _input: str
    _output: tuple[str]
    _column: int

    @classmethod
    def load(cls, onnx: bytes, manifest: Mapping[str, Any], *, threads: int = 1) -> Predictor:
        """Load a graph with its manifest; CorruptError when it is not the graph the manifest names, InputError when
        either cannot be read."""
        if int(manifest.get("format", 0)) > FORMAT:
            got = f"format {manifest['format']}"
            raise InputError(sentence(f"a manifest of format {FORMAT} or older", got, hint="update tenon to serve it"))
        try:
            named, output = manifest["onnx"]["sha256"], manifest["output"]
            encoding = Encoding.from_dict(manifest["encoding"])
            name, column = str(output["name"]), int(output["column"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                sentence("a model's manifest", f"one that cannot be read ({error!r})", hint="compile the model again")
            ) from error
        digest = hashlib.sha256(onnx).hexdigest()
        if digest != named:
            raise CorruptError(
                sentence(
                    f"the graph {named[:12]} that the manifest names",
                    f"{len(onnx):,} bytes with the digest {digest[:12]}",
                    hint="restore the file from a copy, or compile the model again",
                )
            )
        session = open_session(onnx, threads=threads)
        if name not in [one.name for one in session.get_outputs()]:
            raise InputError(
                sentence(f"an output '{name}'", f"{[o.name for o in session.get_outputs()]}", at="the graph")
            )
        return cls(manifest, encoding.compile(), session.run, session.get_inputs()[0].name, (name,), column)

    @property
    def names(self) -> tuple[str, ...]:
        """Name the features it reads."""
        return tuple(self.manifest["names"])

    @property
    def threshold(self) -> float | None:
        """Return the score from which a row is flagged; None for a regression."""
        found = self.manifest.get("threshold")
        return None if found is None else float(found)

    def score(self, columns: Mapping[str, Any]) -> Floats:
        """Return a probability (binary) or value (regression) for each row.

        `columns` maps each feature to a sequence of values, None where missing; more columns than features do no harm.
        Raises InputError for a feature that is missing, of another length, or not a number where it must be one.
        """
        return self.score_matrix(self._encode(columns))

    def score_matrix(self, matrix: NDArray[np.float32]) -> Floats:
        """Return the same for rows that are encoded already."""
        if len(matrix) <= CHUNK_ROWS:
            return self._chunk(matrix)
        starts = range(0, len(matrix), CHUNK_ROWS)
        return np.concatenate([self._chunk(matrix[start : start + CHUNK_ROWS]) for start in starts])

    def _chunk(self, matrix: NDArray[np.float32]) -> Floats:
        if not len(matrix):
            return np.empty(0)
        (found,) = self._run(self._output, {self._input: matrix})
        return np.asarray(found[:, self._column] if found.ndim == 2 else found, np.float64)


def open_session(graph: bytes, *, threads: int = 1) -> onnxruntime.InferenceSession:
    """Open an ONNX graph of one float32 matrix for scoring on the processor, or say in words why it cannot be."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # faults come back as errors; the library's own log would go to a user's terminal
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the edge to ONNX Runtime, whose error types share no public base
        why = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputError(
            sentence(
                "an ONNX graph", f"{len(graph):,} bytes that cannot be read ({why})", hint="compile the model again"
            )
        ) from error
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 2:
        got = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
        raise InputError(sentence("one input, a float32 matrix of rows by columns", got or "none", at="the ONNX graph"))
    return session

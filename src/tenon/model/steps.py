"""OnnxSteps runs a graph that takes a state and returns the next one, such as a recurrent network, one row at a time.

    steps = OnnxSteps.load(graph, {"inputs": {"x": ["speed", "load"]}, "state": {"h": "h_next"}, "output": "y"})
    predictions, state = steps.step(steps.first(), rows)

The manifest says which columns make each input (float32, in order), which output is the next value of which state
input, and which output is the prediction (its first element). The state before anything is zeros of the shape that
the graph declares, where a dimension without a number is 1. Everything else about it (`tenon.serving.stateful`) is
the server's. One thread computes, so that the same state and rows give the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from tenon.errors import InputError, nearest, sentence

State = Mapping[str, NDArray[Any]]
DTYPES: Mapping[str, Any] = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(int64)": np.int64, "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class OnnxSteps:
    """A graph with state, ready to step; make it with `OnnxSteps.load`."""

    inputs: Mapping[str, tuple[tuple[str, ...], tuple[int, ...]]]  # input -> its columns, its shape
    state: Mapping[str, str]  # state input -> the output that is its next value
    output: str
    _first: State
    _session: Any

    @classmethod
    def load(cls, graph: bytes, manifest: Mapping[str, Any]) -> OnnxSteps:
        """Open a graph; InputError says which input, state or output does not fit the manifest."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the edge to ONNX Runtime, whose error types share no public base
            got = f"{len(graph):,} bytes that cannot be read ({str(error).splitlines()[0][:200]})"
            raise InputError(sentence("an ONNX graph", got, at="model.onnx")) from error
        try:
            columns = {str(name): tuple(map(str, each)) for name, each in dict(manifest["inputs"]).items()}
            state = {str(name): str(after) for name, after in dict(manifest["state"]).items()}
            output = str(manifest["output"])
        except (KeyError, TypeError, ValueError) as error:
            form = '{"inputs": {INPUT: [COLUMN, ...]}, "state": {INPUT: OUTPUT}, "output": OUTPUT}'
            raise InputError(sentence(form, f"a manifest without {error}", at="the manifest")) from error
        declared = {one.name: one for one in session.get_inputs()}
        outputs = [one.name for one in session.get_outputs()]
        for name in (*columns, *state):
            if name not in declared:
                raise InputError(sentence("an input of the graph", f"'{name}'", at="the manifest",
                                          hint=nearest(name, declared)))  # fmt: skip
        for name in (*state.values(), output):
            if name not in outputs:
                raise InputError(sentence("an output of the graph", f"'{name}'", at="the manifest",
                                          hint=nearest(name, outputs)))  # fmt: skip
        missing = sorted(set(declared) - set(columns) - set(state))
        if missing:
            raise InputError(sentence("every input of the graph", f"nothing for '{missing[0]}'", at="the manifest"))
        first = {name: np.zeros(_shape(declared[name].shape), _dtype(declared[name])) for name in state}
        shapes = {name: (each, _row_shape(declared[name], len(each))) for name, each in columns.items()}
        return cls(shapes, state, output, first, session)

    @property
    def columns(self) -> tuple[str, ...]:
        """Name the columns it reads, each once."""
        return tuple(dict.fromkeys(name for names, _ in self.inputs.values() for name in names))

    def first(self) -> State:
        """Return the state before the first row: zeros."""
        return self._first

    def step(self, state: State, rows: Sequence[Mapping[str, Any]]) -> tuple[list[float], State]:
        """Return a prediction for each row, in order, and the state after them; a missing value is NaN."""
        wanted = [self.output, *self.state.values()]
        now, predictions = dict(state), []
        for row in rows:
            feed: dict[str, NDArray[Any]] = dict(now)
            for name, (columns, shape) in self.inputs.items():
                values = [np.nan if row.get(column) is None else float(row[column]) for column in columns]
                feed[name] = np.array(values, np.float32).reshape(shape)
            found = self._session.run(wanted, feed)
            predictions.append(float(np.asarray(found[0]).reshape(-1)[0]))
            now = dict(zip(self.state, found[1:], strict=True))
        return predictions, now


def _shape(declared: Sequence[Any]) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) and size > 0 else 1 for size in declared)


def _dtype(declared: Any) -> Any:
    if declared.type not in DTYPES:
        raise InputError(sentence("a state of numbers", declared.type, at=f"input '{declared.name}'"))
    return DTYPES[declared.type]


def _row_shape(declared: Any, count: int) -> tuple[int, ...]:
    """Return the shape of one row of an input, which must have as many places as it has columns."""
    shape = _shape(declared.shape)
    if declared.type != "tensor(float)" or int(np.prod(shape)) != count:
        got = f"{declared.type} {declared.shape} for {count}"
        raise InputError(sentence("a float32 input with a place for each column", got, at=f"input '{declared.name}'"))
    return shape

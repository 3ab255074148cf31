"""Smaller and quicker forms of a compiled model: made, measured on real rows, and chosen only when one is worth it.

From one ONNX graph come up to three candidates. `int8` keeps weights of matrix products in eight bits and multiplies in
whole numbers (ONNX Runtime's dynamic quantisation); `fp16` keeps them in sixteen and multiplies as before; `short` is
the first half of a forest's trees. A candidate may answer only when it is proven in the owner's units, against the
full graph on the same rows: it changes the sides of at most `Gate.flips` of the decisions, and what it loses of the
gate's metric is below a tenth of that metric's own uncertainty on these rows, so that it cannot be told from which rows
happened to be tested. A bound on the largest difference would say nothing: a score may move by 0.01 and nobody notice.

A proven candidate is chosen when the full graph is too slow or too large for its gate, or when it is a tenth quicker,
or a quarter and a megabyte smaller, and no slower. Latencies are measured in turns, row by row, so that a busy machine
is unfair to none. All candidates are kept with their figures, also those that were refused.

What was measured holds where it was measured: eight-bit products saturate on some processors and not on others, and the
runtime's kernels change. So a choice has the `key` of its place (processor features, ONNX Runtime, threads), and a
machine with another key answers with the full graph until candidates have been tried there.

Tried and left out: halves as thresholds of trees (a threshold that moves sends rows the other way), and computing in
halves (this processor has no such kernels; the runtime converts back and forth and takes as long as for whole floats).
"""

from __future__ import annotations

import hashlib
import logging
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from tenon import metric
from tenon.errors import InputError, sentence
from tenon.model.build import Compiled
from tenon.model.gate import Gate
from tenon.model.predict import Predictor, open_session
from tenon.model.proof import Latency, spread
from tenon.model.version import known

log = logging.getLogger("tenon.model")
FULL = "full"
NOISE_SHARE = 0.1  # of the half width of the metric's own interval: what a variant may lose of the metric
QUICKER = 0.9  # of the full graph's time: a variant is quicker from here on
SMALLER = 0.75  # of the full graph's bytes: a variant is smaller from here on, when it also saves SAVED_BYTES
SAVED_BYTES = 1_000_000
SLOWER = 1.05  # of the full graph's time: a smaller variant may take as much
LEAST_WEIGHTS = 1_024  # a graph with fewer has nothing to gain
ROWS = 50_000  # a variant is proven on, at most
LATENCY_ROWS = 300
BATCH_ROWS = 256
BATCHES = 12
CPU = (
    "avx", "avx2", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx512f", "avx_vnni", "amx_bf16", "amx_int8", "asimd",
    "asimddp", "asimdhp", "bf16", "f16c", "fma", "i8mm", "sve",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a measurement holds for: the processor's features, the runtime and its threads."""

    machine: str
    cpu: tuple[str, ...]
    onnxruntime: str
    threads: int = 1

    @classmethod
    def here(cls, threads: int = 1) -> Place:
        """Return this machine's place; reads /proc/cpuinfo where there is one."""
        import onnxruntime

        return cls(
            machine=platform.machine(), cpu=_features(), onnxruntime=str(onnxruntime.__version__), threads=threads
        )

    @property
    def key(self) -> str:
        """Return the key under which what was built for this place is kept."""
        words = (self.machine, *self.cpu, self.onnxruntime, str(self.threads))
        return hashlib.sha256("\n".join(words).encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """Return the place as plain data."""
        return {**asdict(self), "cpu": list(self.cpu)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One form of a model: what it takes, what it changes against the full graph, and whether it may answer."""

    name: str
    said: str
    proven: bool
    chosen: bool
    size_bytes: int
    p50_ms: float
    p99_ms: float
    rows_per_s: float  # in batches of BATCH_ROWS
    usd_per_1000: float  # predictions, one row at a time
    max_abs: float = 0.0
    flips: int = 0
    gain: Mapping[str, float] | None = None  # of the gate's metric, against the full graph: value, low, high
    allowed_loss: float | None = None
    digest: str = ""  # the first 16 digits of its graph's SHA-256; a whole one would name a blob

    @property
    def latency(self) -> Latency:
        """Return what one row takes."""
        return Latency(p50_ms=self.p50_ms, p99_ms=self.p99_ms, rows=LATENCY_ROWS)

    def to_dict(self) -> dict[str, Any]:
        """Return the variant as plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Variant:
        """Read a variant back from plain data; unknown fields are skipped."""
        return cls(**known(cls, body))


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """Every form of one model that was tried at one place, and the one that answers there."""

    place: Place
    metric: str
    rows: int
    variants: Sequence[Variant]
    compiled: Compiled  # the chosen one

    @property
    def chosen(self) -> Variant:
        """Return the variant that answers."""
        return next(one for one in self.variants if one.chosen)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the graph as plain data."""
        return {
            "key": self.place.key,
            "place": self.place.to_dict(),
            "metric": self.metric,
            "rows": self.rows,
            "chosen": self.chosen.name,
            "variants": [one.to_dict() for one in self.variants],
        }


def build_variants(compiled: Compiled, x: Any, y: Any, gate: Gate, *, usd_per_core_hour: float = 0.0) -> Built:
    """Try every variant of a compiled model on the rows of a frame with their labels, and choose; writes nothing."""
    columns = x.to_dict(as_series=False) if hasattr(x, "to_dict") else {name: list(of) for name, of in x.items()}
    count = len(y)
    if not count:
        raise InputError(sentence("rows to prove variants on", "none", hint="use the validation or test part"))
    asked = spread(count, min(count, ROWS))
    columns = {name: [values[i] for i in asked] for name, values in columns.items()}
    truth = np.asarray(y, np.float64)[asked]
    name = gate.metric or metric.METRICS[compiled.manifest["task"]][0]
    forms = {FULL: compiled, **candidates(compiled)}
    predictors = {form: Predictor.load(one.onnx, one.manifest) for form, one in forms.items()}
    taken = _measured(predictors, columns)
    judge = _Judge.of(gate, name, compiled.manifest, truth, predictors[FULL].score(columns))
    price = usd_per_core_hour / 3600
    found = []
    for form, one in forms.items():
        single, batch_s = taken[form]
        p50, p99 = np.quantile(single, [0.5, 0.99]) / 1e6
        found.append(
            Variant(
                **(judge.proof(predictors[form].score(columns)) if form != FULL else {"said": "", "proven": True}),
                name=form, chosen=False, size_bytes=one.size_bytes, p50_ms=float(p50), p99_ms=float(p99),
                rows_per_s=BATCH_ROWS / batch_s, usd_per_1000=float(p50) * price,
                digest=one.manifest["onnx"]["sha256"][:16],
            )
        )  # fmt: skip
    best = _best(found, gate)
    told = [replace(one, chosen=one is best, said=_told(one, best, found, gate)) for one in found]
    return Built(place=Place.here(), metric=name, rows=len(truth), variants=told, compiled=forms[best.name])


# ── making them ──────────────────────────────────────────────────────────────────────────────────────────────────────


def candidates(compiled: Compiled) -> dict[str, Compiled]:
    """Return the variants that this graph has, by name; none where there is nothing to gain, or `onnx` is absent.

    What a converter or the runtime refuses is left out, and logged: a model without variants is a model all the same.
    """
    if find_spec("onnx") is None:
        return {}
    import onnx

    graph = onnx.ModelProto.FromString(compiled.onnx)
    found: dict[str, Compiled] = {}
    for name, make in MAKERS.items():
        try:
            made = make(graph)
            if made is not None:
                open_session(made)
        except Exception:  # the edge to converters, which raise whatever they meet
            log.warning("the variant '%s' could not be made", name, exc_info=True)
            continue
        if made is not None:
            digest = hashlib.sha256(made).hexdigest()
            about = {**compiled.manifest["onnx"], "sha256": digest, "bytes": len(made)}
            found[name] = Compiled(onnx=made, manifest={**compiled.manifest, "onnx": about, "variant": name})
    return found


def _weights(graph: Any) -> list[Any]:
    """Return the weights of a graph's matrix products, when there are enough of them to matter."""
    products = {name for node in graph.graph.node if node.op_type in ("MatMul", "Gemm", "Conv") for name in node.input}
    found = [one for one in graph.graph.initializer if one.name in products and one.data_type == one.FLOAT]
    return found if sum(int(np.prod(one.dims)) for one in found) >= LEAST_WEIGHTS else []


def _int8(graph: Any) -> bytes | None:
    """Keep weights in eight bits and multiply in whole numbers; activations are quantised as they come."""
    if not _weights(graph):
        return None
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    given = onnx.ModelProto()
    given.CopyFrom(graph)
    given.metadata_props.add(
        key="onnx.quant.pre_process", value="onnxruntime.quant"
    )  # or the library writes to a user's terminal
    with tempfile.TemporaryDirectory(prefix="tenon-") as folder:
        out = Path(folder) / "int8.onnx"
        quantize_dynamic(given, out, weight_type=QuantType.QInt8)
        made = out.read_bytes()
    if not any(node.op_type == "MatMulInteger" for node in onnx.ModelProto.FromString(made).graph.node):
        return None
    return made


def _fp16(graph: Any) -> bytes | None:
    """Keep weights in halves; the runtime turns them into floats once, when it opens the graph."""
    weights = {one.name for one in _weights(graph)}
    if not weights:
        return None
    import onnx
    from onnx import helper, numpy_helper

    made = onnx.ModelProto()
    made.CopyFrom(graph)
    kept, casts = [], []
    for one in made.graph.initializer:
        values = numpy_helper.to_array(one)
        if one.name not in weights or np.abs(values).max(initial=0) > np.finfo(np.float16).max:
            kept.append(one)
            continue
        kept.append(numpy_helper.from_array(values.astype(np.float16), f"{one.name}.half"))
        casts.append(helper.make_node("Cast", [kept[-1].name], [one.name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *made.graph.node]
    del made.graph.initializer[:], made.graph.node[:]
    made.graph.initializer.extend(kept)
    made.graph.node.extend(nodes)
    return bytes(made.SerializeToString()) if casts else None


def _short(graph: Any) -> bytes | None:
    """Keep the first half of a forest's trees, which is what a boosted model was half way through its training."""
    forest = next((node for node in graph.graph.node if node.op_type == "TreeEnsemble"), None)
    if forest is None:
        return None
    given = {one.name: one for one in forest.attribute}
    roots = list(given["tree_roots"].ints)
    if len(roots) < 2:
        return None
    import onnx
    from onnx import helper, numpy_helper

    trees = (len(roots) + 1) // 2
    nodes = roots[trees]
    sides = [
        (given[f"nodes_{side}nodeids"].ints[i], given[f"nodes_{side}leafs"].ints[i])
        for side in ("true", "false")
        for i in range(nodes)
    ]
    leaves = 1 + max(number for number, leaf in sides if leaf)
    made = onnx.ModelProto()
    made.CopyFrom(graph)
    kept = next(node for node in made.graph.node if node.op_type == "TreeEnsemble")
    del kept.attribute[:]
    for name, one in given.items():
        value = helper.get_attribute_value(one)
        size = {"tree_roots": trees}.get(name, leaves if name.startswith("leaf_") else nodes)
        if isinstance(value, onnx.TensorProto):
            value = numpy_helper.from_array(numpy_helper.to_array(value)[:size])
        elif isinstance(value, list):
            value = value[:size]
        kept.attribute.append(helper.make_attribute(name, value))
    return bytes(made.SerializeToString())


MAKERS: dict[str, Callable[[Any], bytes | None]] = {"fp16": _fp16, "int8": _int8, "short": _short}


# ── holding them against the full graph ──────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judge:
    """What a variant is held against: the truth, the full graph's scores, and how much may change."""

    task: str
    metric: str
    threshold: float | None
    truth: np.ndarray[Any, Any]
    full: np.ndarray[Any, Any]
    flips: float
    allowed_loss: float | None

    @classmethod
    def of(
        cls, gate: Gate, name: str, manifest: Mapping[str, Any], truth: np.ndarray[Any, Any], full: np.ndarray[Any, Any]
    ) -> _Judge:
        task = manifest["task"]
        try:
            own = metric.evaluate(task, truth, full, names=[name])[name]
            allowed = NOISE_SHARE * (own.high - own.low) / 2
        except InputError:  # these rows cannot tell the metric: only what changes nothing can be proven on them
            allowed = None
        return cls(
            task=task, metric=name, threshold=manifest["threshold"], truth=truth, full=full, flips=gate.flips,
            allowed_loss=allowed,
        )  # fmt: skip

    def proof(self, scores: np.ndarray[Any, Any]) -> dict[str, Any]:
        """Return whether scores may stand for those of the full graph, the figures, and what is wrong in words."""
        rows = len(scores)
        flips = 0
        if self.threshold is not None:
            flips = int(((scores >= self.threshold) != (self.full >= self.threshold)).sum())
        found: dict[str, Any] = {
            "max_abs": float(np.abs(scores - self.full).max()),
            "flips": flips,
            "allowed_loss": self.allowed_loss,
        }
        wrong = []
        if flips > self.flips * rows:
            wrong.append(f"{flips:,} of {rows:,} decisions change, {int(self.flips * rows):,} allowed")
        if self.allowed_loss is None:
            if found["max_abs"]:
                wrong.append(f"these rows cannot tell {self.metric}")
        else:
            gain = metric.compare(self.task, self.truth, scores, self.full, names=[self.metric])[self.metric]
            found["gain"] = gain.to_dict()
            if gain.value < -self.allowed_loss:
                wrong.append(f"{self.metric} is {-gain.value:.2g} worse, {self.allowed_loss:.2g} allowed")
        return {**found, "said": "; ".join(wrong), "proven": not wrong}


def _measured(
    predictors: Mapping[str, Predictor], columns: Mapping[str, Sequence[Any]]
) -> dict[str, tuple[np.ndarray[Any, Any], float]]:
    """Time each predictor in turns: nanoseconds of single rows, and the seconds of one batch."""
    rows = len(next(iter(columns.values())))
    requests = [{name: [values[i]] for name, values in columns.items()} for i in spread(rows, LATENCY_ROWS)]
    batch = {name: [values[i] for i in spread(rows, BATCH_ROWS)] for name, values in columns.items()}
    single = {name: np.empty(len(requests)) for name in predictors}
    whole = {name: np.empty(BATCHES) for name in predictors}
    for predictor in predictors.values():
        for request in requests[:30]:
            predictor.score(request)
        predictor.score(batch)
    clock = time.perf_counter_ns
    for i, request in enumerate(requests):
        for name, predictor in predictors.items():
            start = clock()
            predictor.score(request)
            single[name][i] = clock() - start
    for i in range(BATCHES):
        for name, predictor in predictors.items():
            start = clock()
            predictor.score(batch)
            whole[name][i] = clock() - start
    return {name: (single[name], float(np.quantile(whole[name], 0.25)) / 1e9) for name in predictors}


# ── choosing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _best(found: Sequence[Variant], gate: Gate) -> Variant:
    """Return the variant to answer with: the full graph, unless a proven one is worth it."""
    full = found[0]
    proven = [one for one in found if one.proven]
    fitting = [one for one in proven if not _misses(one, gate)]
    if fitting and full not in fitting:  # the gate asks for more than the full graph can do
        return min(fitting, key=lambda one: (one.p50_ms, one.size_bytes))
    worth = [one for one in fitting if one is not full and _worth(one, full)]
    return min(worth, key=lambda one: (one.p50_ms, one.size_bytes)) if worth else full


def _misses(one: Variant, gate: Gate) -> str:
    """Say what of the gate's latency and size a variant misses; "" for nothing."""
    if gate.p99_ms is not None and one.p99_ms > gate.p99_ms:
        return f"one row takes {one.p99_ms:.3g} ms at the 99th percentile, {gate.p99_ms:g} ms allowed"
    if gate.max_size_mb is not None and one.size_bytes > gate.max_size_mb * 1e6:
        return f"it takes {one.size_bytes / 1e6:.2f} MB, {gate.max_size_mb:g} MB allowed"
    return ""


def _worth(one: Variant, full: Variant) -> bool:
    """Say whether a variant is enough quicker or smaller than the full graph to answer in its place."""
    batch = full.rows_per_s / one.rows_per_s  # of the full graph's time
    single = one.p50_ms / full.p50_ms
    if max(single, batch) > SLOWER:
        return False
    saved = full.size_bytes - one.size_bytes
    small = saved >= SAVED_BYTES and one.size_bytes <= SMALLER * full.size_bytes
    return min(single, batch) <= QUICKER or small


def _told(one: Variant, best: Variant, found: Sequence[Variant], gate: Gate) -> str:
    """Say in one sentence why a variant answers, or does not."""
    full, others = found[0], len(found) > 1
    if not one.proven:
        return f"refused: {one.said}"
    single, batch = one.p50_ms / full.p50_ms, full.rows_per_s / one.rows_per_s
    size = one.size_bytes / full.size_bytes
    versus = f"{single:.2f} of the full graph's time for one row, {batch:.2f} in batches, {size:.2f} of its size"
    if one is full:
        misses = _misses(one, gate)
        if misses and one is not best:
            return f"not chosen: {misses}"
        return "what was trained, exactly" + ("" if others else "; nothing in it could be made smaller")
    if one is best:
        return f"chosen: proven, and takes {versus}"
    misses = _misses(one, gate)
    if misses:
        return f"not chosen: {misses}"
    return f"not chosen: proven, but takes {versus}"


def _features() -> tuple[str, ...]:
    """Name the processor's features that decide which kernels run; what the platform calls it where they are hidden."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return (platform.processor(),)
    line = next((line for line in text.splitlines() if line.lower().startswith(("flags", "features"))), "")
    words = set(line.partition(":")[2].split())
    return tuple(name for name in CPU if name in words)

"""A trained model becomes a version: compiled to ONNX, proven equal, measured, and held against its gate.

`compile` (in `build`, with `tree` for forests) writes the graph and its manifest, `parity` and `latency` (in `proof`)
hold it against the model it came from, `build_variants` (in `variant`) tries smaller and quicker forms of it, `decide`
(in `gate`) says whether it may serve, and `Version` is the record of all that. `Predictor` (in `predict`) is the one
body that scores, here and in serving. No trained model of `training` is known by its type: what it can do decides, so
neither room imports the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenon.lazy import lazy

if TYPE_CHECKING:
    from tenon.model.build import Compiled, compile
    from tenon.model.gate import Check, Decision, Gate, decide
    from tenon.model.predict import Predictor
    from tenon.model.proof import Latency, Parity, latency, parity
    from tenon.model.variant import Built, Variant, build_variants
    from tenon.model.version import Version

# module -> the public names it defines
_HOMES = {
    "build": ("Compiled", "compile"),
    "gate": ("Check", "Decision", "Gate", "decide"),
    "predict": ("Predictor",),
    "proof": ("Latency", "Parity", "latency", "parity"),
    "variant": ("Built", "Variant", "build_variants"),
    "version": ("Version",),
}

__all__ = [
    "Built",
    "Check",
    "Compiled",
    "Decision",
    "Gate",
    "Latency",
    "Parity",
    "Predictor",
    "Variant",
    "Version",
    "build_variants",
    "compile",
    "decide",
    "latency",
    "parity",
]

__getattr__, __dir__ = lazy(__name__, _HOMES)

"""A trained model becomes a version: compiled to ONNX, proven equal, measured, and held against its gate.

`compile` (in `build`, with `tree` for forests) writes the graph and its manifest, `parity` and `latency` (in `proof`)
hold it against the model it came from, `build_variants` (in `variant`) tries smaller and quicker forms of it, `decide`
(in `gate`) says whether it may serve, and `Version` is the record of all that. `Predictor` (in `predict`) is the one
body that scores, here and in serving. No trained model of `training` is known by its type: what it can do decides, so
neither room imports the other.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenon.model.build import Compiled, compile
    from tenon.model.gate import Check, Decision, Gate, decide
    from tenon.model.predict import Predictor
    from tenon.model.proof import Latency, Parity, latency, parity
    from tenon.model.variant import Built, Variant, build_variants
    from tenon.model.version import Version

# public name -> the module that defines it
_HOME = {
    "Built": "tenon.model.variant",
    "Check": "tenon.model.gate",
    "Compiled": "tenon.model.build",
    "Decision": "tenon.model.gate",
    "Gate": "tenon.model.gate",
    "Latency": "tenon.model.proof",
    "Parity": "tenon.model.proof",
    "Predictor": "tenon.model.predict",
    "Variant": "tenon.model.variant",
    "Version": "tenon.model.version",
    "build_variants": "tenon.model.variant",
    "compile": "tenon.model.build",
    "decide": "tenon.model.gate",
    "latency": "tenon.model.proof",
    "parity": "tenon.model.proof",
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


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'tenon.model' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)

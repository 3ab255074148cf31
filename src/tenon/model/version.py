"""A Version: a compiled model with everything it came from, as one record.

Lineage is by name: the run that trained it, the features and datasets it read, the graph and manifest that answer, the
proof and the gate's decision. The id is the first 12 digits of the hash of what made it, so the same run compiled twice
is the same version; `number` is what people say (version 3) and is given by who stores it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any


def known(kind: type[Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a kind of record knows of plain data: unknown fields are left out, absent ones default."""
    return {one.name: body[one.name] for one in fields(kind) if one.name in body}


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version of a model; the fields are those of a `version` record."""

    id: str
    model: str
    number: int
    at: float
    run: str
    features: str = ""
    datasets: Mapping[str, str] = field(default_factory=dict)
    onnx: str = ""
    manifest: str = ""
    parity: Mapping[str, Any] = field(default_factory=dict)
    gate: Mapping[str, Any] = field(default_factory=dict)
    latency: Mapping[str, Any] = field(default_factory=dict)
    size_bytes: int = 0
    threshold: float | None = None
    usd: float = 0.0

    @staticmethod
    def name(model: str, run: str, onnx: str, manifest: str) -> str:
        """Return the id of the version that this run and these digests make."""
        return hashlib.sha256("\n".join((model, run, onnx, manifest)).encode()).hexdigest()[:12]

    @property
    def allowed(self) -> bool:
        """Say whether the gate allowed it to become production."""
        return bool(self.gate.get("allowed"))

    def to_dict(self) -> dict[str, Any]:
        """Return the version as plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Version:
        """Read a version back from plain data; unknown fields are skipped and absent ones take their defaults."""
        return cls(**known(cls, body))

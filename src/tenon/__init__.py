"""tenon: raw files to a served, watched, costed model. The public names, resolved when first used; nothing else."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenon.config import Config
    from tenon.contract.column import Column, Source
    from tenon.feature.words import Feature, Label
    from tenon.finding import Finding
    from tenon.ledger import Budget
    from tenon.limits import Limits
    from tenon.model.gate import Gate
    from tenon.project import Model, Project, Words
    from tenon.store import Store

__version__ = "0.1.0"

# public name -> the module that defines it
_HOME = {
    "Budget": "tenon.ledger",
    "Column": "tenon.contract.column",
    "Config": "tenon.config",
    "Feature": "tenon.feature.words",
    "Finding": "tenon.finding",
    "Gate": "tenon.model.gate",
    "Label": "tenon.feature.words",
    "Limits": "tenon.limits",
    "Model": "tenon.project",
    "Project": "tenon.project",
    "Source": "tenon.contract.column",
    "Store": "tenon.store",
    "Words": "tenon.project",
}

__all__ = [
    "Budget",
    "Column",
    "Config",
    "Feature",
    "Finding",
    "Gate",
    "Label",
    "Limits",
    "Model",
    "Project",
    "Source",
    "Store",
    "Words",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'tenon' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)

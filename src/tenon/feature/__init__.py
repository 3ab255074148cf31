"""Features: one definition, a point-in-time matrix offline and a vector online, equal to the bit.

`words` holds what users write (Feature, Label), `compile` checks it and makes the `plan`, `featureset` runs it;
`matrix` and `history` are the offline engine, `online`, `memory` and `series` the online state, `facts` and `exact`
what both share. Names are resolved on first use: declaring a Feature imports no Polars.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tenon.feature.words import Feature, Label

if TYPE_CHECKING:
    from tenon.feature.featureset import FeatureSet
    from tenon.feature.online import Online

_HOMES = {"FeatureSet": "featureset", "Online": "online"}
__all__ = ["Feature", "FeatureSet", "Label", "Online"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tenon.feature' has no attribute '{name}'")
    return getattr(importlib.import_module(f"tenon.feature.{_HOMES[name]}"), name)

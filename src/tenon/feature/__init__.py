"""Features: one definition, a point-in-time matrix offline and a vector online, equal to the bit.

`words` holds what users write (Feature, Label), `compile` checks it and makes the `plan`, `featureset` runs it;
`matrix` and `history` are the offline engine, `online`, `memory` and `series` the online state, `facts` and `exact`
what both share. Names are resolved on first use: declaring a Feature imports no Polars.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenon.feature.words import Feature, Label
from tenon.lazy import lazy

if TYPE_CHECKING:
    from tenon.feature.featureset import FeatureSet
    from tenon.feature.online import Online

_HOMES = {"featureset": ("FeatureSet",), "online": ("Online",)}
__all__ = ["Feature", "FeatureSet", "Label", "Online"]

__getattr__, __dir__ = lazy(__name__, _HOMES)

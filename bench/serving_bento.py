"""The BentoML service of `bench/serving_peers.py`: a module of its own, because BentoML imports what it serves."""

from __future__ import annotations

import bentoml
import serving_peers


@bentoml.service(workers=1, traffic={"timeout": 30}, logging={"access": {"enabled": False}}, metrics={"enabled": False})
class Scorer:
    """One model behind one endpoint that takes the row's columns as its parameters."""

    def __init__(self) -> None:
        self.score = serving_peers.scorer(serving_peers.FOLDER)

    @bentoml.api
    def predict(
        self,
        x0: float, x1: float, x2: float, x3: float, x4: float, x5: float, x6: float, x7: float, x8: float, x9: float,
        x10: float, x11: float, x12: float, x13: float, x14: float, x15: float, x16: float, x17: float, x18: float,
        x19: float,
    ) -> float:  # fmt: skip
        """Return the score of one row."""
        given = (x0, x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11, x12, x13, x14, x15, x16, x17, x18, x19)
        return float(self.score(dict(zip(serving_peers.NAMES, given, strict=True))))

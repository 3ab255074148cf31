"""The LitServe API of `bench/serving_peers.py`: a module of its own, because LitServe's worker imports its class."""

from __future__ import annotations

import os
from pathlib import Path

import litserve
import serving_peers


class Scorer(litserve.LitAPI):  # type: ignore[misc]
    """One model; rows are decoded, scored and encoded as LitServe's first example does."""

    def setup(self, device: str) -> None:
        """Load the model in the worker."""
        self.score = serving_peers.scorer(Path(os.environ["TENON_BENCH_FOLDER"]))

    def decode_request(self, request: dict[str, float]) -> dict[str, float]:
        """Take the row as it came."""
        return request

    def predict(self, x: dict[str, float]) -> float:
        """Score it."""
        return float(self.score(x))

    def encode_response(self, output: float) -> dict[str, float]:
        """Answer with the score."""
        return {"score": output}

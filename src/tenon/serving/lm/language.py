"""A Language is one served language model: what was exported, and the engine that runs it.

It stands beside a `Service` of a tabular model in `build_app`: the app starts it, closes it, and opens the OpenAI doors
when there is at least one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tenon.errors import missing_extra
from tenon.limits import Admission, Answer, LanguageLimits
from tenon.serving.lm.bundle import Bundle
from tenon.serving.lm.engine import Engine
from tenon.serving.lm.gauge import Gauge


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """One language model, ready to be started."""

    bundle: Bundle
    engine: Engine
    gauge: Gauge
    limits: LanguageLimits
    at: float = 0.0  # Unix seconds when it was made or registered

    @property
    def name(self) -> str:
        """Return what clients call it."""
        return self.bundle.name

    @property
    def version(self) -> str:
        """Return the digest that names its files."""
        return self.bundle.version

    def start(self) -> None:
        """Load the weights and begin; takes a second or so, and is for no event loop."""
        self.engine.start()

    def close(self) -> None:
        """End what is being generated and let the thread go."""
        self.engine.close()

    def admit(self, texts: int) -> Admission:
        """Say whether so many more texts may come now."""
        limits = self.limits
        if texts > limits.requests:
            reason = f"expected at most {limits.requests} texts in a request, got {texts}"
            return Admission(answer=Answer.NEVER, reason=reason)
        if self.engine.load + texts > limits.requests:
            reason = f"expected room for {texts} more, got {self.engine.load} texts being answered; come back"
            return Admission(answer=Answer.LATER, reason=reason, retry_after_s=1.0)
        return Admission(answer=Answer.OK)


def open_language(
    where: Path | str | Mapping[str, Path],
    *,
    name: str = "",
    limits: LanguageLimits = LanguageLimits(),
    device: str = "cpu",
    at: float = 0.0,
) -> Language:
    """Read an exported language model, ready to be served; the weights are loaded when it starts.

    Raises MissingError when the extra `torch` is not installed, InputError or ConfigError when the export is not right.
    """
    for module in ("torch", "safetensors"):
        if find_spec(module) is None:
            raise missing_extra(module, "torch", "serve a language model")
    bundle = Bundle.open(where, name=name)
    gauge = Gauge()
    engine = Engine(bundle, limits, gauge, device=device)
    return Language(bundle=bundle, engine=engine, gauge=gauge, limits=limits, at=at)

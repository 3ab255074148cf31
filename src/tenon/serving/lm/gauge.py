"""Gauge counts what a language model's engine does, as plain numbers, and writes them out for Prometheus on a scrape.

The engine's thread adds, a scrape reads; a number read while it changes is at worst one step old. The share of prompt
tokens that were found in the cache is written beside its two counters, because people look at it and dashboards of
one number cannot divide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from tenon.serving.meter import Histogram

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128)
RECENT = 0.9  # weight of the past in the speed, for each second that was worked

HISTOGRAMS = {
    "queue": ("queue_seconds", "From a request's arrival to its first step."),
    "first": ("first_token_seconds", "From a request's arrival to its first token."),
    "between": ("between_tokens_seconds", "From one token of a text to its next."),
    "steps": ("step_seconds", "Computing one step of the batch."),
    "batch": ("batch_texts", "Texts computed together in a step."),
}
COUNTERS = {
    "prompt_tokens": "Tokens of prompts.",
    "cached_tokens": "Tokens of prompts whose keys and values were in the cache.",
    "new_tokens": "Tokens generated.",
    "gave_way": "Texts that gave their pages to an earlier one and were computed again.",
    "failures": "Steps that failed.",
}
GAUGES = {
    "running": "Texts being worked on.",
    "waiting": "Texts waiting for their first step.",
    "pages": "Pages of the key-value cache.",
    "pages_available": "Pages that nobody uses now.",
    "pages_kept": "Pages that hold a beginning for others to share.",
}


class Gauge:
    """What one engine has done since it began."""

    __slots__ = ("_past_rows", "_past_s", "batch", "between", "cached_tokens", "ends", "failures", "first", "gave_way",
                 "new_tokens", "prompt_tokens", "queue", "steps")  # fmt: skip

    def __init__(self) -> None:
        self.queue, self.first = Histogram(SECONDS), Histogram(SECONDS)
        self.between, self.steps = Histogram(SECONDS), Histogram(SECONDS)
        self.batch = Histogram(TEXTS)
        self.prompt_tokens = self.cached_tokens = self.new_tokens = self.gave_way = self.failures = 0
        self.ends: dict[str, int] = {}
        self._past_rows = self._past_s = 0.0

    def stepped(self, texts: int, rows: int, seconds: float) -> None:
        """Count a step: how many texts and rows it computed, and how long it took."""
        self.batch.observe(texts)
        self.steps.observe(seconds)
        fade = RECENT**seconds
        self._past_rows = self._past_rows * fade + rows
        self._past_s = self._past_s * fade + seconds

    def ended(self, how: str) -> None:
        """Count a text by how it ended."""
        self.ends[how] = self.ends.get(how, 0) + 1

    @property
    def tokens_per_s(self) -> float:
        """Return how many tokens, read or generated, the engine computes in a second of work, of late."""
        return self._past_rows / self._past_s if self._past_s else 0.0

    @property
    def hit_ratio(self) -> float:
        """Return which share of all prompt tokens was in the cache."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


class Scrape:
    """A Prometheus collector of the language models of one service."""

    def __init__(self, gauges: Mapping[str, Gauge], numbers: Mapping[str, Callable[[], Mapping[str, Any]]]) -> None:
        self._gauges = gauges
        self._numbers = numbers

    def collect(self) -> Iterable[Metric]:
        """Yield the metric families of now."""
        for own, (name, said) in HISTOGRAMS.items():
            spread = HistogramMetricFamily(f"tenon_lm_{name}", said, labels=("model",))
            for model, gauge in self._gauges.items():
                histogram: Histogram = getattr(gauge, own)
                spread.add_metric((model,), histogram.buckets(), histogram.sum)
            yield spread
        for own, said in COUNTERS.items():
            counter = CounterMetricFamily(f"tenon_lm_{own}", said, labels=("model",))
            for model, gauge in self._gauges.items():
                counter.add_metric((model,), getattr(gauge, own))
            yield counter
        ends = CounterMetricFamily("tenon_lm_texts", "Texts by how they ended.", labels=("model", "end"))
        for model, gauge in self._gauges.items():
            for end, count in tuple(gauge.ends.items()):
                ends.add_metric((model, end), count)
        yield ends
        speed = GaugeMetricFamily("tenon_lm_tokens_per_second", "Tokens computed a second of work.", labels=("model",))
        ratio = GaugeMetricFamily("tenon_lm_cache_hit_ratio", "Prompt tokens that were cached.", labels=("model",))
        for model, gauge in self._gauges.items():
            speed.add_metric((model,), gauge.tokens_per_s)
            ratio.add_metric((model,), gauge.hit_ratio)
        yield from (speed, ratio)
        now = {model: numbers() for model, numbers in self._numbers.items()}
        for own, said in GAUGES.items():
            level = GaugeMetricFamily(f"tenon_lm_{own}", said, labels=("model",))
            for model, values in now.items():
                level.add_metric((model,), values[own])
            yield level

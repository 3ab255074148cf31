"""Counts and latency histograms of one process, kept as plain Python numbers and read out for Prometheus on a scrape.

prometheus-client's own counters take a lock and a dictionary for every observation, several microseconds a request in
all; here an observation is a bisection and two additions on the event loop's thread, and a scrape builds the metric
families from them. The registry is passed in, so that two apps in one process do not meet. Names follow Prometheus'
conventions: base units, `_total` for counters, `_seconds` and buckets from 0.1 ms to 10 s.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

if TYPE_CHECKING:
    from tenon.serving.trial import Evidence, Trial, Verdict

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
STAGES = ("queue", "features", "infer", "total")


class Histogram:
    """Counts of observations by bucket, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, or `times` equal ones."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def buckets(self) -> list[tuple[str, float]]:
        """Return cumulative counts by upper bound, as Prometheus wants them."""
        total, found = 0, []
        for bound, count in zip((*map(str, map(float, self.bounds)), "+Inf"), self.counts, strict=True):
            total += count
            found.append((bound, float(total)))
        return found


class ModelMeter:
    """What one served model has done since the process began."""

    __slots__ = (
        "batch_rows", "degraded", "errors", "in_time", "offered", "refused", "rows", "shed", "stages", "tap_dropped",
        "usd",
    )  # fmt: skip

    def __init__(self) -> None:
        self.offered = self.in_time = self.degraded = self.shed = 0
        self.refused: dict[int, int] = {}
        self.rows = 0
        self.usd = 0.0
        self.tap_dropped = 0
        self.errors: dict[str, int] = {}
        self.stages = {stage: Histogram(SECONDS) for stage in STAGES}
        self.batch_rows = Histogram(ROWS)

    def error(self, kind: str, rows: int = 1) -> None:
        """Count an error by its kind."""
        self.errors[kind] = self.errors.get(kind, 0) + rows

    def refuse(self, status: int) -> None:
        """Count a request that could have been answered and was not."""
        self.refused[status] = self.refused.get(status, 0) + 1


class Meter:
    """Everything the process counts; a Prometheus collector of itself."""

    def __init__(
        self, gauges: Callable[[], Mapping[str, tuple[str, float]]], registry: CollectorRegistry | None
    ) -> None:
        self.models: dict[str, ModelMeter] = {}
        self.versions: dict[str, str] = {}
        self.requests: dict[tuple[str, int], int] = {}
        self.facts: dict[tuple[str, str], int] = {}
        self.trials: dict[str, tuple[Trial, Evidence, Verdict]] = {}
        self.keys: Mapping[str, float] = {}
        self.gauges = gauges
        self.registry = registry or CollectorRegistry()
        self.registry.register(self)

    def model(self, name: str) -> ModelMeter:
        """Return the counts of a served model."""
        return self.models.setdefault(name, ModelMeter())

    def request(self, door: str, status: int) -> None:
        """Count an answered request by the door it came through and the status it got."""
        key = (door, status)
        self.requests[key] = self.requests.get(key, 0) + 1

    def text(self) -> bytes:
        """Return the exposition that `/metrics` answers."""
        return generate_latest(self.registry)

    def collect(self) -> Iterable[Metric]:
        """Yield the metric families of now; called by the registry on a scrape."""
        requests = CounterMetricFamily("tenon_requests", "Requests answered.", labels=("door", "status"))
        for (door, status), count in self.requests.items():
            requests.add_metric((door, str(status)), count)
        yield requests
        yield from self._model_counters()
        yield from self._promises()
        yield from self._trials()
        for stage in STAGES:
            family = HistogramMetricFamily(f"tenon_{stage}_seconds", HELP[stage], labels=("model",))
            for name, meter in self.models.items():
                family.add_metric((name,), meter.stages[stage].buckets(), meter.stages[stage].sum)
            yield family
        batch = HistogramMetricFamily("tenon_batch_rows", "Rows scored together.", labels=("model",))
        for name, meter in self.models.items():
            batch.add_metric((name,), meter.batch_rows.buckets(), meter.batch_rows.sum)
        yield batch
        facts = CounterMetricFamily("tenon_facts", "Fact rows by what became of them.", labels=("source", "outcome"))
        for key, count in self.facts.items():
            facts.add_metric(key, count)
        yield facts
        info = GaugeMetricFamily("tenon_model_info", "The version each model serves.", labels=("model", "version"))
        for name, version in self.versions.items():
            info.add_metric((name, version), 1)
        yield info
        for name, (said, value) in self.gauges().items():
            yield GaugeMetricFamily(name, said, value=value)

    def _model_counters(self) -> Iterable[Metric]:
        rows = CounterMetricFamily("tenon_rows", "Rows scored.", labels=("model",))
        usd = CounterMetricFamily("tenon_usd", "What the scored rows cost, in US dollars.", labels=("model",))
        dropped = CounterMetricFamily(
            "tenon_tap_dropped_rows", "Observations that monitoring had no room for.", labels=("model",)
        )
        errors = CounterMetricFamily("tenon_errors", "Rows not scored, by why.", labels=("model", "kind"))
        each = GaugeMetricFamily(
            "tenon_usd_per_1000", "What 1,000 scored rows have cost on average.", labels=("model",)
        )
        asked = GaugeMetricFamily("tenon_usd_per_request", "What an answered request has cost.", labels=("model",))
        for name, meter in self.models.items():
            each.add_metric((name,), 1000 * meter.usd / meter.rows if meter.rows else 0.0)
            answered = meter.offered - sum(meter.refused.values())
            asked.add_metric((name,), meter.usd / answered if answered > 0 else 0.0)
            rows.add_metric((name,), meter.rows)
            usd.add_metric((name,), meter.usd)
            dropped.add_metric((name,), meter.tap_dropped)
            for kind, count in meter.errors.items():
                errors.add_metric((name, kind), count)
        yield from (rows, usd, each, asked, dropped, errors)

    def _promises(self) -> Iterable[Metric]:
        """Yield goodput (answered within the target, over offered), refusals, and what the budget did."""
        counters = {
            "tenon_offered": ("Requests that could be answered.", "offered"),
            "tenon_answered_in_time": ("Requests answered within the target.", "in_time"),
            "tenon_degraded": ("Requests answered by the cheaper version, over budget.", "degraded"),
            "tenon_shed": ("Requests refused because the budget is spent.", "shed"),
        }
        for name, (said, field) in counters.items():
            family = CounterMetricFamily(name, said, labels=("model",))
            for model, meter in self.models.items():
                family.add_metric((model,), getattr(meter, field))
            yield family
        refused = CounterMetricFamily("tenon_refused", "Requests not answered, by status.", labels=("model", "status"))
        for model, meter in self.models.items():
            for status, count in meter.refused.items():
                refused.add_metric((model, str(status)), count)
        yield refused
        spent = CounterMetricFamily("tenon_key_usd", "What the holder of each key has cost.", labels=("key",))
        for key, usd in self.keys.items():
            spent.add_metric((key or "nobody",), usd)
        yield spent

    def _trials(self) -> Iterable[Metric]:
        """Yield what trials have seen: requests and errors of both versions, agreement and its interval."""
        asked = GaugeMetricFamily(
            "tenon_trial_requests", "Requests in this trial.", labels=("model", "version", "side")
        )
        failed = GaugeMetricFamily("tenon_trial_errors", "Failed ones of them.", labels=("model", "version", "side"))
        alike = GaugeMetricFamily(
            "tenon_trial_agreement", "Rows with the same decision: its interval.", labels=("model", "version", "edge")
        )
        lost = GaugeMetricFamily("tenon_trial_dropped", "Comparisons without time.", labels=("model", "version"))
        for model, (trial, seen, verdict) in self.trials.items():
            for side, own in (("base", seen.base), ("candidate", seen.candidate)):
                asked.add_metric((model, trial.version, side), own.requests)
                failed.add_metric((model, trial.version, side), own.errors)
            for edge in ("low", "high"):
                alike.add_metric((model, trial.version, edge), verdict.checks[0].numbers[edge])
            lost.add_metric((model, trial.version), seen.dropped)
        yield from (asked, failed, alike, lost)


HELP = {
    "queue": "From the request's arrival to the beginning of its batch.",
    "features": "Reading the features of a batch.",
    "infer": "Scoring a batch.",
    "total": "From the request's arrival to its scores.",
}

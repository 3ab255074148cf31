"""What a gateway counts: answers and refusals, time to first answer, goodput, and how each replica does.

Goodput is what was answered well within the target over everything offered, so that refusing cannot improve it. Counts
are plain numbers; families for Prometheus are built when `/metrics` is read, as in `meter`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from tenon.serving.journal import Journal
from tenon.serving.meter import SECONDS, Histogram
from tenon.serving.route import Router, Ticket

if TYPE_CHECKING:
    from tenon.serving.autoscale import Autoscaler

BOUNDS = (*SECONDS, 25.0, 60.0, 120.0)


class Tally:
    """Everything one gateway counts; a Prometheus collector of itself."""

    def __init__(self, router: Router, journal: Journal, scaler: Autoscaler | None = None) -> None:
        self.router = router
        self.journal = journal
        self.scaler = scaler
        self.offered = self.within = self.retried = self.broken = 0
        self.hit_units = self.units = 0.0
        self.statuses: dict[int, int] = {}
        self.seconds = Histogram(BOUNDS)
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def answered(self, ticket: Ticket, status: int, took_s: float, target_s: float) -> None:
        """Count an answer of a replica."""
        self.offered += 1
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self.seconds.observe(took_s)
        self.within += status < 500 and took_s <= target_s
        self.units += ticket.need.units
        self.hit_units += min(ticket.believed * ticket.need.block_units, ticket.need.units)

    def refused(self, status: int) -> None:
        """Count an answer of the gateway itself that is a refusal."""
        self.offered += 1
        self.statuses[status] = self.statuses.get(status, 0) + 1

    def replicas(self, up: Sequence[bool]) -> dict[str, Any]:
        """Return how each replica does, as plain data."""
        router, now = self.router, monotonic()
        return {
            "policy": router.routing.policy,
            "goodput": self.within / self.offered if self.offered else None,
            "sessions": {
                "known": len(self.journal),
                "kept_bytes": self.journal.size,
                "handed_over": self.journal.handed,
                "rebuilt": self.journal.rebuilt,
                "lost": self.journal.lost,
            },
            "fleet": self.scaler.report() if self.scaler is not None else None,
            "replicas": [
                {
                    "name": name,
                    "up": up[n],
                    "running": router.running[n],
                    "waiting": len(router.waiting(n)),
                    "wait_s": router.wait_s(n, now),
                    "blocks": router.map.count(n),
                    "capacity": router.map.capacity(n),
                    "units_per_s": 1 / router.speeds[n].per if router.speeds[n].per else None,
                }
                for n, name in enumerate(router.names)
                if name
            ],
        }

    def summary(self) -> dict[str, Any]:
        """Return the counts of the whole time, as plain data."""
        return {
            "offered": self.offered,
            "within_target": self.within,
            "goodput": self.within / self.offered if self.offered else None,
            "retried": self.retried,
            "broken": self.broken,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
        }

    def text(self) -> bytes:
        """Return the exposition that `/metrics` answers."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """Yield the metric families of now; called by the registry on a scrape."""
        requests = CounterMetricFamily("tenon_gateway_requests", "Requests answered.", labels=("status",))
        for status, count in self.statuses.items():
            requests.add_metric((str(status),), count)
        yield requests
        yield CounterMetricFamily("tenon_gateway_within_target", "Answered well within the target.", value=self.within)
        yield CounterMetricFamily("tenon_gateway_retries", "Tries that another replica had to take.", self.retried)
        yield CounterMetricFamily("tenon_gateway_broken", "Answers that broke off after they began.", self.broken)
        yield CounterMetricFamily("tenon_gateway_units", "Units of work asked for.", value=self.units)
        yield CounterMetricFamily("tenon_gateway_hit_units", "Units believed to be cached.", value=self.hit_units)
        family = HistogramMetricFamily("tenon_gateway_seconds", "From a request's arrival to the first of its answer.")
        family.add_metric((), self.seconds.buckets(), self.seconds.sum)
        yield family
        router, now = self.router, monotonic()
        up = GaugeMetricFamily("tenon_replica_up", "1 when it is sent requests.", labels=("replica",))
        running = GaugeMetricFamily("tenon_replica_running", "Requests sent and not done.", labels=("replica",))
        wait = GaugeMetricFamily("tenon_replica_wait_seconds", "Expected wait of its queue.", labels=("replica",))
        for n, name in enumerate(router.names):
            if not name:
                continue
            up.add_metric((name,), float(router.is_open(n)))
            running.add_metric((name,), router.running[n])
            wait.add_metric((name,), router.wait_s(n, now))
        yield from (up, running, wait)
        journal = self.journal
        yield GaugeMetricFamily("tenon_gateway_sessions", "Sessions with state that are known.", value=len(journal))
        yield GaugeMetricFamily("tenon_gateway_session_bytes", "Bytes kept for them.", value=journal.size)
        moved = CounterMetricFamily("tenon_gateway_session_moves", "Sessions whose state moved.", labels=("how",))
        for how, count in (("handed over", journal.handed), ("rebuilt", journal.rebuilt), ("lost", journal.lost)):
            moved.add_metric((how,), count)
        yield moved
        if self.scaler is not None:
            yield from self.scaler.collect()

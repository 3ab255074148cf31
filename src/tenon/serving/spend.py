"""What the service may spend: over budget it answers with the cheaper version, then sheds by priority, and says so.

The budget is a bucket of an hour's money that fills all the time and is drawn on by every scored row. When it is empty
the cheaper version answers, if there is one; what even that overdraws sheds requests: those of priority 0 first, those
of people next, the urgent last, each when another twentieth of an hour's money is gone. It goes back only when a
twentieth is there again, so that it does not flutter. A version whose price for 1,000 predictions is above the bound is
over budget from its first row.
"""

from __future__ import annotations

from dataclasses import dataclass, field

HOUR_S = 3600.0
MARGIN = 0.05  # of an hour's money


@dataclass(slots=True)
class Spending:
    """The budget of one model; 0 is no bound."""

    usd_per_hour: float = 0.0
    usd_per_1000: float = 0.0
    over: bool = False
    left: float = field(init=False)
    at: float = field(default=-1.0)

    def __post_init__(self) -> None:
        self.left = self.usd_per_hour

    def spend(self, usd: float, now: float) -> None:
        """Take what was scored."""
        if self.usd_per_hour:
            self._fill(now)
            self.left -= usd

    def degraded(self, usd_per_row: float, now: float) -> bool:
        """Say whether the cheaper version is to answer in place of one at this price."""
        if self.usd_per_1000 and 1000 * usd_per_row > self.usd_per_1000:
            return True
        if not self.usd_per_hour:
            return False
        self._fill(now)
        if self.left <= 0:
            self.over = True
        elif self.left >= MARGIN * self.usd_per_hour:
            self.over = False
        return self.over

    def wait_s(self, priority: int, *, cheaper: bool, now: float) -> float:
        """Return how long a request of this priority has to wait for money; 0 when it may come in now."""
        if not self.usd_per_hour or not self.over:
            return 0.0
        self._fill(now)
        floor = -MARGIN * self.usd_per_hour * (priority + cheaper)
        return max(0.0, (floor - self.left) / self.usd_per_hour * HOUR_S) if self.left <= floor else 0.0

    def _fill(self, now: float) -> None:
        past_s = max(now - self.at, 0.0) if self.at >= 0 else 0.0
        self.left = min(self.left + past_s * self.usd_per_hour / HOUR_S, self.usd_per_hour)
        self.at = now

"""Admission: whether a request may come in, by the rate and money of its key and by its priority when it is crowded.

    Quota(rate_per_s=5, burst=20, usd_per_hour=1.0, priority=1)

A key has two buckets, one of requests and one of money, that fill at their rate up to their size; a request that finds
one empty is told LATER, with the seconds until it will be full enough, and one that costs more than the bucket can ever
hold is told NEVER. Money is taken when it is known, so a bucket may go below zero and must fill up first.

Priorities share what waiting room there is: a request of priority p comes in while the expected wait is below the share
`SHARES[p]` of the target. Work that can wait (0) goes first, people (1) next, the urgent (2) last.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from tenon.errors import ConfigError, sentence
from tenon.limits import Admission, Answer

OK = Admission(answer=Answer.OK)
SHARES = (0.5, 1.0, 4.0)  # of the target, by priority: the expected wait up to which a request comes in
HOUR_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What one key may ask; 0 is no bound."""

    rate_per_s: float = 0.0  # requests a second, over time
    burst: float = 0.0  # requests at once (default: those of one second, at least 1)
    usd_per_hour: float = 0.0  # money, over time; an hour's worth at once
    priority: int = 1  # 0 can wait, 1 a person waits, 2 urgent

    def __post_init__(self) -> None:
        for name in ("rate_per_s", "burst", "usd_per_hour"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(sentence("a number that is not negative", str(value), at=name))
        if self.priority not in range(len(SHARES)):
            raise ConfigError(sentence("a priority of 0, 1 or 2", str(self.priority), at="priority"))

    @property
    def requests(self) -> float:
        """The size of the bucket of requests."""
        return self.burst or max(1.0, self.rate_per_s)


@dataclass(slots=True)
class _Bucket:
    requests: float
    usd: float
    at: float


@dataclass(slots=True)
class Gate:
    """Decides for each request; `keys` maps a key to its quota, anybody else gets `default`. Bounded in memory."""

    keys: Mapping[str, Quota] = field(default_factory=dict)
    default: Quota = Quota()
    most: int = 10_000
    _buckets: dict[str, _Bucket] = field(default_factory=dict)
    _quotas: dict[str, Quota] = field(init=False)

    def __post_init__(self) -> None:
        # A look-up by digest takes as long for a key that is nearly right as for one that is not.
        self._quotas = {_digest(key): quota for key, quota in self.keys.items()}

    def quota(self, key: str) -> Quota:
        """Return the quota of a key."""
        return self._quotas.get(_digest(key), self.default)

    def ask(self, key: str, now: float, *, usd: float = 0.0) -> Admission:
        """Admit one request of a key that will cost about `usd`, and count it; or say why not, and when."""
        quota = self.quota(key)
        if not quota.rate_per_s and not quota.usd_per_hour:
            return OK
        if quota.usd_per_hour and usd > quota.usd_per_hour:
            said = f"expected a request of at most ${quota.usd_per_hour:g}, got one of about ${usd:.4g}"
            return Admission(answer=Answer.NEVER, reason=said)
        bucket = self._bucket(key, quota, now)
        if quota.rate_per_s and bucket.requests < 1:
            wait_s = (1 - bucket.requests) / quota.rate_per_s
            said = f"expected at most {quota.rate_per_s:g} requests a second of this key, got more; come back"
            return Admission(answer=Answer.LATER, reason=said, retry_after_s=wait_s)
        if quota.usd_per_hour and bucket.usd < max(usd, 0.0):
            wait_s = (usd - bucket.usd) / quota.usd_per_hour * HOUR_S
            said = f"expected this key to stay within ${quota.usd_per_hour:g} an hour, got more; come back"
            return Admission(answer=Answer.LATER, reason=said, retry_after_s=wait_s)
        bucket.requests -= 1
        bucket.usd -= usd
        return OK

    def charge(self, key: str, now: float, usd: float) -> None:
        """Take what a request cost beyond what was asked for; below zero the key waits until it is made up."""
        quota = self.quota(key)
        if quota.usd_per_hour:
            self._bucket(key, quota, now).usd -= usd

    def crowded(self, key: str, wait_s: float, target_s: float) -> Admission:
        """Say whether a request comes in though it would wait so long: the lower its priority, the sooner not."""
        share = SHARES[self.quota(key).priority]
        if wait_s <= share * target_s:
            return OK
        said = f"expected to begin an answer within {share * target_s:g} s, got a queue of {wait_s:.1f} s; come back"
        return Admission(answer=Answer.LATER, reason=said, retry_after_s=wait_s - share * target_s)

    def _bucket(self, key: str, quota: Quota, now: float) -> _Bucket:
        name = _digest(key) if _digest(key) in self._quotas else f"?{_digest(key)}"
        bucket = self._buckets.pop(name, None)
        if bucket is None:
            bucket = _Bucket(quota.requests, quota.usd_per_hour, now)
            if len(self._buckets) >= self.most:
                del self._buckets[next(iter(self._buckets))]
        past_s = max(now - bucket.at, 0.0)
        bucket.requests = min(bucket.requests + past_s * quota.rate_per_s, quota.requests)
        bucket.usd = min(bucket.usd + past_s * quota.usd_per_hour / HOUR_S, quota.usd_per_hour)
        bucket.at = max(now, bucket.at)
        self._buckets[name] = bucket
        return bucket


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()

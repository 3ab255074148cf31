"""Keys of callers: who asks, and whether their rate and money allow it.

Keys come from tenon.toml or the environment, are looked up by digest (which takes as long for a key that is nearly
right as for one that is not) and are never logged, counted under, or answered back: what is shown is the name that
tenon.toml gives them. A service without keys asks nobody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from tenon.config import ServeConfig
from tenon.errors import ConfigError, sentence
from tenon.serving.admission import Gate, Quota
from tenon.serving.refusal import Refused

OWNER = "owner"  # who holds the service's token: not bounded, urgent
LEAST_KEY = 8


class Keys:
    """The keys of one service and what each has used."""

    def __init__(self, serve: ServeConfig) -> None:
        quotas: dict[str, Quota] = {OWNER: Quota(priority=2)} if serve.token else {}
        self._names = {_digest(serve.token.encode()): OWNER} if serve.token else {}
        for name, own in serve.keys.items():
            if len(own.key) < LEAST_KEY or name == OWNER:
                said = f"a key of at least {LEAST_KEY} characters, under a name other than '{OWNER}'"
                got = f"one of {len(own.key)}" if name != OWNER else f"'{OWNER}'"
                raise ConfigError(sentence(said, got, at=f"serve.keys.{name}", hint="make one with `openssl rand`"))
            digest = _digest(own.key.encode())
            if digest in self._names:
                raise ConfigError(sentence("each key once", f"that of {self._names[digest]} again", at=f"keys.{name}"))
            self._names[digest] = name
            quotas[name] = Quota(
                rate_per_s=own.rate_per_s, burst=own.burst, usd_per_hour=own.usd_per_hour, priority=own.priority
            )
        self.gate = Gate(quotas)
        self.used: dict[str, float] = dict.fromkeys(quotas, 0.0)

    def caller(self, headers: Mapping[bytes, bytes]) -> str:
        """Return the name of the caller whose key these headers carry; "" for nobody's."""
        given = headers.get(b"x-api-key") or headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        return self._names.get(_digest(given), "") if given else ""

    def ask(self, caller: str, now: float) -> Refused | None:
        """Count a request of this caller, or say when to come back."""
        admission = self.gate.ask(caller, now)
        if admission:
            return None
        return Refused(status=429, said=admission.reason, retry_after_s=max(admission.retry_after_s, 1e-3))

    def charge(self, caller: str, usd: float, now: float) -> None:
        """Take what a request of this caller cost."""
        self.gate.charge(caller, now, usd)
        self.used[caller] = self.used.get(caller, 0.0) + usd

    def crowded(self, caller: str, wait_s: float, target_s: float) -> Refused | None:
        """Refuse a request that would wait too long for its priority."""
        admission = self.gate.crowded(caller, wait_s, target_s)
        if admission:
            return None
        return Refused(status=503, said=admission.reason, retry_after_s=max(admission.retry_after_s, 1.0), full=True)

    def priority(self, caller: str) -> int:
        """Return the priority of a caller."""
        return self.gate.quota(caller).priority


def _digest(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()

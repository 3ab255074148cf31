"""A Refused is the one shape of every "no" this service says: a status, a sentence, and the faults with their paths.

It is a value, returned rather than raised, because bad requests are expected traffic. Statuses: 400 not JSON or not
an object, 401 no token, 403 another site's page asking, 404 no such model or page, 405 another method, 408 too slow,
413 it will never fit, 422 JSON that breaks the request columns, 429 and 503 come back later (with Retry-After), 500
our fault.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from tenon.errors import sentence
from tenon.limits import Admission, Answer

SHOWN_FAULTS = 20
SHOWN_CHARACTERS = 120
Fault = dict[str, str]  # path, expected and got, as `contract.check_rows` writes them


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A refusal: the status, why in one sentence, and for 422 each fault (at most 20, then a count)."""

    status: int
    said: str
    faults: Sequence[Fault] = ()
    retry_after_s: float = 0.0
    close: bool = False
    full: bool = False  # there is no room or money for it now, in difference to a model that is not there

    def body(self) -> bytes:
        """Return the answer of tenon's own doors: ``{"error", "faults"}``."""
        answer: dict[str, Any] = {"error": self.said}
        if self.faults:
            answer["faults"] = self.faults[:SHOWN_FAULTS]
            if len(self.faults) > SHOWN_FAULTS:
                answer["more_faults"] = len(self.faults) - SHOWN_FAULTS
        return msgspec.json.encode(answer)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers this refusal needs beside its body."""
        headers = []
        if self.retry_after_s > 0:
            headers.append((b"retry-after", str(math.ceil(self.retry_after_s)).encode()))
        if self.status == 401:
            headers.append((b"www-authenticate", b'Bearer realm="tenon"'))
        if self.close:
            headers.append((b"connection", b"close"))
        return headers

    def words(self) -> str:
        """Say the whole refusal in one line, for protocols whose errors are text."""
        said = "; ".join(_sentence(fault) for fault in self.faults[:SHOWN_FAULTS])
        more = len(self.faults) - SHOWN_FAULTS
        return said + (f"; and {more} more" if more > 0 else "") if said else self.said


def _sentence(fault: Fault) -> str:
    return sentence(fault["expected"], fault["got"], at=fault["path"])


def faulty(faults: Sequence[Fault]) -> Refused:
    """Refuse rows that break the request columns."""
    what = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    return Refused(status=422, said=f"expected rows as the request columns say, got {what}", faults=faults)


def refused(admission: Admission) -> Refused:
    """Turn an admission that is not OK into a refusal: LATER is 503 with Retry-After, NEVER is 413."""
    if admission.answer is Answer.NEVER:
        return Refused(status=413, said=admission.reason)
    return Refused(status=503, said=admission.reason, retry_after_s=max(1.0, admission.retry_after_s), full=True)


def shown(value: Any) -> str:
    """Show a value that came, as JSON, shortened."""
    try:
        text = msgspec.json.encode(value).decode("utf-8", "replace")
    except (TypeError, ValueError, RecursionError, OverflowError, msgspec.MsgspecError):
        text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"


def reply(body: Mapping[str, Any]) -> bytes:
    """Encode an answer as JSON."""
    return msgspec.json.encode(body)

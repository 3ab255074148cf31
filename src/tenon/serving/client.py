"""The other side of the wire: post JSON to a service, over connections that stay open, with errors in words.

`Client` is one connection, for commands and scripts. It speaks HTTP/1.1 by the standard library, follows nothing and
retries once, only when a connection that was kept open turns out to be closed before anything came back. `replay` has
its own connections, built for rate.
"""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

import msgspec

from tenon.errors import InputError, MissingError, UsageError, sentence

SHOWN = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a service is, taken from its URL."""

    host: str
    port: int
    secure: bool
    path: str

    @classmethod
    def of(cls, url: str) -> Address:
        """Read a URL; UsageError when it is none."""
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port
        except ValueError as error:
            raise _no_url(url) from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise _no_url(url)
        secure = parts.scheme == "https"
        return cls(
            host=parts.hostname, port=port or (443 if secure else 80), secure=secure, path=parts.path.rstrip("/")
        )


def _no_url(url: str) -> UsageError:
    return UsageError(sentence("the URL of a service", f"'{url}'", hint="such as http://127.0.0.1:8321"))


class Client:
    """One connection to a service; opened on first use, closed by `close` or at the end of a `with`."""

    def __init__(self, url: str, *, token: str = "", timeout_s: float = 30.0) -> None:
        self.url = url
        self.address = Address.of(url)
        self._headers = {"content-type": "application/json"}
        if token:
            self._headers["authorization"] = f"Bearer {token}"
        kind = http.client.HTTPSConnection if self.address.secure else http.client.HTTPConnection
        self._connection = kind(self.address.host, self.address.port, timeout=timeout_s)

    def predict(self, model: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Ask for predictions of rows; returns the answer with `model`, `version` and `predictions`."""
        return self.post(f"/predict/{quote(model, safe='')}", {"rows": rows})

    def facts(self, source: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Post rows of a source as they become known; returns how many were accepted and how many known already."""
        return self.post(f"/facts/{quote(source, safe='')}", {"rows": rows})

    def labels(self, model: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Post the truth about earlier predictions: rows of id, label and known."""
        return self.post(f"/labels/{quote(model, safe='')}", {"rows": rows})

    def post(self, path: str, body: Any) -> dict[str, Any]:
        """Post JSON and return the JSON that came back; InputError with the service's own words when it refused."""
        return self._ask("POST", path, msgspec.json.encode(body))

    def get(self, path: str) -> dict[str, Any]:
        """Return the JSON at a path."""
        return self._ask("GET", path, None)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        try:
            status, answer = self._once(method, path, body)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            self._connection.close()  # a connection kept open was closed in the meantime: once more, on a new one
            try:
                status, answer = self._once(method, path, body)
            except (OSError, http.client.HTTPException) as error:
                raise unreachable(self.url, error) from error
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise unreachable(self.url, error) from error
        try:
            found = msgspec.json.decode(answer)
        except (msgspec.DecodeError, UnicodeDecodeError):
            found = None
        if status != 200:
            raise refused_words(f"{self.url}{path}", status, found, answer)
        if not isinstance(found, dict):
            got = answer[:SHOWN].decode("utf-8", "replace")
            raise InputError(
                sentence("an answer in JSON", f"'{got}'", at=f"{self.url}{path}", hint="is it a tenon service?")
            )
        return found

    def _once(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        self._connection.request(method, self.address.path + path, body, self._headers)
        answer = self._connection.getresponse()
        return answer.status, answer.read()


def unreachable(url: str, error: BaseException) -> MissingError:
    """Say that no service answers at a URL, and why."""
    why = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
    if isinstance(error, socket.gaierror):
        why = f"no such host ({why})"
    if isinstance(error, ssl.SSLError):
        why = f"no secure connection ({why})"
    return MissingError(
        sentence("a service that answers", why, at=url, hint="start it with 'tenon serve', or check the URL")
    )


def refused_words(place: str, status: int, found: Any, answer: bytes) -> InputError:
    """Say what a service refused, in its own words."""
    said = found.get("error") if isinstance(found, dict) else None
    got = f"{status}: {said}" if said else f"{status}: {answer[:SHOWN].decode('utf-8', 'replace')}"
    for fault in (found.get("faults", []) if isinstance(found, dict) else [])[:3]:
        got += f"; at {fault.get('path')} expected {fault.get('expected')}, got {fault.get('got')}"
    hint = {401: "give the token of the service", 404: "look at its /docs for what it serves"}.get(status, "")
    return InputError(sentence("an answer", got, at=place, hint=hint))

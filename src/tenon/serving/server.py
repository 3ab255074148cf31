"""Running the app: a port, one process, one event loop, and a protocol that holds the limits no app can hold.

uvicorn with httptools does the HTTP. What it leaves open is closed here, in a subclass of its protocol: the size of a
head before it is complete, how long a head, a body or the reading of an answer may take (a client that sends a byte a
minute would otherwise keep a connection for ever), and how many connections there may be. One sweep a second looks at
the connections, so that a request pays nothing for it. SIGTERM and SIGINT stop listening, let requests in flight
finish within `drain_s`, then offer and write what is left, and `run` returns.

A port in use is an error in words before anything heavy starts: who holds it, and which port is free.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import math
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import psutil
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from tenon.errors import UsageError, sentence
from tenon.limits import ServingLimits
from tenon.serving.app import Receive, Scope, Send
from tenon.serving.refusal import Refused
from tenon.serving.service import Settings

PORTS_TRIED = 20
Headers = Sequence[tuple[bytes, bytes]]


class App(Protocol):
    """What can be run here: the app of services, or a gateway."""

    settings: Settings
    address: tuple[str, int]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

    def restore(self) -> None:
        """Take back what was kept, before serving."""


def run(app: App, host: str = "", port: int | None = None, *, started: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then drain and return; `started` is called with the URL when it listens.

    Host and port default to those of the app's settings; port 0 takes any that is free.
    """
    serve = app.settings.serve
    if serve.grpc_port:
        listen(host or serve.host, serve.grpc_port).close()  # taken: said now, before anything heavy starts
    with listen(host or serve.host, serve.port if port is None else port) as sock:
        server = _server(app, sock, started)
        app.restore()
        before = {number: signal.signal(number, _settled) for number in (signal.SIGTERM, signal.SIGINT)}
        gc.collect()
        gc.freeze()  # what is loaded now stays; a full collection walking all of it would stop every answer for 15 ms
        try:
            server.run(sockets=[sock])
        finally:
            gc.unfreeze()
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def running(app: App, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serve from a thread of this process while the block runs; yields the URL. For tests, notebooks and examples."""
    began = threading.Event()
    failed: list[BaseException] = []
    urls: list[str] = []

    def started(url: str) -> None:
        urls.append(url)
        began.set()

    def work() -> None:
        try:
            asyncio.run(server.serve(sockets=[sock]))
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            failed.append(error)
        finally:
            began.set()

    with listen(host, port) as sock:
        server = _server(app, sock, started)
        app.restore()
        thread = threading.Thread(target=work, name="tenon-serving", daemon=True)
        thread.start()
        began.wait()
        try:
            if not urls:
                got = repr(failed[0]) if failed else "one that stopped"
                raise UsageError(sentence("a service that starts", got, at=host))
            yield urls[0]
        finally:
            server.should_exit = True
            thread.join()


def _settled(number: int, frame: Any) -> None:
    """Do nothing: uvicorn has drained, and raises the signal again for whoever was there before."""


def _server(app: App, sock: socket.socket, started: Callable[[str], None] | None) -> uvicorn.Server:
    limits = app.settings.limits
    host, port = sock.getsockname()[:2]
    app.address = (host, port)
    state: dict[str, Any] = {"said": started is None}

    async def notify() -> None:
        """Be called each second by uvicorn: sweep the connections; the first call says that it listens."""
        if not state["said"]:
            state["said"] = True
            assert started is not None
            started(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        now = asyncio.get_running_loop().time()
        for connection in tuple(server.server_state.connections):
            assert isinstance(connection, Guarded)
            connection.sweep(now)

    config = uvicorn.Config(
        app,
        http=_guarded(limits),
        loop="asyncio",
        ws="none",
        lifespan="on",
        interface="asgi3",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=math.ceil(limits.idle_s),
        timeout_graceful_shutdown=math.ceil(limits.drain_s),
        callback_notify=notify,
        timeout_notify=1,
    )
    server = uvicorn.Server(config)
    return server


# ── the protocol ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Guarded(HttpToolsProtocol):
    """uvicorn's HTTP protocol with bounds on the head, on slowness and on the number of connections.

    It also offers the app to write a whole answer at once (the ASGI extension `tenon.answer`): one system call where
    head and body sent one after the other take two, which are half of what a small request costs.
    """

    limits = ServingLimits()
    head_bytes = 0
    waiting_since = 0.0
    idle_since = 0.0
    lingering = False

    # ── receiving ────────────────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or say at once that there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            said = f"expected at most {self.limits.connections} connections, got another; come back"
            self._turn_away(Refused(status=503, said=said, retry_after_s=1.0))

    def data_received(self, data: bytes) -> None:
        """Take bytes; a head that grows past its limit is refused before it is complete."""
        super().data_received(data)
        scope: Any = self.scope
        if scope is None or "path" in scope:  # no head is open
            self.head_bytes = 0
            if len(data) <= self.limits.header_bytes or scope is None:
                return
            size = sum(len(name) + len(value) for name, value in scope["headers"])
        else:
            self.head_bytes += len(data)
            size = self.head_bytes
        if size > self.limits.header_bytes and not self.transport.is_closing():
            said = f"expected headers of at most {self.limits.header_bytes:,} bytes, got more"
            self._turn_away(Refused(status=431, said=said))

    def on_message_complete(self) -> None:
        """Be told that a body is complete; one whose answer has gone already was only read to its end."""
        super().on_message_complete()
        if self.lingering:
            self.transport.close()

    def sweep(self, now: float) -> None:
        """Let go of a connection that is idle, or has kept us waiting too long: for a head, a body, or to be read."""
        transport, scope, cycle = self.transport, self.scope, self.cycle
        head = scope is not None and "path" not in scope
        body = cycle is not None and cycle.more_body and not cycle.response_complete
        unread = transport.get_write_buffer_size() > 0 or self.lingering
        if not (head or body or unread):
            self.waiting_since = 0.0
        elif not self.waiting_since:
            self.waiting_since = now
        elif now - self.waiting_since > self.limits.request_s:
            if unread or transport.is_closing():
                transport.abort()
                return
            said = f"expected the whole request within {self.limits.request_s:g} s, got a part of it"
            self._turn_away(Refused(status=408, said=said))
        if head or body or (cycle is not None and not cycle.response_complete):
            self.idle_since = 0.0
        elif not self.idle_since:
            self.idle_since = now
        elif now - self.idle_since > self.limits.idle_s:
            transport.close()

    # ── answering ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        extensions: Any = {"tenon.answer": partial(self._answer, cycle), "tenon.abort": self.transport.abort}
        cycle.scope["extensions"] = extensions
        super()._start_asgi_task(cycle, app)

    def _answer(self, cycle: RequestResponseCycle, status: int, headers: Headers, body: bytes) -> None:
        """Write a whole answer: what `cycle.send` does for a head and a body, in one write."""
        if cycle.disconnected:
            return
        cycle.response_started = True
        cycle.waiting_for_100_continue = False
        lines = [STATUS_LINE[status]]
        for name, value in self.server_state.default_headers:
            lines += (name, b": ", value, b"\r\n")
        for name, value in headers:
            lines += (name, b": ", value, b"\r\n")
        if (b"connection", b"close") in headers:
            cycle.keep_alive = False
        elif not cycle.keep_alive:
            lines.append(b"connection: close\r\n")
        lines += (b"\r\n", body if cycle.scope["method"] != "HEAD" else b"")
        self.transport.write(b"".join(lines))
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive and cycle.more_body and self.transport.can_write_eof():
            # Closing while the caller still sends would reset the connection, and the answer could be lost with it.
            self.lingering = True
            try:
                self.transport.write_eof()
            except OSError:  # the caller has gone already
                self.transport.abort()
        elif not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()

    def on_response_complete(self) -> None:
        """Go on to the next pipelined request; idle connections are left to the sweep, not to a timer each."""
        self.server_state.total_requests += 1
        self.idle_since = 0.0
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())

    def _turn_away(self, refusal: Refused) -> None:
        body = refusal.body()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *refusal.headers()]
        lines = [name + b": " + value for name, value in (*headers, (b"connection", b"close"))]
        self.transport.write(STATUS_LINE[refusal.status] + b"\r\n".join((*lines, b"", body)))
        self.transport.close()


def _guarded(limits: ServingLimits) -> type[Guarded]:
    """Return the protocol with these limits."""
    return type("Guarded", (Guarded,), {"limits": limits})


# ── the port ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def listen(host: str, port: int) -> socket.socket:
    """Return a bound socket; UsageError for a port that is taken says who has it and which is free."""
    if not 0 <= port <= 65_535:
        raise UsageError(sentence("a port from 0 to 65535", str(port), hint="8321 is the default"))
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UsageError(sentence("a host to listen on", f"'{host}': {error}", hint="127.0.0.1 or 0.0.0.0")) from error
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
        sock.listen(2048)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            free = _free(family, host, port)
            hint = f"port {free} is free" if free else "stop it, or give another port"
            raise UsageError(
                sentence(f"port {port} of {host} to be free", _holder(port), at="serve.port", hint=hint)
            ) from error
        hint = (
            "ports below 1024 need rights" if error.errno == errno.EACCES else "is the address one of this machine's?"
        )
        raise UsageError(sentence(f"to listen on {host}:{port}", str(error), at="serve", hint=hint)) from error
    return sock


def _holder(port: int) -> str:
    """Say which process listens on the port, as far as this user may see."""
    try:
        for connection in psutil.net_connections("tcp"):
            if (
                connection.laddr
                and connection.laddr.port == port
                and connection.status == psutil.CONN_LISTEN
                and connection.pid
            ):
                command = " ".join(psutil.Process(connection.pid).cmdline())[:80]
                return f"it taken by process {connection.pid} ({command})"
    except (psutil.Error, OSError):
        pass
    return "it taken by another process"


def _free(family: int, host: str, port: int) -> int:
    """Return the next port that can be had, or 0."""
    for other in range(port + 1, min(port + 1 + PORTS_TRIED, 65_536)):
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            try:
                sock.bind((host, other))
            except OSError:
                continue
            return other
    return 0

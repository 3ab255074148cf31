"""Routes, headers, and who may ask.

The page shows what a team knows about its data and models, so only the machine it runs on may read it. It listens on
127.0.0.1; and because any web site can make a browser ask 127.0.0.1 (DNS rebinding: a name of the attacker's that
suddenly means this machine), a request must also name this machine in its Host header. It only answers GET and HEAD,
sets no cookie, runs no script (Content-Security-Policy forbids all), and cannot be framed.

Reading the store blocks for milliseconds, so pages are drawn in Starlette's thread pool. Templates escape everything
that is put into them; `text.clean` is applied to every text on its way out, at the one place that cannot be forgotten.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tenon import metric
from tenon.errors import StoreError, TenonError, UsageError, sentence
from tenon.store import Store
from tenon.ui import read, text, view

HERE = Path(__file__).parent
PORT = 8322
LOCAL = ("127.0.0.1", "localhost", "[::1]")
POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
Page = Callable[[Store, Request], tuple[str, Mapping[str, Any]]]


def build_app(store: Store, *, hosts: tuple[str, ...] = LOCAL) -> ASGIApp:
    """Build the page over a store as an ASGI app; it reads the store at each request and never writes.

    `hosts` are the names it answers to, without port; anything else in the Host header is refused.
    """
    pages = _environment()
    routes = [Route(path, partial(_answer, store, pages, page)) for path, page in PAGES.items()]
    app = Starlette(
        routes=[*routes, Route("/style.css", _style)],
        exception_handlers={HTTPException: partial(_failed, pages), TenonError: partial(_broken, pages)},
    )
    return _guarded(app, frozenset(host.lower() for host in hosts))


def run(
    app: ASGIApp,
    *,
    port: int = 0,
    started: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve the page on this machine until it is told to stop; calls `started` with the address once it listens.

    Without a port the usual one is taken, or a free one when that is in use.
    """
    import uvicorn

    held = _bound(port)
    with held:
        config = uvicorn.Config(app, log_level="error", lifespan="off", server_header=False, access_log=False)
        server = uvicorn.Server(config)
        held.listen(128)  # so that the address works from the moment it is told
        started(f"http://127.0.0.1:{held.getsockname()[1]}")
        server.run(sockets=[held])


def _bound(port: int) -> socket.socket:
    """Return a listening socket of this machine alone; UsageError when the port asked for is taken."""
    for candidate in (port,) if port else (PORT, 0):
        held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            held.bind(("127.0.0.1", candidate))
        except (OSError, OverflowError) as error:
            held.close()
            if port:
                hint = "choose another with --port, or leave it out"
                raise UsageError(sentence("a free port", f"{port} ({error})", at="127.0.0.1", hint=hint)) from error
            continue
        return held
    raise UsageError(sentence("a free port", "none", at="127.0.0.1"))


# ── pages ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _overview(store: Store, request: Request) -> tuple[str, Mapping[str, Any]]:
    return "overview.html", view.overview(read.overview(store))


def _model(store: Store, request: Request) -> tuple[str, Mapping[str, Any]]:
    name = request.path_params["model"]
    _known(name in read.models(store), "model", name)
    return "model.html", view.model(read.model_page(store, name))


def _runs(store: Store, request: Request) -> tuple[str, Mapping[str, Any]]:
    model, status = request.query_params.get("model", ""), request.query_params.get("status", "")
    found = read.runs(store, model, status)
    return "runs.html", {"runs": found, "model": model, "models": read.models(store)}


def _run(store: Store, request: Request) -> tuple[str, Mapping[str, Any]]:
    record = store.get("run", request.path_params["id"])
    _known(record is not None, "run", request.path_params["id"])
    assert record is not None
    return "run.html", view.run(record, read.curves(store, str(record["id"])))


def _compare(store: Store, request: Request) -> tuple[str, Mapping[str, Any]]:
    records = read.compared(store, request.query_params.getlist("run"))
    curves = {str(one["id"]): read.curves(store, str(one["id"])) for one in records}
    return "compare.html", view.compare(records, curves, read.differences(records))


def _watch(store: Store, request: Request) -> tuple[str, Mapping[str, Any]]:
    name = request.path_params["model"]
    _known(name in read.models(store), "model", name)
    return "watch.html", view.watch(read.watch_page(store, name, request.query_params.get("id", "")))


def _datasets(store: Store, request: Request) -> tuple[str, Mapping[str, Any]]:
    return "datasets.html", {"latest": read.latest_datasets(store), "every": store.find("dataset", limit=read.LIST)}


def _dataset(store: Store, request: Request) -> tuple[str, Mapping[str, Any]]:
    record = store.get("dataset", request.path_params["id"])
    _known(record is not None, "dataset", request.path_params["id"])
    assert record is not None
    return "dataset.html", view.dataset(record)


def _findings(store: Store, request: Request) -> tuple[str, Mapping[str, Any]]:
    severity = request.query_params.get("severity", "")
    return "findings.html", {"findings": read.findings(store, severity), "severity": severity}


def _ledger(store: Store, request: Request) -> tuple[str, Mapping[str, Any]]:
    return "ledger.html", view.ledger(read.ledger(store))


def _history(store: Store, request: Request) -> tuple[str, Mapping[str, Any]]:
    return "history.html", {"events": store.events(limit=read.LIST)[::-1]}


PAGES: dict[str, Page] = {
    "/": _overview,
    "/models/{model:path}": _model,
    "/runs": _runs,
    "/runs/{id}": _run,
    "/compare": _compare,
    "/watch/{model:path}": _watch,
    "/data": _datasets,
    "/data/{id}": _dataset,
    "/findings": _findings,
    "/ledger": _ledger,
    "/history": _history,
}


def _known(there: bool, what: str, name: str) -> None:
    if not there:
        raise HTTPException(404, f"There is no {what} '{name}' in this store.")


# ── answering ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _answer(store: Store, pages: Environment, page: Page, request: Request) -> Response:
    """Draw one page in the thread pool."""

    def draw() -> str:
        name, facts = page(store, request)
        return pages.get_template(name).render(facts, here=request.url.path)

    return HTMLResponse(await run_in_threadpool(draw))


async def _style(request: Request) -> Response:
    return Response(await run_in_threadpool((HERE / "templates" / "style.css").read_bytes), media_type="text/css")


async def _failed(pages: Environment, request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), error
    said = error.detail if error.status_code == 404 else f"{error.status_code}: {error.detail}"
    body = pages.get_template("failed.html").render(title="Not here", said=said, here="")
    return HTMLResponse(body, status_code=error.status_code)


async def _broken(pages: Environment, request: Request, error: Exception) -> Response:
    """Say what the store could not read, in the words of the error."""
    body = pages.get_template("failed.html").render(title="The store cannot be read", said=str(error), here="")
    return HTMLResponse(body, status_code=503 if isinstance(error, StoreError) else 500)


def _guarded(app: ASGIApp, hosts: frozenset[str]) -> ASGIApp:
    """Refuse other hosts and methods before anything is looked up, and put the headers on every answer."""
    raw = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *raw]
            await send(message)

        host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
        if _bare(host) not in hosts:
            refusal = PlainTextResponse("This page answers only to the name of its own machine.\n", status_code=421)
            await refusal(scope, receive, headed)
        elif scope["method"] not in ("GET", "HEAD"):
            only = PlainTextResponse("This page only shows; it takes nothing.\n", status_code=405)
            await only(scope, receive, headed)
        else:
            await app(scope, receive, headed)

    return guarded


def _bare(host: str) -> str:
    """Return a Host header without its port: ``localhost:8322`` is ``localhost``, ``[::1]:8322`` is ``[::1]``."""
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).lower()


def _environment() -> Environment:
    """Build the templates' environment: everything escaped, every text cleaned, nothing undefined let through."""
    pages = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalized,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    words = ("count", "decimal", "percent", "money", "size", "seconds", "when", "day", "short_day", "estimate", "plain")
    pages.filters.update({name: getattr(text, name) for name in words})
    pages.filters["url"] = lambda value: quote(str(value), safe="")
    pages.globals["leading"] = read.leading
    pages.filters["metric"] = lambda name: metric.NAMES.get(name, name)
    pages.filters["tone"] = lambda severity: {"error": "bad", "warning": "warn", "info": "calm"}.get(severity, "good")
    return pages


def _finalized(value: Any) -> Any:
    return value if isinstance(value, (Markup, int, float)) else text.clean(value)

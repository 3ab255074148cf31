"""The pages for people and for machines that watch: a page to try a request, the documentation, OpenAPI, metrics,
health.

Everything is written from what is served now, with nothing fetched from elsewhere: the page works on a machine
without internet. The example on it is a real row when the glue gives one, else one made from the request columns.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import msgspec

from tenon.contract.column import Column, Source
from tenon.serving.door import HTML, Act, Asked, Door, Page, Result
from tenon.serving.live import Live
from tenon.serving.meter import Meter
from tenon.serving.refusal import Refused, reply

if TYPE_CHECKING:
    from tenon.serving.lm.language import Language

METRICS = b"text/plain; version=0.0.4; charset=utf-8"
SAMPLES: dict[str, Any] = {
    "int": 1,
    "float": 1.0,
    "text": "text",
    "bool": True,
    "date": "2013-11-01",
    "timestamp": "2013-11-01T05:15:00",
}
JSON_TYPES: dict[str, dict[str, Any]] = {
    "int": {"type": "integer", "format": "int64"},
    "float": {"type": "number", "format": "double"},
    "text": {"type": "string"},
    "bool": {"type": "boolean"},
    "date": {"type": "string", "format": "date"},
    "timestamp": {"type": "string", "format": "date-time"},
}


LANGUAGE_PATHS = {
    "/v1/completions": "Continue a text, in OpenAI's words",
    "/v1/chat/completions": "Answer a conversation, in OpenAI's words",
    "/v1/embeddings": "Embed texts, in OpenAI's words",
}
NO_LANGUAGES: Mapping[str, Language] = {}


def doors(
    lives: Mapping[str, Live],
    sources: Mapping[str, Source],
    meter: Meter,
    ready: Callable[[], bool],
    languages: Mapping[str, Language],
) -> dict[str, Door]:
    """Return the doors of the pages, for the models and sources served."""

    async def home(_: Asked) -> Result:
        return Page(body=home_page(lives, languages), kind=HTML)

    async def documentation(_: Asked) -> Result:
        return Page(body=docs_page(lives, sources, languages), kind=HTML)

    async def described(_: Asked) -> Result:
        return reply(openapi(lives, sources, languages))

    async def metrics(_: Asked) -> Result:
        return Page(body=meter.text(), kind=METRICS)

    async def healthy(_: Asked) -> Result:
        return reply({"status": "ok"})

    async def is_ready(_: Asked) -> Result:
        models = {name: live.service.version for name, live in lives.items()}
        models.update((name, language.version) for name, language in languages.items())
        if ready():
            return reply({"status": "ready", "models": models})
        return Refused(
            status=503, said="expected a service that is ready, got one that starts or stops", retry_after_s=1.0
        )

    def door(act: Act, *, free: bool = False) -> Door:
        return Door(name="pages", acts={"GET": act}, free=free)

    return {
        "/": door(home),
        "/docs": door(documentation),
        "/openapi.json": door(described),
        "/metrics": door(metrics),
        "/healthz": door(healthy, free=True),
        "/readyz": door(is_ready, free=True),
    }


def example(live: Live) -> dict[str, Any]:
    """Return a request row: the service's own example, in JSON values, or one made from its columns."""
    given = {name: value for name, value in live.service.example.items() if name in live.reader.names}
    if given:
        plain: dict[str, Any] = msgspec.to_builtins(given)
        return plain
    return {column.name: sample(column) for column in live.reader.columns}


def sample(column: Column) -> Any:
    """Return a value that the column allows."""
    if column.one_of:
        return column.one_of[0]
    if column.between is not None:
        low = column.between[0]
        return round(low) if column.type == "int" and not isinstance(low, str) else low
    return SAMPLES[column.type]


def home_page(lives: Mapping[str, Live], languages: Mapping[str, Language] = NO_LANGUAGES) -> bytes:
    """Return the page on which a person tries a request."""
    models = [
        {"name": name, "version": live.service.version, "label": live.service.label, "example": example(live)}
        for name, live in lives.items()
    ]
    for name, language in languages.items():
        asks = {"model": name, "prompt": "def ", "max_tokens": 40, "temperature": 0.5}
        shown = {"name": name, "version": language.version, "label": "continues a text", "example": asks}
        models.append({**shown, "post": "v1/completions"})
    data = msgspec.json.encode(models).decode().replace("<", "\\u003c")  # so that no value can end the script element
    return _template("home.html").replace("/*MODELS*/[]", data).encode()


def docs_page(
    lives: Mapping[str, Live], sources: Mapping[str, Source], languages: Mapping[str, Language] = NO_LANGUAGES
) -> bytes:
    """Return the documentation of what is served: each model with its columns, each source, the other doors."""
    parts = []
    for name, live in lives.items():
        row = html.escape(msgspec.json.format(msgspec.json.encode({"rows": [example(live)]}), indent=2).decode())
        known, version = html.escape(name), html.escape(live.service.version)
        predicts = f"Predicts <code>{html.escape(live.service.label)}</code>." if live.service.label else ""
        parts.append(
            f"<h2 id='{known}'>{known}</h2><p>Version <code>{version}</code>. {predicts}</p>"
            f"<h3>POST /predict/{known}</h3><pre>{row}</pre>{_columns(live.reader.columns)}"
            f"<p>Also over the Open Inference Protocol: <code>/v2/models/{known}/infer</code>. The truth, when it is "
            f"known: <code>POST /labels/{known}</code> with rows of <code>id</code>, <code>label</code> and "
            f"<code>known</code>.</p>"
        )
    for name, source in sources.items():
        parts.append(f"<h2>POST /facts/{html.escape(name)}</h2>{_columns([c for c in source.columns if not c.derive])}")
    for name, language in languages.items():
        known, shape = html.escape(name), language.bundle.shape
        parts.append(
            f"<h2 id='{known}'>{known}</h2><p>A language model, version <code>{language.version}</code>, with a context"
            f" of {shape.context:,} tokens. OpenAI's clients can ask it; their base URL is this service's address"
            f" and <code>/v1</code>: <code>/v1/completions</code>, <code>/v1/chat/completions</code>"
            f"{', <code>/v1/embeddings</code>' if language.bundle.embeddings else ''}.</p>"
        )
    return _template("docs.html").replace("<!--PARTS-->", "\n".join(parts)).encode()


def _columns(columns: Any) -> str:
    rows = "".join(
        f"<tr><td><code>{html.escape(column.name)}</code></td><td>{column.type}</td>"
        f"<td>{'may be missing' if column.nullable else 'required'}</td>"
        f"<td>{html.escape(_allowed(column))}</td><td>{html.escape(column.description)}</td></tr>"
        for column in columns
    )
    return f"<table><tr><th>column</th><th>type</th><th></th><th>values</th><th></th></tr>{rows}</table>"


def _allowed(column: Column) -> str:
    said = [column.unit] if column.unit else []
    if column.between is not None:
        said.append(f"{column.between[0]} to {column.between[1]}")
    if column.one_of is not None:
        said.append("one of " + ", ".join(map(str, column.one_of[:20])) + (" …" if len(column.one_of) > 20 else ""))
    if column.pattern:
        said.append(f"like {column.pattern}")
    return "; ".join(said)


def _template(name: str) -> str:
    return files("tenon.serving").joinpath(name).read_text("utf-8")


# ── OpenAPI ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def openapi(
    lives: Mapping[str, Live], sources: Mapping[str, Source], languages: Mapping[str, Language] = NO_LANGUAGES
) -> dict[str, Any]:
    """Describe the doors of this service as OpenAPI 3.1."""
    paths: dict[str, Any] = {}
    for name, live in lives.items():
        prediction: dict[str, Any] = {"id": {"type": "string"}, "score": {"type": ["number", "null"]}}
        if live.service.threshold is not None:
            prediction["decision"] = {"type": "boolean"}
        answer = _object(
            {
                "model": {"type": "string"},
                "version": {"type": "string"},
                "predictions": {"type": "array", "items": _object(prediction)},
            }
        )
        said = f"Predict {live.service.label}" if live.service.label else f"Predict with {name}"
        paths[f"/predict/{name}"] = _post(said, _row(live.reader.columns), answer, example(live))
        label = _object({"id": {"type": "string"}, "label": {"type": ["number", "boolean", "null"]}}, known="timestamp")
        paths[f"/labels/{name}"] = _post(f"Say what became of predictions of {name}", label, _kept("model"))
        paths[f"/v2/models/{name}/infer"] = _post(
            "Predict over the Open Inference Protocol", {"type": "object"}, {"type": "object"}, bare=True
        )
    for name, source in sources.items():
        row = _row([column for column in source.columns if not column.derive])
        paths[f"/facts/{name}"] = _post(f"Post rows of {name} as they become known", row, _kept("source"))
    for path, said in LANGUAGE_PATHS.items() if languages else ():
        names = {"type": "object", "properties": {"model": {"enum": sorted(languages)}}, "required": ["model"]}
        paths[path] = _post(said, names, {"type": "object"}, bare=True)
    for path, said in (
        ("/healthz", "Is the process alive"),
        ("/readyz", "Are requests welcome"),
        ("/metrics", "Counts and latencies, for Prometheus"),
    ):
        paths[path] = {"get": {"summary": said, "responses": {"200": {"description": "yes"}}}}
    return {"openapi": "3.1.0", "info": {"title": "tenon", "version": "1"}, "paths": paths}


def _object(properties: Mapping[str, Any], *, known: str = "") -> dict[str, Any]:
    every = dict(properties)
    if known:
        every["known"] = JSON_TYPES[known]
    return {"type": "object", "properties": every, "required": list(properties)}


def _kept(what: str) -> dict[str, Any]:
    return _object({what: {"type": "string"}, "accepted": {"type": "integer"}})


def _row(columns: Any) -> dict[str, Any]:
    """Return the JSON schema of a request row."""
    properties: dict[str, Any] = {}
    for column in columns:
        schema = dict(JSON_TYPES[column.type])
        if column.nullable:
            schema["type"] = [schema["type"], "null"]
        if column.between is not None and not isinstance(column.between[0], str):
            schema["minimum"], schema["maximum"] = column.between
        if column.one_of is not None:
            schema["enum"] = [*column.one_of, *([None] if column.nullable else [])]
        if column.pattern:
            schema["pattern"] = column.pattern
        if column.description:
            schema["description"] = column.description
        properties[column.name] = schema
    properties.setdefault("id", {"type": ["string", "integer", "null"], "description": "your own id of this row"})
    required = [column.name for column in columns if not column.nullable]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _post(
    said: str, row: Mapping[str, Any], answer: Mapping[str, Any], shown: Any = None, *, bare: bool = False
) -> dict[str, Any]:
    rows = {
        "type": "object",
        "properties": {"rows": {"type": "array", "items": row, "minItems": 1}},
        "required": ["rows"],
    }
    content: dict[str, Any] = {"schema": row if bare else {"oneOf": [rows, row]}}
    if shown is not None:
        content["example"] = {"rows": [shown]}
    error = _object({"error": {"type": "string"}})
    codes = {"400": "not JSON, or no object", "413": "too large", "422": "breaks the columns", "429": "come back later"}
    responses: dict[str, Any] = {
        "200": {"description": "answered", "content": {"application/json": {"schema": answer}}}
    }
    for code, meaning in codes.items():
        responses[code] = {"description": meaning, "content": {"application/json": {"schema": error}}}
    return {
        "post": {"summary": said, "requestBody": {"content": {"application/json": content}}, "responses": responses}
    }

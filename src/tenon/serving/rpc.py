"""The gRPC door: the Open Inference Protocol, version 2, beside HTTP, with one body for both.

A call becomes what an HTTP request of the protocol is (`oip`): the same tensors, checked by the same reader,
admitted by the same keys and queue, batched, observed and charged alike. What is of gRPC alone is here: messages
(`wire`), status codes, deadlines (a call whose caller has stopped waiting leaves the queue), limits of message,
metadata and calls, and the drain: `stop` takes no new call and lets those that run finish within `drain_s`.

Codes: what is wrong with the request INVALID_ARGUMENT, with the path of the fault; no key UNAUTHENTICATED, another's
business PERMISSION_DENIED; no such model NOT_FOUND; come back later RESOURCE_EXHAUSTED (a rate, a full queue, a spent
budget) or UNAVAILABLE (unloaded), with google.rpc.RetryInfo in `grpc-status-details-bin` and `retry-after` beside it;
our fault INTERNAL. Needs the extra `grpc`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from importlib.util import find_spec
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tenon.errors import UsageError, missing_extra, nearest, quoted, sentence
from tenon.serving import oip, wire
from tenon.serving.door import Asked
from tenon.serving.refusal import Refused

if TYPE_CHECKING:
    from tenon.serving.app import App

log = logging.getLogger("tenon.serving")
# status of a Refused -> gRPC's code, by name
CODES = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED", 413: "INVALID_ARGUMENT", 422: "INVALID_ARGUMENT", 429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL", 503: "UNAVAILABLE",
}  # fmt: skip
# tensor datatype -> the field of InferTensorContents that holds its values
CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip
KEPT = frozenset(("authorization", "x-api-key", "x-route-key", "x-session-id", "traceparent"))
Call = Callable[[Any, Asked], Awaitable[Any]]


class Rpc:
    """A gRPC server of one app, on the event loop that starts it."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.messages = wire.messages()
        self._server: Any = None

    async def start(self, host: str, port: int) -> None:
        """Listen; UsageError when the port cannot be had."""
        import grpc

        limits = self.app.settings.limits
        options = [
            ("grpc.max_receive_message_length", limits.body_bytes),
            ("grpc.max_send_message_length", limits.body_bytes),
            ("grpc.max_metadata_size", limits.header_bytes),
            ("grpc.max_concurrent_streams", limits.streams),
            ("grpc.max_connection_idle_ms", int(limits.idle_s * 1e3)),
            ("grpc.so_reuseport", 0),
        ]
        self._server = grpc.aio.server(options=options, maximum_concurrent_rpcs=limits.connections)
        calls: dict[str, tuple[Call, str]] = {
            "ServerLive": (self._live, "v2"),
            "ServerReady": (self._ready, "v2"),
            "ServerMetadata": (self._server_metadata, "v2"),
            "ModelReady": (self._model_ready, "v2"),
            "ModelMetadata": (self._model_metadata, "v2"),
            "ModelInfer": (self._infer, "infer"),
            "RepositoryIndex": (self._index, "v2"),
            "RepositoryModelLoad": (self._load, "repository"),
            "RepositoryModelUnload": (self._unload, "repository"),
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(self._handler(name, call, door))
            for name, (call, door) in calls.items()
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(wire.SERVICE, handlers),))
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            taken = self._server.add_insecure_port(place)
        except RuntimeError:
            taken = 0
        if not taken:
            raise UsageError(sentence(f"port {port} of {host} to be free", "it taken", at="serve.grpc_port"))
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Take no new call, and let those that run finish within so many seconds."""
        if self._server is not None:
            await self._server.stop(grace_s)

    # ── one call ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _handler(self, name: str, call: Call, door: str) -> Callable[[bytes, Any], Awaitable[bytes]]:
        """Wrap a call with what every call has: metadata, who asks, the message read, its code, its count."""
        wanted = self.messages[f"{name}Request"]

        async def handle(body: bytes, context: Any) -> bytes:
            app, arrived = self.app, perf_counter()
            headers = {key.encode(): _bytes(value) for key, value in context.invocation_metadata() if key in KEPT}
            trace = app.traced(headers)
            if trace:
                await context.send_initial_metadata((("traceparent", trace.decode()),))
            app.in_flight += 1
            try:
                found = await self._answer(wanted, call, door, (headers, body, arrived))
            finally:
                app.in_flight -= 1
            app.meter.request("grpc", found.status if isinstance(found, Refused) else 200)
            if isinstance(found, Refused):
                return await self._refuse(found, context)
            return bytes(found.SerializeToString())

        return handle

    async def _answer(
        self, wanted: Any, call: Call, door: str, came: tuple[Mapping[bytes, bytes], bytes, float]
    ) -> Any:
        from google.protobuf.message import DecodeError

        headers, body, arrived = came
        caller = self.app.admitted(door, headers, arrived)
        if isinstance(caller, Refused):
            return caller
        try:
            request = wanted.FromString(body)
        except DecodeError:
            return Refused(
                status=400, said=f"expected a {wanted.DESCRIPTOR.name}, got {len(body):,} bytes that are none"
            )
        asked = Asked(headers, body, arrived, self.app.seams.clock())
        asked.caller = caller
        try:
            return await call(request, asked)
        except Exception:  # the edge of a request: answered as INTERNAL, logged with its traceback
            log.exception("%s failed", wanted.DESCRIPTOR.name)
            return Refused(status=500, said="this request failed inside the service; its log says why")

    async def _refuse(self, refusal: Refused, context: Any) -> bytes:
        """End the call with the code of a refusal, and when to come back."""
        import grpc

        code = getattr(grpc.StatusCode, CODES.get(refusal.status, "UNKNOWN"))
        if refusal.status == 503 and refusal.full:
            code = grpc.StatusCode.RESOURCE_EXHAUSTED
        if refusal.retry_after_s > 0:
            made, wait_s = self.messages, refusal.retry_after_s
            delay = made["Duration"](seconds=int(wait_s), nanos=int(wait_s % 1 * 1e9))
            info = made["Any"](type_url=wire.RETRY_INFO, value=made["RetryInfo"](retry_delay=delay).SerializeToString())
            status = made["Status"](code=code.value[0], message=refusal.words(), details=[info])
            more = (
                ("grpc-status-details-bin", status.SerializeToString()),
                ("grpc-retry-pushback-ms", str(math.ceil(wait_s * 1e3))),
                ("retry-after", str(math.ceil(wait_s))),
            )
            context.set_trailing_metadata(more)
        await context.abort(code, refusal.words())
        return b""

    def _live_of(self, name: str, version: str) -> Any:
        """Return the model that a call names, or a Refused that names the nearest."""
        live = self.app.lives.get(name)
        if live is None:
            return Refused(status=404, said=f"no model is named {name[:200]!r}; {nearest(name[:200], self.app.lives)}")
        if version and version != live.service.version:
            said = f"'{name}' serves version {live.service.version}, not {version[:200]!r}"
            return Refused(status=404, said=said)
        return live

    # ── what is there ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _live(self, _: Any, __: Asked) -> Any:
        return self.messages["ServerLiveResponse"](live=True)

    async def _ready(self, _: Any, __: Asked) -> Any:
        return self.messages["ServerReadyResponse"](ready=self.app.ready)

    async def _server_metadata(self, _: Any, __: Asked) -> Any:
        about = oip.server_metadata()
        return self.messages["ServerMetadataResponse"](name=about["name"], version=about["version"])

    async def _model_ready(self, request: Any, _: Asked) -> Any:
        live = self._live_of(request.name, request.version)
        if isinstance(live, Refused):
            return live
        return self.messages["ModelReadyResponse"](ready=self.app.ready and live.loaded)

    async def _model_metadata(self, request: Any, _: Asked) -> Any:
        live = self._live_of(request.name, request.version)
        if isinstance(live, Refused):
            return live
        return self.messages["ModelMetadataResponse"](**oip.model_metadata(live))

    async def _index(self, request: Any, _: Asked) -> Any:
        return self.messages["RepositoryIndexResponse"](models=oip.repository_index(self.app.lives, request.ready))

    async def _load(self, request: Any, _: Asked) -> Any:
        live = self._live_of(request.model_name, "")
        if isinstance(live, Refused):
            return live
        refused = await oip.loaded(request.model_name, live, self.app.loader, bool(request.parameters))
        return refused or self.messages["RepositoryModelLoadResponse"]()

    async def _unload(self, request: Any, _: Asked) -> Any:
        live = self._live_of(request.model_name, "")
        if isinstance(live, Refused):
            return live
        refused = oip.unloaded(live, self.app.loader)
        return refused or self.messages["RepositoryModelUnloadResponse"]()

    # ── infer ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _infer(self, request: Any, asked: Asked) -> Any:
        live = self._live_of(request.model_name, request.model_version)
        if isinstance(live, Refused):
            return live
        answered = await oip.inferred(live, partial(_tensors, request), asked)
        if isinstance(answered, Refused):
            return answered
        raw = bool(request.raw_input_contents)
        response = self.messages["ModelInferResponse"](
            model_name=answered.service.name, model_version=answered.service.version, id=request.id
        )
        for name in answered.wanted:
            datatype, values = answered.tensors[name]
            output = response.outputs.add(name=name, datatype=datatype, shape=[len(values)])
            if raw:
                response.raw_output_contents.append(oip.to_bytes(datatype, values))
            else:
                plain = [str(value).encode() for value in values] if datatype == "BYTES" else values
                getattr(output.contents, CONTENTS[datatype]).extend(plain)
        for key, value in answered.headers:
            response.parameters[key.decode()].string_param = value.decode()
        return response


def _tensors(request: Any) -> tuple[dict[str, Any], bytes] | Refused:
    """Return the head and the bytes that the same request would have over HTTP."""
    raws = request.raw_input_contents
    inputs: list[dict[str, Any]] = []
    if raws and len(raws) != len(request.inputs):
        said = f"expected {len(request.inputs)} raw_input_contents, one for each input, got {len(raws)}"
        return Refused(status=400, said=said)
    for number, tensor in enumerate(request.inputs):
        head = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        given = [field.name for field, _ in tensor.contents.ListFields()]
        place = f"inputs[{tensor.name[:80]}]"
        if raws:
            if given:
                return Refused(status=400, said=f"expected raw_input_contents alone, got contents too - at {place}")
            inputs.append({**head, "parameters": {"binary_data_size": len(raws[number])}})
            continue
        field = CONTENTS.get(tensor.datatype)
        if field is None:
            said = f"expected a datatype among {quoted(CONTENTS)}, got {tensor.datatype[:80]!r} - at {place}"
            return Refused(status=400, said=said)
        if given not in ([], [field]):
            return Refused(status=400, said=f"expected {field}, got {', '.join(given)} - at {place}.contents")
        values: list[Any] = list(getattr(tensor.contents, field))
        if field == "bytes_contents":
            try:
                values = [value.decode("utf-8") for value in values]
            except UnicodeDecodeError:
                return Refused(status=400, said=f"expected text in UTF-8, got other bytes - at {place}.contents")
        elif field in ("fp32_contents", "fp64_contents"):
            values = [None if value != value else value for value in values]
        inputs.append({**head, "data": values})
    outputs = [{"name": output.name} for output in request.outputs]
    return {"inputs": inputs, "outputs": outputs, "id": request.id or None}, b"".join(raws)


def _bytes(value: str | bytes) -> bytes:
    return value.encode("utf-8", "replace") if isinstance(value, str) else value


def needed() -> None:
    """Say what to install when gRPC is not there."""
    for package, module in (("grpcio", "grpc"), ("protobuf", "google.protobuf")):
        try:
            found = find_spec(module)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise missing_extra(package, "grpc", "serve over gRPC")

"""The Open Inference Protocol, version 2, over HTTP: what existing clients of model servers speak.

A model has one input tensor for each request column (shape ``[n]`` or ``[n, 1]``) and up to three outputs: `score`
FP64, `decision` BOOL when there is a threshold, and `id` BYTES, by which a label is posted later. Numbers are read as
JSON or in the binary tensor extension (little-endian bytes after the JSON, whose length is in the header
`Inference-Header-Content-Length`; texts are each preceded by their length in four bytes). NaN stands for a missing
number. Instants and dates are BYTES in ISO 8601.

The specification: https://github.com/open-inference/open-inference-protocol and Triton's extension_binary_data.md.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec
import numpy as np

from tenon.errors import TenonError, quoted
from tenon.serving.door import Act, Asked, Door, Page, Result, aside
from tenon.serving.live import Live
from tenon.serving.refusal import Refused, reply, shown
from tenon.serving.rows import RowReader, Rows, decode
from tenon.serving.service import Service

DATATYPES = {"int": "INT64", "float": "FP64", "text": "BYTES", "bool": "BOOL", "date": "BYTES", "timestamp": "BYTES"}
NUMBERS = {
    "BOOL": "?",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
PATH = re.compile(r"\$\.rows\[(\d+)\]\.(.*)", re.DOTALL)
EXTENSIONS = ["binary_tensor_data"]


Load = Callable[[str], Awaitable[None]]


def doors(lives: Mapping[str, Live], ready: Callable[[], bool], load: Load | None = None) -> dict[str, Door]:
    """Return the doors of the protocol for the models served; with `load`, clients may load and unload them."""

    async def server(_: Asked) -> Result:
        return reply({**server_metadata(), "extensions": EXTENSIONS})

    async def live_now(_: Asked) -> Result:
        return Page(body=b"")

    async def ready_now(_: Asked) -> Result:
        return Page(body=b"") if ready() else Refused(status=503, said="not ready", retry_after_s=1.0)

    async def index(asked: Asked) -> Result:
        given = decode(asked.body, 4) if asked.body.strip() else {}
        if isinstance(given, Refused):
            return given
        only = isinstance(given, dict) and given.get("ready") is True
        return msgspec.json.encode(repository_index(lives, only))

    found = {
        "/v2": _door("v2", GET=server),
        "/v2/health/live": _door("v2", GET=live_now),
        "/v2/health/ready": _door("v2", GET=ready_now),
        "/v2/repository/index": _door("v2", POST=index),
    }
    for name, live in lives.items():
        for path in (f"/v2/models/{name}", f"/v2/models/{name}/versions/{live.service.version}"):
            found[path] = _door("v2", GET=_metadata(live))
            found[f"{path}/ready"] = _door("v2", GET=_ready(live, ready))
            found[f"{path}/infer"] = _door("infer", POST=_infer(live))
        found[f"/v2/repository/models/{name}/load"] = _door("repository", POST=_load(name, live, load))
        found[f"/v2/repository/models/{name}/unload"] = _door("repository", POST=_unload(name, live, load))
    return found


# ── the repository ───────────────────────────────────────────────────────────────────────────────────────────────────


def repository_index(lives: Mapping[str, Live], only_ready: bool) -> list[dict[str, str]]:
    """Return what is served, each with its version and state."""
    return [
        {
            "name": name,
            "version": live.service.version,
            "state": "READY" if live.loaded else "UNAVAILABLE",
            "reason": "" if live.loaded else "unloaded",
        }
        for name, live in lives.items()
        if live.loaded or not only_ready
    ]


def _ready(live: Live, ready: Callable[[], bool]) -> Act:
    async def ready_now(_: Asked) -> Result:
        if ready() and live.loaded:
            return Page(body=b"")
        return Refused(status=503, said=f"'{live.service.name}' is not ready", retry_after_s=1.0)

    return ready_now


def _load(name: str, live: Live, load: Load | None) -> Act:
    """Load the version that the alias names now; the name is one of this table's, and a request brings no files."""

    async def act(asked: Asked) -> Result:
        if load is None:
            return _fixed()
        given = decode(asked.body, 8) if asked.body.strip() else {}
        if isinstance(given, Refused):
            return given
        brought = given.get("parameters") if isinstance(given, dict) else None
        return await loaded(name, live, load, bool(brought)) or reply({})

    return act


async def loaded(name: str, live: Live, load: Load | None, brought: bool) -> Refused | None:
    """Load the version that the alias names now, or say why not; a request brings (`brought`) nothing to load."""
    if load is None:
        return _fixed()
    if brought:
        return Refused(status=400, said="expected a load without parameters: what is loaded is what the alias names")
    try:
        await load(name)
    except TenonError as error:
        return Refused(status=503, said=f"'{name}' was not loaded: {error}", retry_after_s=5.0)
    live.loaded = True
    return None


def unloaded(live: Live, load: Load | None) -> Refused | None:
    """Answer no more requests of a model until it is loaded again, or say why not."""
    if load is None:
        return _fixed()
    live.loaded = False
    return None


def _unload(name: str, live: Live, load: Load | None) -> Act:
    async def act(_: Asked) -> Result:
        return unloaded(live, load) or reply({})

    return act


def _fixed() -> Refused:
    return Refused(
        status=403, said="expected a service whose models clients may load and unload (serve.repository), got another"
    )


# ── what is there ────────────────────────────────────────────────────────────────────────────────────────────────────


def _door(name: str, **acts: Act) -> Door:
    return Door(name=name, acts=acts, wrong=_wrong)


def _wrong(refusal: Refused) -> Page:
    """Write a refusal as the protocol wants it: one text under `error`."""
    return Page(body=reply({"error": refusal.words()}), status=refusal.status, headers=refusal.headers())


def _version() -> str:
    try:
        return version("tenon")
    except PackageNotFoundError:
        return "0"


def server_metadata() -> dict[str, str]:
    """Return the server's name and version."""
    return {"name": "tenon", "version": _version()}


def _metadata(live: Live) -> Act:
    async def metadata(_: Asked) -> Result:
        return reply(model_metadata(live))

    return metadata


def model_metadata(live: Live) -> dict[str, Any]:
    """Return a model's name, version, inputs and outputs."""
    service = live.service
    outputs = [{"name": "score", "datatype": "FP64", "shape": [-1]}]
    if service.threshold is not None:
        outputs.append({"name": "decision", "datatype": "BOOL", "shape": [-1]})
    outputs.append({"name": "id", "datatype": "BYTES", "shape": [-1]})
    inputs = [
        {"name": column.name, "datatype": DATATYPES[column.type], "shape": [-1]} for column in live.reader.columns
    ]
    return {
        "name": service.name,
        "versions": [service.version],
        "platform": "tenon",
        "inputs": inputs,
        "outputs": outputs,
    }


# ── infer ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """An infer request, read: its own id, the outputs it wants (as bytes or not), and its checked rows."""

    id: str | None
    wanted: Mapping[str, bool]
    checked: Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Inferred:
    """An infer request, answered: the tensors there are, and which of them are wanted, as bytes or not."""

    service: Service
    id: str | None
    wanted: Mapping[str, bool]
    tensors: Mapping[str, tuple[str, Sequence[Any]]]
    headers: Sequence[tuple[bytes, bytes]] = ()


Split = Callable[[], "tuple[dict[str, Any], bytes] | Refused"]


def _infer(live: Live) -> Act:
    async def infer(asked: Asked) -> Result:
        found = await inferred(live, partial(_split, asked), asked)
        if isinstance(found, Refused):
            return found
        answer = {"model_name": found.service.name, "model_version": found.service.version}
        if found.id is not None:
            answer["id"] = found.id
        written = _outputs(found.wanted, answer, found.tensors)
        if not found.headers:
            return written
        page = Page(body=written) if isinstance(written, bytes) else written
        return replace(page, headers=(*page.headers, *found.headers))

    return infer


async def inferred(live: Live, split: Split, asked: Asked) -> Inferred | Refused:
    """Answer an infer request of any door; `split` gives its head as JSON has it, and the bytes of binary tensors."""
    service, reader = live.service, live.reader
    names = ("score", "id") if service.threshold is None else ("score", "decision", "id")
    limit = live.limits.rows_per_request
    asking = await aside(len(asked.body), partial(_read, split, reader, names, limit))
    if isinstance(asking, Refused):
        return live.refuse(asking, asked)

    def again(other: RowReader) -> Rows | Refused:
        found = _read(split, other, names, limit)
        return found if isinstance(found, Refused) else found.checked

    answered = await live.answer(service, asking.checked, asked, again)
    if isinstance(answered, Refused):
        return answered
    service, scores = answered.service, answered.scores
    tensors: dict[str, tuple[str, Sequence[Any]]] = {"score": ("FP64", scores), "id": ("BYTES", answered.ids)}
    if service.threshold is not None:
        tensors["decision"] = ("BOOL", [score >= service.threshold for score in scores])
    missing = asking.wanted.keys() - tensors.keys()
    if missing:  # another version answered, of another task
        return Refused(status=503, said=f"expected output {quoted(missing)}, got a version without", retry_after_s=1)
    return Inferred(service=service, id=asking.id, wanted=asking.wanted, tensors=tensors, headers=answered.headers)


def _read(split: Split, reader: RowReader, names: Sequence[str], limit: int) -> Asking | Refused:
    """Read and check an infer request; a fault's path is that of the tensor, ``inputs[NAME][ROW]``."""
    parts = split()
    if isinstance(parts, Refused):
        return parts
    head, blob = parts
    wanted = _wanted(head, names)
    if isinstance(wanted, Refused):
        return wanted
    rows = _rows(head, blob, limit)
    if isinstance(rows, Refused):
        return rows
    checked = reader.convert(rows)
    if isinstance(checked, Refused):
        faults = [{**each, "path": PATH.sub(r"inputs[\2][\1]", each["path"])} for each in checked.faults]
        return replace(checked, faults=faults)
    own = head.get("id")
    return Asking(id=own if isinstance(own, str) else None, wanted=wanted, checked=checked)


def _split(asked: Asked) -> tuple[dict[str, Any], bytes] | Refused:
    """Return the JSON part of the request, decoded and an object, and the binary part after it."""
    body = asked.body
    length = asked.headers.get(b"inference-header-content-length")
    size = len(body)
    if length is not None:
        if not length.isdigit() or len(length) > 12 or int(length) > len(body):
            said = f"Inference-Header-Content-Length within the body of {len(body)} bytes"
            return Refused(status=400, said=f"expected {said}, got {shown(length.decode('latin-1'))}")
        size = int(length)
    head = decode(body[:size], 8)
    if isinstance(head, dict):
        return head, body[size:]
    return head if isinstance(head, Refused) else Refused(status=400, said=f"expected an object, got {shown(head)}")


def _rows(head: Mapping[str, Any], blob: bytes, limit: int) -> list[dict[str, Any]] | Refused:
    """Turn the input tensors into rows; each input must have as many values as the first."""
    inputs = head.get("inputs")
    if not isinstance(inputs, list) or not inputs or not all(isinstance(tensor, dict) for tensor in inputs):
        return Refused(status=400, said=f"expected a list of input tensors under inputs, got {shown(inputs)}")
    columns: dict[str, list[Any]] = {}
    offset, count = 0, -1
    for tensor in inputs:
        name, parameters = tensor.get("name"), tensor.get("parameters")
        if not isinstance(name, str) or name in columns:
            return Refused(status=400, said=f"expected each input to have a name of its own, got {shown(name)}")
        size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
        if size is not None and (type(size) is not int or not 0 <= size <= len(blob) - offset):
            return _bad(name, f"binary_data_size within the {len(blob) - offset} bytes that are left", size)
        shape = tensor.get("shape")
        rows = _height(shape)
        if rows is None or (count >= 0 and rows != count):
            return _bad(name, f"shape [{count if count >= 0 else 'n'}] or [{count if count >= 0 else 'n'}, 1]", shape)
        if rows > limit:
            return Refused(status=413, said=f"expected at most {limit:,} rows in a request, got {rows:,}")
        count = rows
        values = _values(tensor, rows) if size is None else _binary(tensor, blob[offset : offset + size], rows)
        if isinstance(values, Refused):
            return values
        columns[name] = values
        offset += size or 0
    if offset != len(blob):
        return Refused(status=400, said=f"expected {offset} bytes of binary tensors, got {len(blob)}")
    names = list(columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _height(shape: Any) -> int | None:
    """Return n of a shape [n] or [n, 1]; None for any other."""
    whole = isinstance(shape, list) and len(shape) in (1, 2) and all(type(size) is int for size in shape)
    return shape[0] if whole and shape[0] > 0 and shape[1:] in ([], [1]) else None


def _values(tensor: Mapping[str, Any], rows: int) -> list[Any] | Refused:
    """Return the values of a tensor written as JSON."""
    data, name = tensor.get("data"), tensor["name"]
    if not isinstance(data, list):
        return _bad(name, "data as a list, or binary_data_size", data)
    datatype = tensor.get("datatype")
    if not isinstance(datatype, str) or (datatype not in NUMBERS and datatype != "BYTES"):
        return _bad(name, f"a datatype among {quoted([*NUMBERS, 'BYTES'])}", datatype)
    if len(data) == rows and all(isinstance(value, list) and len(value) == 1 for value in data):
        data = [value[0] for value in data]
    return data if len(data) == rows else _bad(name, f"{rows} values", f"{len(data)} values")


def _binary(tensor: Mapping[str, Any], blob: bytes, rows: int) -> list[Any] | Refused:
    """Return the values of a tensor written as bytes."""
    name, datatype = tensor["name"], tensor.get("datatype")
    if datatype == "BYTES":
        return _texts(name, blob, rows)
    if not isinstance(datatype, str) or datatype not in NUMBERS:
        return _bad(name, f"a datatype among {quoted([*NUMBERS, 'BYTES'])}", datatype)
    dtype = np.dtype(NUMBERS[datatype])
    if len(blob) != rows * dtype.itemsize:
        return _bad(name, f"{rows * dtype.itemsize} bytes", f"{len(blob)} bytes")
    values: list[Any] = np.frombuffer(blob, dtype).tolist()
    return [None if value != value else value for value in values] if dtype.kind == "f" else values


def _texts(name: str, blob: bytes, rows: int) -> list[Any] | Refused:
    values: list[str] = []
    offset = 0
    while offset + 4 <= len(blob) and len(values) < rows:
        (size,) = struct.unpack_from("<I", blob, offset)
        offset += 4
        if size > len(blob) - offset:
            return _bad(name, "texts each preceded by their length in 4 bytes", f"a length of {size}")
        try:
            values.append(blob[offset : offset + size].decode("utf-8"))
        except UnicodeDecodeError:
            return _bad(name, "text in UTF-8", "other bytes")
        offset += size
    if len(values) != rows or offset != len(blob):
        return _bad(name, f"{rows} texts", f"{len(values)} and {len(blob) - offset} bytes more")
    return values


def _bad(name: str, expected: str, got: Any) -> Refused:
    return Refused(status=400, said=f"expected {expected}, got {shown(got)} - at inputs[{name[:80]}]")


def _outputs(
    wanted: Mapping[str, bool], answer: dict[str, Any], tensors: Mapping[str, tuple[str, Sequence[Any]]]
) -> bytes | Page:
    """Write the outputs that were asked for, each as JSON or as bytes."""
    blobs: list[bytes] = []
    outputs = []
    for name, binary in wanted.items():
        datatype, values = tensors[name]
        output: dict[str, Any] = {"name": name, "datatype": datatype, "shape": [len(values)]}
        if binary:
            blobs.append(to_bytes(datatype, values))
            output["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            output["data"] = list(values)
        outputs.append(output)
    body = msgspec.json.encode({**answer, "outputs": outputs})
    if not blobs:
        return body
    headers = ((b"inference-header-content-length", str(len(body)).encode()),)
    return Page(body=body + b"".join(blobs), kind=b"application/octet-stream", headers=headers)


def _wanted(head: Mapping[str, Any], names: Sequence[str]) -> dict[str, bool] | Refused:
    """Return the names of the outputs to write, in order, and whether each is wanted as bytes."""
    outputs, parameters = head.get("outputs"), head.get("parameters")
    every = isinstance(parameters, dict) and parameters.get("binary_data_output") is True
    if not outputs:
        return dict.fromkeys(names, every)
    wanted: dict[str, bool] = {}
    for output in outputs if isinstance(outputs, list) else [outputs]:
        name = output.get("name") if isinstance(output, dict) else output
        if not isinstance(name, str) or name not in names:
            return Refused(status=400, said=f"expected outputs among {quoted(names)}, got {shown(name)}")
        own = output.get("parameters")
        binary = own.get("binary_data") if isinstance(own, dict) else None
        wanted[name] = binary if isinstance(binary, bool) else every
    return wanted


def to_bytes(datatype: str, values: Sequence[Any]) -> bytes:
    """Write the values of a tensor as the protocol has them, little-endian; texts each after their length."""
    if datatype == "BYTES":
        texts = [str(value).encode() for value in values]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    return np.asarray(values, NUMBERS[datatype]).tobytes()

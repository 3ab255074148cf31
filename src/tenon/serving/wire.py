"""The messages of the Open Inference Protocol over gRPC, built from their published field numbers.

Each message is a line here: its fields in the order of their numbers, with their types. `messages` turns the lines into
classes through protobuf's own descriptors, in a pool of their own, so that a client library in the same process that
brings the same messages does not collide. Nothing is generated, and no file of another project is in this one.

Numbers and names: https://github.com/open-inference/open-inference-protocol (the gRPC specification), and google.rpc's
`Status` and `RetryInfo` (https://github.com/googleapis/googleapis), which tell a client when to come back.
"""

from __future__ import annotations

from functools import cache
from typing import Any

PACKAGE = "inference"
SERVICE = "inference.GRPCInferenceService"
RETRY_INFO = "type.googleapis.com/google.rpc.RetryInfo"

# message -> its fields, numbered from 1 on; `*` repeats, `{}` is a map from text, `?` is one of several.
MESSAGES: dict[str, str] = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live bool",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready bool",
    "ModelReadyRequest": "name string, version string",
    "ModelReadyResponse": "ready bool",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "name string, version string, extensions *string",
    "ModelMetadataRequest": "name string, version string",
    "ModelMetadataResponse.TensorMetadata": "name string, datatype string, shape *int64",
    "ModelMetadataResponse": (
        "name string, versions *string, platform string, inputs *ModelMetadataResponse.TensorMetadata, "
        "outputs *ModelMetadataResponse.TensorMetadata"
    ),
    "InferParameter": (
        "bool_param ?bool, int64_param ?int64, string_param ?string, double_param ?double, uint64_param ?uint64"
    ),
    "InferTensorContents": (
        "bool_contents *bool, int_contents *int32, int64_contents *int64, uint_contents *uint32, "
        "uint64_contents *uint64, fp32_contents *float, fp64_contents *double, bytes_contents *bytes"
    ),
    "ModelInferRequest.InferInputTensor": (
        "name string, datatype string, shape *int64, parameters {}InferParameter, contents InferTensorContents"
    ),
    "ModelInferRequest.InferRequestedOutputTensor": "name string, parameters {}InferParameter",
    "ModelInferRequest": (
        "model_name string, model_version string, id string, parameters {}InferParameter, "
        "inputs *ModelInferRequest.InferInputTensor, outputs *ModelInferRequest.InferRequestedOutputTensor, "
        "raw_input_contents *bytes"
    ),
    "ModelInferResponse.InferOutputTensor": (
        "name string, datatype string, shape *int64, parameters {}InferParameter, contents InferTensorContents"
    ),
    "ModelInferResponse": (
        "model_name string, model_version string, id string, parameters {}InferParameter, "
        "outputs *ModelInferResponse.InferOutputTensor, raw_output_contents *bytes"
    ),
    "ModelRepositoryParameter": "bool_param ?bool, int64_param ?int64, string_param ?string, bytes_param ?bytes",
    "RepositoryIndexRequest": "repository_name string, ready bool",
    "RepositoryIndexResponse.ModelIndex": "name string, version string, state string, reason string",
    "RepositoryIndexResponse": "models *RepositoryIndexResponse.ModelIndex",
    "RepositoryModelLoadRequest": "repository_name string, model_name string, parameters {}ModelRepositoryParameter",
    "RepositoryModelLoadResponse": "",
    "RepositoryModelUnloadRequest": "repository_name string, model_name string, parameters {}ModelRepositoryParameter",
    "RepositoryModelUnloadResponse": "",
    # google.rpc, of which only what is sent is written down
    "Any": "type_url string, value bytes",
    "Status": "code int32, message string, details *Any",
    "Duration": "seconds int64, nanos int32",
    "RetryInfo": "retry_delay Duration",
}
SCALARS = {
    "double": 1, "float": 2, "int64": 3, "uint64": 4, "int32": 5, "bool": 8, "string": 9, "bytes": 12, "uint32": 13,
}  # fmt: skip  # as descriptor.proto numbers them
MESSAGE, REPEATED, OPTIONAL = 11, 3, 1


@cache
def messages() -> dict[str, Any]:
    """Return the classes of all messages, by name; built once for the process."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="tenon/inference.proto", package=PACKAGE, syntax="proto3")
    made: dict[str, Any] = {}
    for name in sorted(MESSAGES, key=lambda name: name.count(".")):  # those that hold others come first
        outer, _, inner = name.rpartition(".")
        made[name] = made[outer].nested_type.add(name=inner) if outer else file.message_type.add(name=inner)
    for name, fields in MESSAGES.items():
        for number, field in enumerate(filter(None, fields.split(", ")), 1):
            _add(made[name], name, number, *field.split(" "))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = {name: pool.FindMessageTypeByName(f"{PACKAGE}.{name}") for name in MESSAGES}
    return {name: message_factory.GetMessageClass(descriptor) for name, descriptor in found.items()}


def _add(message: Any, owner: str, number: int, name: str, kind: str) -> None:
    """Add one field to a message."""
    field = message.field.add(name=name, number=number, label=REPEATED if kind[0] in "*{" else OPTIONAL)
    if kind.startswith("{}"):
        entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, label=OPTIONAL, type=SCALARS["string"])
        entry.field.add(name="value", number=2, label=OPTIONAL, type=MESSAGE, type_name=f".{PACKAGE}.{kind[2:]}")
        field.type, field.type_name = MESSAGE, f".{PACKAGE}.{owner}.{entry.name}"
        return
    if kind.startswith("?"):
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0
    plain = kind.lstrip("*?")
    if plain in SCALARS:
        field.type = SCALARS[plain]
    else:
        field.type, field.type_name = MESSAGE, f".{PACKAGE}.{plain}"

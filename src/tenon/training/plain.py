"""State as plain data: nested Python values become JSON, tensors and arrays are put aside under names, nothing is
pickled.

`encode` walks what `state_dict` methods return (mappings, lists, tuples, numbers, text, None, tensors, NumPy arrays and
numbers, bytes) and gives JSON data in which anything JSON cannot say is a mapping with one key that begins with `$`;
`decode` gives back the same values, of the same types, bit for bit. A tensor that occurs twice (tied weights) is kept
once. What is none of these is refused with its path: an object kept by pickle would run code when it is read, and could
not be read by another release of its package.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any, Protocol

from tenon.errors import CorruptError, InputError, sentence


def encode(value: Any, place: str, tensors: dict[str, Any], seen: dict[Any, str] | None = None) -> Any:
    """Return JSON data for `value`, adding its tensors to `tensors` by name; InputError names what cannot be kept."""
    import numpy as np
    import torch

    seen = {} if seen is None else seen
    if value is None or isinstance(value, (bool, str)):
        return value
    if type(value) is int:
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if hasattr(value, "to_local"):
        tensors[place] = value
        return {"$shard": place, "shape": list(value.shape)}
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.is_meta or value.is_quantized or value.dtype is torch.complex128:
            kind = "meta" if value.is_meta else str(value.layout).removeprefix("torch.")
            got = f"a tensor that is {kind}, of {str(value.dtype).removeprefix('torch.')}"
            raise InputError(sentence("dense tensors of a type that safetensors keeps", got, at=place))
        key = (value.data_ptr(), tuple(value.shape), value.stride(), value.dtype, str(value.device))
        name = seen.setdefault(key, place) if value.numel() else place
        tensors.setdefault(name, value)
        return {"$tensor": name}
    if isinstance(value, (np.ndarray, np.generic)):
        array = np.asarray(value)
        if array.dtype.hasobject:
            raise _refused(value, place)
        tensors[place] = torch.frombuffer(bytearray(array.tobytes()) or bytearray(1), dtype=torch.uint8)
        return {"$array": place, "dtype": array.dtype.str, "shape": list(array.shape), "scalar": value.ndim == 0}
    if isinstance(value, (bytes, bytearray)):
        return {"$bytes": bytes(value).hex()}
    if isinstance(value, (torch.dtype, torch.device)):
        return {f"${type(value).__name__}": str(value).removeprefix("torch.")}
    if isinstance(value, (list, tuple, set, frozenset)):
        every = sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value
        items = [encode(one, f"{place}.{i}", tensors, seen) for i, one in enumerate(every)]
        kind = next((kind.__name__ for kind in (tuple, set, frozenset) if isinstance(value, kind)), "")
        return {f"${kind}": items} if kind else items
    if isinstance(value, Mapping):
        return _mapping(value, place, tensors, seen)
    raise _refused(value, place)


def _mapping(value: Mapping[Any, Any], place: str, tensors: dict[str, Any], seen: dict[Any, str]) -> Any:
    kind = next((kind.__name__ for kind in (Counter, OrderedDict) if isinstance(value, kind)), "dict")
    pairs = [(key, encode(one, f"{place}.{key}", tensors, seen)) for key, one in value.items()]
    if kind == "dict" and all(isinstance(key, str) and not key.startswith("$") for key, _ in pairs):
        return dict(pairs)
    return {f"${kind}": [[encode(key, f"{place}.key", tensors, seen), one] for key, one in pairs]}


class Named(Protocol):
    """Tensors by name, read when they are asked for."""

    def __contains__(self, name: object, /) -> bool: ...
    def __getitem__(self, name: str, /) -> Any: ...


def decode(body: Any, tensors: Named) -> Any:
    """Return the value that `encode` was given; CorruptError for a name without a tensor or a word it does not know."""
    if isinstance(body, list):
        return [decode(one, tensors) for one in body]
    if not isinstance(body, dict):
        return body
    word = next(iter(body), "")
    if not word.startswith("$"):
        return {key: decode(one, tensors) for key, one in body.items()}
    said = body[word]
    if word in ("$tensor", "$array", "$shard") and said not in tensors:
        raise CorruptError(sentence(f"a tensor '{said}'", "none of that name", at="state.json"))
    if word in ("$tensor", "$shard"):
        return tensors[said]
    if word == "$array":
        return _array(body, tensors[said])
    if word == "$float":
        return float(said)
    if word == "$bytes":
        return bytes.fromhex(said)
    if word in ("$dtype", "$device"):
        import torch

        return getattr(torch, said) if word == "$dtype" else torch.device(said)
    sequences: dict[str, Any] = {"$tuple": tuple, "$set": set, "$frozenset": frozenset}
    if word in sequences:
        return sequences[word](decode(one, tensors) for one in said)
    mappings: dict[str, Any] = {"$dict": dict, "$Counter": Counter, "$OrderedDict": OrderedDict}
    if word in mappings:
        pairs = [(decode(key, tensors), decode(one, tensors)) for key, one in said]
        return mappings[word](dict(pairs) if word == "$Counter" else pairs)
    raise CorruptError(sentence("a word of this release", f"'{word}'", at="state.json"))


def _array(body: Mapping[str, Any], kept: Any) -> Any:
    import numpy as np

    dtype = np.dtype(body["dtype"])
    count = math.prod(body["shape"])
    array = np.frombuffer(kept.numpy().tobytes(), dtype=dtype, count=count).reshape(body["shape"]).copy()
    return array[()] if body["scalar"] else array


def _refused(value: Any, place: str) -> InputError:
    hint = "give its state_dict() as plain values and tensors; objects are not kept, because pickle runs code when read"
    return InputError(sentence("plain data, tensors and arrays", f"a {type(value).__name__}", at=place, hint=hint))

"""Stateful models among what is served: a folder with a graph and a manifest, opened for a service.

    FOLDER/model.onnx
    FOLDER/tenon.json    {"columns": [{"name": "speed", "type": "float"}, ...],
                          "inputs": {"x": ["speed"]}, "state": {"h": "h_next"}, "output": "y"}

The version of such a model is the digest of both files. A user's own Python is served by `build_app([],
stateful=[...])`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tenon.config import Config
from tenon.contract.column import Column
from tenon.errors import InputError, UsageError, sentence

if TYPE_CHECKING:
    from tenon.serving import Stateful

FILES = ("model.onnx", "tenon.json")


def opened(wanted: Sequence[str], config: Config) -> list[Stateful]:
    """Open the stateful models named as NAME=FOLDER; InputError says which file is not right."""
    found = []
    for one in wanted:
        name, _, folder = one.partition("=")
        if not name or not folder:
            raise UsageError(sentence("NAME=FOLDER", f"'{one}'", at="--stateful"))
        found.append(_open(name, Path(folder), config))
    return found


def _open(name: str, folder: Path, config: Config) -> Stateful:
    from tenon.model.steps import OnnxSteps
    from tenon.serving import Stateful

    try:
        graph, text = ((folder / file).read_bytes() for file in FILES)
        manifest = msgspec.json.decode(text, type=dict)
        columns = [Column(**column) for column in manifest["columns"]]
    except OSError as error:
        raise InputError(sentence(" and ".join(FILES), str(error), at=str(folder))) from error
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InputError(sentence("a manifest with columns", str(error), at=str(folder / FILES[1]))) from error
    steps = OnnxSteps.load(graph, manifest)
    unknown = sorted(set(steps.columns) - {column.name for column in columns})
    if unknown:
        raise InputError(sentence("a column for each input", f"none for '{unknown[0]}'", at=str(folder / FILES[1])))
    return Stateful(
        name=name, version=hashlib.sha256(graph + text).hexdigest()[:12], model=steps, columns=columns,
        limits=config.limits.serving, token=config.serve.fleet_token,
    )  # fmt: skip

"""The house stands as drawn: who imports whom, what is public, what each room may pull in, and no pickle anywhere."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import tenon

PACKAGE = Path(tenon.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))

# The floors of the house, lowest first; a room imports from lower floors only.
FLOORS = [
    {"errors", "finding", "config", "limits", "lazy"},
    {"store", "ledger", "energy", "engine"},
    {"ingest", "contract", "feature", "sketch", "metric", "encoding"},
    {"training", "model"},
    {"serving", "watch"},
    {"report", "ui"},
    {"project", "flow", "cli", "__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}

# Siblings that may be imported all the same. Each arrow has its reason.
ARROWS = {
    ("config", "limits"): "bounds are part of the configuration",
    ("config", "errors"): "configuration refuses in words",
    ("store", "ledger"): "an entry of the ledger is what the store keeps",
    ("ledger", "energy"): "a meter reads the counters of energy",
    ("ingest", "contract"): "ingest reads what a contract says of a column",
    ("feature", "contract"): "features speak the contract's SQL and words",
    ("ui", "report"): "a size reads alike on the page and in a report",
    ("flow", "project"): "the stages follow what the user declares",
    ("cli", "flow"): "a command is one call of a stage",
    ("__main__", "cli"): "python -m tenon is the command line",
}
# Floor 2 takes frames and gives values; it never opens what remembers.
NEVER = {(room, "store") for room in FLOORS[2]}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by full name"
            parts = (node.module or "").split(".")
            if parts[0] == "tenon":
                rooms.update([parts[1]] if len(parts) > 1 else [alias.name for alias in node.names])
        elif isinstance(node, ast.Import):
            rooms.update(a.name.split(".")[1] for a in node.names if a.name.startswith("tenon."))
    return rooms & set(LEVEL)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downward_or_along_a_named_arrow(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    for other in imports(path) - {room}:
        assert (room, other) not in NEVER, f"{room} takes frames and may not open {other}"
        allowed = LEVEL[other] < LEVEL[room] or (room, other) in ARROWS
        assert allowed, f"{path.relative_to(PACKAGE)} imports {other}, which is not below {room}"


def test_every_named_arrow_is_still_walked() -> None:
    walked = {(room_of(path), other) for path in SOURCES for other in imports(path)}
    assert set(ARROWS) <= walked, f"named and not walked: {set(ARROWS) - walked}"


def test_every_room_has_a_floor() -> None:
    assert {room_of(path) for path in SOURCES} - {"__init__"} <= set(LEVEL)


def test_every_public_name_resolves_to_what_the_house_says() -> None:
    for name in tenon.__all__:
        assert getattr(tenon, name) is not None
    assert dir(tenon) == sorted(tenon.__all__)


LAZY = [path for path in SOURCES if path.name == "__init__.py" and "= lazy(__name__" in path.read_text("utf-8")]


@pytest.mark.parametrize("path", LAZY, ids=lambda path: path.parent.name)
def test_lazy_names_are_told_to_type_checkers_as_they_are_resolved(path: Path) -> None:
    package = ".".join(["tenon", *path.parent.relative_to(PACKAGE).parts])
    room = importlib.import_module(package)
    told = {
        alias.name: node.module
        for block in tree(path).body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert told == {name: f"{package}.{module}" for module, names in room._HOMES.items() for name in names}
    assert set(told) <= set(room.__all__)
    assert all(getattr(room, name) is not None for name in room.__all__)
    assert dir(room) == sorted(room.__all__)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nonsense'"):
        room.nonsense  # noqa: B018


def pulled_in(module: str) -> set[str]:
    code = f"import sys, {module}; print(' '.join(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_tenon_pulls_in_no_room_and_no_library() -> None:
    assert not {name for name in pulled_in("tenon") if name.startswith(("tenon.", "polars", "numpy", "click"))}


def test_serving_starts_without_torch_ingest_or_training() -> None:
    modules = pulled_in("tenon.serving")
    barred = ("torch", "sklearn", "lightgbm", "onnx", "duckdb", "ray", "tenon.ingest", "tenon.training")
    assert not {name for name in modules if name in barred or name.startswith(tuple(f"{name}." for name in barred))}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_pickle_is_loaded_and_nothing_is_evaluated(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = {alias.name for alias in node.names} | {getattr(node, "module", "") or ""}
            assert not names & {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}, path
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec"), f"{path}:{node.lineno}"


def test_classes_are_composed_and_not_inherited() -> None:
    classes = [(path, node) for path in SOURCES for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef)]
    ours = {node.name for _, node in classes if not node.name.endswith("Error")}
    for path, node in classes:
        bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
        assert not bases & ours, f"{path}:{node.lineno} {node.name} inherits from {bases & ours}"


def test_broad_excepts_stand_only_at_edges_that_say_why() -> None:
    for path in SOURCES:
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            if re.search(r"except (Base)?Exception\b", line):
                assert re.search(r"# .*(BLE001 - |the edge)", line), f"{path}:{number} names no edge"


def test_every_module_says_what_it_owns() -> None:
    for path in SOURCES:
        assert ast.get_docstring(tree(path)), path

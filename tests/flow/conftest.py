"""A small real project (the example of `tenon init`), run once for all; tests that change something work on a copy."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tenon.flow import Outcome, Work, begin
from tenon.flow import run as run_project

from ..store.conftest import postgres, s3  # noqa: F401 - the same servers as the store's own tests start


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A project taken all the way, and how that went. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("flow") / "shop"
    begin.init(folder)
    work = Work.open(folder, {})
    try:
        return folder, run_project(work)
    finally:
        work.store.close()


@pytest.fixture
def shop(finished: tuple[Path, Outcome], tmp_path: Path) -> Path:
    """A copy of the finished project, to change."""
    folder = tmp_path / "shop"
    shutil.copytree(finished[0], folder)
    return folder


@pytest.fixture
def work(shop: Path) -> Iterator[Work]:
    """The opened copy."""
    opened = Work.open(shop, {})
    yield opened
    opened.store.close()


def edit(folder: Path, old: str, new: str) -> None:
    """Change a word of the project's declaration."""
    file = folder / "project.py"
    text = file.read_text("utf-8")
    assert old in text
    file.write_text(text.replace(old, new), "utf-8")


def again(folder: Path) -> Outcome:
    """Run the project once more."""
    work = Work.open(folder, {})
    try:
        return run_project(work)
    finally:
        work.store.close()

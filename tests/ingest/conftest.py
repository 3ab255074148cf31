"""What the tests of ingest share: a way to write a file and ingest it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl
import pytest

from tenon.ingest import Ingested, Job, ingest

from ..script import loaded


@dataclass(frozen=True)
class Done:
    """An ingest that is over, with its files read back."""

    result: Ingested
    frame: pl.DataFrame
    quarantine: pl.DataFrame
    repairs: pl.DataFrame

    @property
    def rows(self) -> list[tuple[Any, ...]]:
        """Return the rows of the result."""
        return self.frame.rows()

    @property
    def types(self) -> dict[str, str]:
        """Return the type of every column."""
        return {column.name: column.type for column in self.result.columns}

    @property
    def codes(self) -> set[str]:
        """Return the codes of the findings."""
        return {finding.code for finding in self.result.findings}


def read_back(result: Ingested) -> Done:
    """Read the files of an ingest."""

    def one(path: Path | None) -> pl.DataFrame:
        return pl.read_parquet(path) if path else pl.DataFrame()

    frame = pl.read_parquet(list(result.files)) if result.files else pl.DataFrame()
    return Done(result, frame, one(result.quarantine), one(result.repairs))


Read = Callable[..., Done]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Return a function that writes bytes (or text) to a file and ingests it; options go to the job."""

    def act(data: bytes | str, name: str = "data.csv", **options: Any) -> Done:
        path = tmp_path / name
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return read_back(ingest(Job(paths=(path,), out=tmp_path / "out", **options)))

    return act


@pytest.fixture(scope="module")
def mess() -> ModuleType:
    """The generator, loaded from bench/."""
    return loaded("bench/mess.py")

"""A real store in a temporary folder, and batches of observations as a service offers them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tenon.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Open a store in a folder of its own."""
    with Store.open(tmp_path) as opened:
        yield opened

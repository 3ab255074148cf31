"""Scripts of bench/, scripts/ and examples/, loaded as modules: what they make and measure is held to promises too."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]


def loaded(path: str) -> ModuleType:
    """Import the script at a path of the repository; what lies beside it is in reach meanwhile, as when it is run."""
    script = ROOT / path
    sys.path.insert(0, str(script.parent))
    try:
        return importlib.import_module(script.stem)
    finally:
        sys.path.remove(str(script.parent))

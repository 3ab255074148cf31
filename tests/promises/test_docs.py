"""README and docs run: each page's Python blocks, in order, in one namespace, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if BLOCK.search(page.read_text("utf-8"))], ids=lambda page: page.name
)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    text = page.read_text("utf-8")
    # Blank lines in front keep the line numbers of a failure those of the page.
    code = "\n".join(
        "\n" * (text[: match.start(1)].count("\n") - text[: previous.end()].count("\n") if previous else 0) + match[1]
        for previous, match in zip([None, *BLOCK.finditer(text)], BLOCK.finditer(text), strict=False)
    )
    script = tmp_path / "page.py"
    # Work in other processes starts by importing the main module, so that the page must be guarded like any script.
    script.write_text(code, "utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{page.name}:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"


def test_no_page_names_a_file_that_is_not_there() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text("utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page}: {target}"

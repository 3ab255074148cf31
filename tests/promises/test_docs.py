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


def anchors(page: Path) -> set[str]:
    """Name the headings of a page as links do: in lower case, without signs, with hyphens for spaces."""
    heads = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def test_every_link_leads_to_a_page_that_is_there_and_to_a_heading_it_has() -> None:
    for page in [*PAGES, ROOT / "CHANGELOG.md", ROOT / "LOG.md", ROOT / "bench" / "RESULTS.md"]:
        for target, heading in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", page.read_text("utf-8")):
            if "://" not in target:
                found = page.parent / target if target else page
                assert found.exists(), f"{page}: {target}"
                assert not heading or heading in anchors(found), f"{page}: {target}#{heading}"


def test_every_script_that_a_page_names_is_there() -> None:
    named = re.compile(r"\b(?:bench|docs|examples|scripts|src|tests)/[\w./-]*\.(?:py|sh|md)\b")
    for page in PAGES:
        for path in named.findall(page.read_text("utf-8")):
            assert (ROOT / path).exists() or (page.parent / path).exists(), f"{page}: {path}"

"""Every finding code has a page with the same five headings, every page has a code, and no page is empty words."""

from __future__ import annotations

from pathlib import Path

import pytest

from tenon.finding import CODES, Finding, worst

PAGES = Path(__file__).parents[2] / "docs" / "findings"
HEADINGS = ["## What it checks", "## Why it matters", "## Example", "## What to do", "## Known limits"]


def test_the_codes_and_the_pages_are_the_same_set() -> None:
    pages = {path.stem for path in PAGES.glob("*.md")} - {"README"}
    assert pages == {code.replace("/", "-") for code in CODES}


def test_the_codes_are_sorted_so_that_two_people_can_add_one() -> None:
    assert list(CODES) == sorted(CODES)


@pytest.mark.parametrize("code", sorted(CODES))
def test_a_page_has_its_headings_in_order_and_something_under_each(code: str) -> None:
    lines = (PAGES / f"{code.replace('/', '-')}.md").read_text("utf-8").splitlines()
    assert lines[0] == f"# {code}"
    assert [line for line in lines if line.startswith("## ")] == HEADINGS
    for heading in HEADINGS:
        after = lines[lines.index(heading) + 1 :]
        body = after[: next((i for i, line in enumerate(after) if line.startswith("## ")), len(after))]
        assert sum(len(line) for line in body) > 40, f"{code}: {heading} says too little"


def test_a_finding_goes_to_plain_data_and_the_gravest_is_told_first() -> None:
    code = next(iter(CODES))
    mild = Finding(code=code, severity="info", place="a:1", said="so")
    grave = Finding(code=code, severity="error", place="a:2", said="so", numbers={"rows": 2.0})
    assert worst([mild, grave]) == "error"
    assert worst([]) is None
    assert grave.to_dict()["numbers"] == {"rows": 2.0}

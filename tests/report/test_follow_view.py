"""A run that goes on is told in a few lines that fit and no name can repaint; in one line where nobody looks."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest

from tenon.report.follow import BARS, Screen, lines, plain, sparks

STANDS = {
    "step": 4119,
    "of": 10_000,
    "at": 1_000.0,
    "per_s": 12.4,
    "usd": 0.31,
    "usd_of": 2.0,
    "hours": 0.09,
    "hours_of": None,
    "kwh": 0.012,
    "kwh_of": None,
    "waiting": 0.15,
    "device": 0.03,
    "lost": 0.07,
    "flops_per_s": 1.2e12,
    "of_flops": 0.31,
    "bytes_per_s": 2.1e11,
    "of_bytes": 0.0,
}
FINDING = {
    "code": "training/data-starved",
    "severity": "warning",
    "place": "run/70",
    "said": "28% of the time of a step is spent waiting for data: the culprit is the disk.",
    "hint": "Put the data on a faster disk.",
}
RUN = {"id": "3f2a", "model": "late", "status": "running", "stands": STANDS, "findings": [FINDING]}


class Looked(io.StringIO):
    """A terminal that somebody looks at."""

    def isatty(self) -> bool:
        return True


def test_everything_a_person_asks_of_a_run_is_there() -> None:
    told = lines(RUN, [0.9, 0.6, 0.43], width=120, now=1_001.0)
    assert told == [
        "late 3f2a · running · step 4,119 of 10,000",
        "██████████░░░░░░░░░░░░░░  41% · 12.4 steps/s · 8 min left",
        "loss 0.43  █▃▁  best 0.43",
        "spent 0.3100 of 2 USD (0.7524 by the end) · 0.090 h · 0.0120 kWh",
        "time 82% working · 15% waiting for data · 3% waiting for the device · 7% lost to throttling",
        "does 1.2 TFLOP/s (31% of the device) · 210 GB/s",
        "! training/data-starved at 70: 28% of the time of a step is spent waiting for data: the culprit is the disk.",
        "  → Put the data on a faster disk.",
    ]


@pytest.mark.parametrize("width", [20, 40, 80, 120])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    run = {**RUN, "model": "m" * 300, "findings": [FINDING] * 9}
    assert max(map(len, lines(run, [1.0] * 5_000, width=width, now=1_001.0))) <= width


def test_names_and_findings_cannot_drive_the_terminal() -> None:
    evil = "x\x1b[2J\u202ey\n\r"
    finding = {**FINDING, "said": evil, "code": evil, "hint": evil}
    run = {**RUN, "model": evil, "id": evil, "status": evil, "findings": [finding]}
    out = Looked()
    Screen(out, width=lambda: 80).draw(run, [1.0], name=evil)
    drawn = out.getvalue() + plain(run, [1.0], name=evil)
    assert "\x1b" not in drawn and "\u202e" not in drawn and "\r" not in drawn
    assert "\\x1b" in drawn


def test_a_run_that_has_told_nothing_yet_and_one_that_fell_silent() -> None:
    assert lines({"id": "a", "status": "running"}, [], width=80, now=0.0) == [
        "run a · running",
        "waiting for the first steps",
    ]
    assert "nothing heard for 2 min" in lines(RUN, [], width=80, now=1_130.0)


def test_the_row_of_heights_marks_what_is_no_number_and_takes_decades_as_a_logarithm() -> None:
    assert sparks([1.0, math.nan, 0.0], 3) == "█!▁"
    assert sparks([1e-4, 1e-2, 1.0], 3) == BARS[0] + BARS[4] + BARS[7]
    assert sparks([5.0] * 10, 4) == BARS[0] * 4
    assert sparks([], 4) == ""
    assert sparks([math.inf], 4) == "!"


def test_lines_are_drawn_over_the_last_ones_where_somebody_looks() -> None:
    out = Looked()
    screen = Screen(out, width=lambda: 80)
    screen.draw(RUN, [1.0])
    first = out.getvalue()
    screen.draw(RUN, [1.0], last=True)
    count = first.count("\n")
    assert out.getvalue() == first + f"\x1b[{count}F\x1b[J" + first


def test_where_nobody_looks_a_plain_line_comes_now_and_then_and_at_the_end() -> None:
    out, ticks = io.StringIO(), iter([0.0, 0.0, 1.0, 2.0, 11.0, 11.0, 12.0])
    screen = Screen(out, clock=lambda: next(ticks))
    for _ in range(4):
        screen.draw(RUN, [0.5])
    screen.draw(RUN, [0.5], last=True)
    told = out.getvalue().splitlines()
    assert len(told) == 3
    assert told[0] == (
        "late 3f2a running · step 4,119 · 8 min left · loss 0.5 · 0.3100 USD · "
        "1 findings, the last training/data-starved"
    )


def test_what_a_guard_tells_of_its_own_run_is_shown() -> None:
    out = Looked()
    told: dict[str, Any] = {**STANDS, "run": "abc", "loss": [1.0, 0.5], "findings": [FINDING]}
    Screen(out, run={"model": "mine"}, width=lambda: 80).stands(told)
    assert out.getvalue().startswith("mine abc · running · step 4,119 of 10,000\n")
    assert "loss 0.5  █▁" in out.getvalue()

"""A row that a line break without quotes split comes back whole where that is beyond doubt, wherever a range ends."""

from __future__ import annotations

from pathlib import Path
from random import Random

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenon.ingest import Job, ingest
from tenon.ingest.rejoin import STRETCH

from .conftest import Read

HEADER = "id,day,size,note,city,code"
CITIES = ("Oslo", "Cork", "Brno", "Ghent")


def row(n: int) -> list[str]:
    """Return the cells of one row; every third note is quoted."""
    note = f'"so, and {n}"' if n % 3 == 0 else f"a note of {'many ' * (n % 4)}words {n}"
    return [str(1000 + n), f"2024-01-{n % 28 + 1:02d}", f"{n * 0.25:.2f}", note, CITIES[n % 4], f"AB-{n % 1000:04d}"]


def table(rows: int, broken: dict[int, str]) -> str:
    """Return a table with some rows spelt as given."""
    return "\n".join([HEADER, *(broken.get(n, ",".join(row(n))) for n in range(rows))]) + "\n"


# A break before the first delimiter leaves a whole row without its first value as the second half: nobody questions it.
@pytest.mark.parametrize(("place", "after"), [(1, True), *((n, after) for n in (2, 3, 4) for after in (True, False))])
def test_a_break_beside_a_delimiter_is_dropped_and_told(read: Read, place: int, after: bool) -> None:
    cells = row(40)
    middle = ",\n" if after else "\n,"
    broken = ",".join(cells[:place]) + middle + ",".join(cells[place:])
    done = read(table(80, {40: broken}), text=True)
    assert done.rows[40] == tuple(cells) and len(done.rows) == 80
    assert done.quarantine.height == 0 and done.result.balance.closes
    (told,) = done.repairs.to_dicts()
    assert (told["row"], told["line"], told["repair"], told["was"]) == (40, 42, "line-break", broken)


def test_a_break_inside_free_text_is_kept(read: Read) -> None:
    cells = row(40)
    broken = ",".join([*cells[:3], "a note\nof many words", *cells[4:]])
    done = read(table(80, {40: broken}))
    assert done.rows[40][3] == "a note\nof many words" and done.quarantine.height == 0
    assert done.repairs["column"].to_list() == ["note"] and done.repairs["repair"].to_list() == ["line-break"]


@pytest.mark.parametrize(
    "broken",
    [
        "1040,2024-0\n1-13,10.00,a note,Oslo,AB-0040",  # inside a day
        "1040,2024-01-13,10.00,a note,Os\nlo,AB-0040",  # inside a word of a few
        "1040,2024-01-13,\n10.00,a note,7 Oslo,AB-0040",  # a cell that does not fit
        "1040,2024-01-13\n1041,2024-01-14,10.25,a note,Oslo",  # two rows cut short
        "1040,2024-01-13,10.00,\na note,\nOslo,AB-0040",  # three pieces
    ],
)
def test_halves_that_do_not_fit_wait(read: Read, broken: str) -> None:
    done = read(table(80, {40: broken}))
    assert "line-break" not in done.repairs.get_column("repair").to_list() if done.repairs.height else True
    assert done.result.balance.closes and done.quarantine.height
    raw = b"".join(done.quarantine["raw"].to_list()).decode()
    assert all(line in raw for line in broken.split("\n") if line.count(",") < 4)


def test_a_piece_that_comes_twice_is_joined_once(read: Read) -> None:
    done = read(table(80, {40: "1040,2024-01-13,\n10.00,a note,Oslo,AB-0040\n10.00,a note,Oslo,AB-0040"}))
    assert done.frame.height == 80 and done.repairs["repair"].to_list() == ["line-break"]
    assert done.quarantine["raw"].to_list() == [b"10.00,a note,Oslo,AB-0040\n"]


def test_a_break_before_the_last_value_leaves_a_whole_row_and_the_rest_waits(read: Read) -> None:
    cells = row(40)
    done = read(table(80, {40: ",".join(cells[:-1]) + ",\n" + cells[-1]}))
    assert done.frame.height == 80 and done.quarantine["raw"].to_list() == [cells[-1].encode() + b"\n"]


def test_nothing_is_joined_in_a_long_stretch_without_a_plain_row(read: Read) -> None:
    cells = row(40)
    half = ",".join(cells[:2]) + ",\n" + ",".join(cells[2:])
    quoted = [f'"{1000 + n}","2024-01-{n % 28 + 1:02d}",{n}.25,"{"long " * 40}",Oslo,AB-0001' for n in range(200)]
    assert len("\n".join(quoted)) > STRETCH
    plain = [",".join(row(n)) for n in range(60)]
    far = "\n".join([HEADER, *plain, *quoted, half, *plain]) + "\n"
    near = "\n".join([HEADER, *plain, *quoted[:20], half, *plain]) + "\n"
    assert read(near).quarantine.height == 0
    assert read(far).quarantine.height == 2


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), share=st.sampled_from([0.02, 0.3, 0.8]))
def test_ranges_and_compiled_code_change_nothing(tmp_path: Path, seed: int, share: float) -> None:
    rng = Random(seed)
    broken = {}
    for n in range(60, 300):
        cells, place = row(n), rng.randrange(1, 6)
        if rng.random() < share:
            broken[n] = rng.choice(
                (
                    ",".join(cells[:place]) + rng.choice(("\n,", ",\n")) + ",".join(cells[place:]),
                    ",".join(cells[:place]),
                    ",".join(cells).replace(" ", "\n", 1),
                    f"remark {n}",
                    f'"{cells[0]}",' + ",".join(cells[1:]),
                )
            )
    path = tmp_path / "data.csv"
    path.write_text(table(300, broken))
    told = []
    for ranges, compiled in ((1, True), (97, True), (41, False)):
        done = ingest(Job(paths=(path,), out=tmp_path / "out", ranges=ranges, compiled=compiled))
        files = [*done.files, *(one for one in (done.quarantine, done.repairs) if one)]
        told.append([done.balance, *(pl.read_parquet(one).rows() for one in files)])
    assert told[0] == told[1] == told[2]

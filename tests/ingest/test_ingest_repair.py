"""A broken row is repaired because its fields fit their columns and no other reading does, or it waits."""

from __future__ import annotations

import pytest

from .conftest import Read

NOTES = ("words, and more words", "plain", "Some, other. Text!", "no. 7 again", "late; very late", "(none) given")
ROWS = [
    f"{1000 + n},2024-{n % 12 + 1:02d}-{n % 28 + 1:02d},{n * 1.25 + 3:.2f},AB-{n:04d},"
    f'{("red", "green", "blue")[n % 3]},"{NOTES[n % 6]} {n}"'
    for n in range(60)
]
HEADER = "id,day,price,code,colour,note"
BROKEN = 30
WHOLE = ("1030", "2024-07-03", "40.50", "AB-0030", "red", "words, and more words 30")


def broken(row: str) -> str:
    rows = list(ROWS)
    rows[BROKEN] = row
    return HEADER + "\n" + "\n".join(rows) + "\n"


FAULTS = {
    "extra-delimiter": '1030,2024-07-03,,40.50,AB-0030,red,"words, and more words 30"',
    "extra-delimiter at the end": '1030,2024-07-03,40.50,AB-0030,red,"words, and more words 30",,',
    "missing-delimiter of a typed pair": '1030,2024-07-0340.50,AB-0030,red,"words, and more words 30"',
    "missing-delimiter of a code": '1030,2024-07-03,40.50AB-0030,red,"words, and more words 30"',
    "missing-delimiter before a quote": '1030,2024-07-03,40.50,AB-0030,red"words, and more words 30"',
    "delimiter of its own": '1030;2024-07-03;40.50;AB-0030;red;"words, and more words 30"',
    "tab of its own": '1030\t2024-07-03\t40.50\tAB-0030\tred\t"words, and more words 30"',
    "space of its own": '1030 2024-07-03 40.50 AB-0030 red "words, and more words 30"',
    "unquoted-delimiter": "1030,2024-07-03,40.50,AB-0030,red,words, and more words 30",
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_row_with_one_fault_comes_back_whole_and_flagged(read: Read, name: str) -> None:
    done = read(broken(FAULTS[name]), text=True)
    assert done.rows[BROKEN] == WHOLE and done.frame.height == 60 and done.quarantine.height == 0
    (record,) = done.repairs.to_dicts()
    assert record["row"] == BROKEN and record["was"] == FAULTS[name] and record["line"] == BROKEN + 2
    assert record["repair"].split("+")[0] in {name.split(" ")[0], "delimiter"}


@pytest.mark.parametrize("column", range(6))
def test_a_stray_quote_stays_in_text_and_is_dropped_from_a_number(read: Read, column: int) -> None:
    cells = ["1030", "2024-07-03", "40.50", "AB-0030", "red", '"words, and more words 30"']
    row = ",".join([*cells[:column], '"' + cells[column], *cells[column + 1 :]])
    text = read(broken(row), text=True)
    assert text.rows[BROKEN][column] == '"' + WHOLE[column] and text.frame.height == 60
    typed = read(broken(row))
    assert typed.frame.height == 60 and typed.quarantine.height == 0 and typed.repairs.height
    assert typed.rows[BROKEN][0] == 1030 and typed.rows[BROKEN][2] == 40.5


def test_an_unclosed_quote_does_not_swallow_the_rows_after_it(read: Read) -> None:
    done = read(broken('1030,2024-07-03,40.50,AB-0030,"red,words 30'), text=True)
    assert done.frame.height == 60 and done.rows[BROKEN][4] == '"red' and done.rows[BROKEN + 1][0] == "1031"


def test_a_newline_inside_quotes_is_part_of_the_value(read: Read) -> None:
    done = read(broken('1030,2024-07-03,40.50,AB-0030,red,"words,\n\nand\r\nmore"'))
    assert done.rows[BROKEN][5] == "words,\n\nand\r\nmore" and done.repairs.height == 0 and done.frame.height == 60


def test_rows_that_could_be_read_two_ways_wait_in_quarantine(read: Read) -> None:
    rows = "".join(f"{n % 100},{n * 7 % 1000},{n}\n" for n in range(200))
    done = read(f"a,b,c\n{rows}1234,5\n")
    assert done.quarantine["raw"].to_list() == [b"1234,5\n"] and done.quarantine["reason"].to_list() == ["fields"]
    assert "fit alike" in done.quarantine["fix"][0] and done.frame.height == 200


def test_a_field_is_never_dropped_because_it_is_too_many(read: Read) -> None:
    done = read(broken('1030,2024-07-03,40.50,AB-0030,red,"words, and more words 30",surplus'))
    assert done.frame.height in (59, 60) and b"surplus" in b"".join(done.quarantine["raw"].to_list())


def test_a_file_cut_in_the_middle_of_a_row_says_so(read: Read) -> None:
    data = HEADER + "\n" + "\n".join(ROWS) + "\n1060,2024-01-0"
    done = read(data)
    assert done.frame.height == 60 and done.quarantine["reason"].to_list() == ["truncated"]
    assert "ingest/truncated" in done.codes and done.result.balance.closes


def test_a_file_cut_between_two_fields_of_a_full_row_without_a_line_ending_is_read(read: Read) -> None:
    assert read(HEADER + "\n" + "\n".join(ROWS)).frame.height == 60


def test_a_line_longer_than_a_row_may_be_is_quarantined_in_pieces_and_memory_stays_flat(read: Read) -> None:
    from tenon.limits import IngestLimits

    limits = IngestLimits(row_bytes=1_000, chunk_bytes=5_000)
    long = "9999," + "x" * 50_000
    done = read(HEADER + "\n" + "\n".join([*ROWS, long, *ROWS]) + "\n", limits=limits)
    assert done.frame.height == 120 and set(done.quarantine["reason"].to_list()) == {"too-long"}
    assert b"".join(done.quarantine.sort("offset")["raw"].to_list()) == long.encode() + b"\n"


def test_repairs_can_be_found_again_by_row_line_and_offset(read: Read) -> None:
    data = broken(FAULTS["extra-delimiter"])
    (record,) = read(data).repairs.to_dicts()
    assert data.encode()[record["offset"] :].startswith(record["was"].encode())
    assert data.splitlines()[record["line"] - 1] == record["was"]

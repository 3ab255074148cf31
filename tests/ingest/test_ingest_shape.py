"""The layout of a file is found without a hint: characters, delimiter, quote, header, where the table lies."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from tenon.ingest import Job
from tenon.ingest.charset import Charset, decode, detect
from tenon.ingest.clean import clean
from tenon.ingest.detect import detect as find_dialect
from tenon.ingest.dialect import Dialect, split

from .conftest import Read

TABLE = [
    ["order", "day", "amount", "city", "note"],
    *(
        [str(100 + n), f"2024-01-{n:02d}", f"{n * 3.25:.2f}", ("Oslo", "Bergen", "Tromsø")[n % 3], note]
        for n, note in enumerate(
            ["plain", "with, a comma", 'with "quotes"', "a; b | c", "two\nlines", "tab\tinside", "it's", "", "end"] * 3,
            1,
        )
    ),
]


def write(delimiter: str, quote: str = '"', escape: str = "", newline: str = "\n", header: bool = True) -> str:
    """Write the table in a dialect, quoting where it must be."""

    def cell(value: str) -> str:
        if quote and (
            delimiter.strip() in value or quote in value or "\n" in value or (delimiter == " " and " " in value)
        ):
            return quote + value.replace(quote, (escape or quote) + quote) + quote
        return value

    rows = TABLE if header else TABLE[1:]
    return newline.join(delimiter.join(map(cell, row)) for row in rows) + newline


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", "^", "~", "#", "\x1f", ", ", "; ", "||", "::", "|~|", "¦"])
def test_any_delimiter_is_found(read: Read, delimiter: str) -> None:
    done = read(write(delimiter), text=True)
    assert done.frame.columns == TABLE[0]
    assert [[value or "" for value in row] for row in done.rows] == TABLE[1:]


@pytest.mark.parametrize("quote", ['"', "'", "`"])
def test_any_quote_is_found(read: Read, quote: str) -> None:
    done = read(write(";", quote=quote), text=True)
    assert [[value or "" for value in row] for row in done.rows] == TABLE[1:]


@pytest.mark.parametrize(("escape", "delimiter"), [("\\", ","), ("\\", "|"), ("~", ";")])
def test_an_escape_before_the_quote_is_found(read: Read, escape: str, delimiter: str) -> None:
    data = write(delimiter, escape=escape).replace('"plain"', "plain")
    if escape == "~":
        data += "".join(f'{n};2024-02-01;1.00;Oslo;"say ~"hi~""\n' for n in range(5))
    done = read(data, text=True)
    assert [[value or "" for value in row] for row in done.rows][: len(TABLE) - 1] == TABLE[1:]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_line_endings_are_found(read: Read, newline: str) -> None:
    rows = [row[:4] for row in TABLE]
    done = read(newline.join(";".join(row) for row in rows), text=True)
    assert [list(row) for row in done.rows] == rows[1:]


def test_mixed_line_endings_all_end_lines(read: Read) -> None:
    endings = ["\n", "\r\n", "\r"]
    data = "".join(";".join(row[:4]) + endings[n % 3] for n, row in enumerate(TABLE))
    assert [list(row) for row in read(data, text=True).rows] == [row[:4] for row in TABLE[1:]]


def test_a_decimal_comma_is_no_delimiter_and_neither_are_times_and_dates(read: Read) -> None:
    data = "zeit;wert\n" + "".join(f"0{n}.01.2024 12:{n}0;{n},5\n" for n in range(1, 6))
    done = read(data)
    assert done.types == {"zeit": "timestamp", "wert": "float"} and done.frame["wert"].to_list() == [
        1.5,
        2.5,
        3.5,
        4.5,
        5.5,
    ]


def test_a_single_column_is_a_table_too(read: Read) -> None:
    assert read("name\nAnn Lee\nBob Ray\nCyd Fox\n").rows == [("Ann Lee",), ("Bob Ray",), ("Cyd Fox",)]


# ── characters ───────────────────────────────────────────────────────────────────────────────────────────────────────

RUSSIAN = "город;жителей\nМосква;12655050\nКазань;1257391\nУфа;1125695\n"


@pytest.mark.parametrize(
    "encoding",
    ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be", "cp1251", "koi8-r"],
)
def test_encodings_are_found_with_and_without_a_mark(read: Read, encoding: str) -> None:
    done = read(RUSSIAN.encode(encoding))
    assert done.rows == [("Москва", 12655050), ("Казань", 1257391), ("Уфа", 1125695)]
    assert done.result.balance.closes and ("ingest/encoding" in done.codes) == (encoding not in ("utf-8", "utf-8-sig"))


def test_a_file_that_mixes_encodings_comes_out_right_line_by_line(read: Read) -> None:
    lines = [
        b"id,city\n",
        "1,Zürich\n".encode(),
        "2,Málaga\n".encode("cp1252"),
        "3,Москва\n".encode("cp1251"),
        "4,Łódź\n".encode(),
        "5,Санкт-Петербург\n".encode("cp1251"),
        "6,Malmö\n".encode("latin-1"),
        "7,Москва\n".encode(),
    ]
    done = read(b"".join(lines))
    assert done.frame["city"].to_list() == ["Zürich", "Málaga", "Москва", "Łódź", "Санкт-Петербург", "Malmö", "Москва"]
    (finding,) = [one for one in done.result.findings if one.code == "ingest/encoding"]
    assert finding.said == "not UTF-8: 2 lines as cp1252, 2 lines as cp1251"


def test_decoding_never_fails() -> None:
    for byte in range(256):
        text, _ = decode(bytes((byte, 0x81, 0x41)), Charset())
        assert text
    assert detect(b"").name == "utf-8" and detect("é".encode()[:1]).odd in (0, 1)


def test_zero_bytes_are_taken_out_and_flagged(read: Read) -> None:
    done = read(b"id,name,x\n1,A\x00nn,2\n2,Bob,3\n\x00\x00\x00\n3,Cyd,\x004\n")
    assert done.rows == [(1, "Ann", 2), (2, "Bob", 3), (3, "Cyd", 4)]
    assert done.repairs["repair"].to_list() == ["nul", "nul"] and done.result.balance.skipped["blank"] == 4


# ── header and region ────────────────────────────────────────────────────────────────────────────────────────────────

BODY = "".join(f"{n},2024-03-{n:02d},{n / 4},k{n}\n" for n in range(1, 20))


def test_a_file_without_a_header_has_numbered_columns(read: Read) -> None:
    done = read(BODY)
    assert done.frame.columns == ["column_1", "column_2", "column_3", "column_4"] and done.frame.height == 19


def test_header_rows_are_joined_with_a_space(read: Read) -> None:
    done = read("id,day,size,code\n,,mm,\n" + BODY)
    assert done.frame.columns == ["id", "day", "size mm", "code"] and done.frame.height == 19


def test_a_preamble_is_skipped_by_name(read: Read) -> None:
    for preamble in ("Report of March\n\n", "Report of March,,,\n,,,\n", "# made by hand\n# twice\n", "\n\n"):
        done = read(preamble + "id,day,size,code\n" + BODY)
        assert done.frame.columns == ["id", "day", "size", "code"] and done.frame.height == 19, preamble
        assert done.result.balance.skipped["preamble"] == len(preamble)


def test_a_footnote_is_skipped_by_name(read: Read) -> None:
    for note in ("Source: the office\n", "\nSource: the office, 2024\nand others\n", "Source: the office,,,\n"):
        done = read("id,day,size,code\n" + BODY + note)
        assert done.frame.height == 19 and done.result.quarantined == 0, note
        assert done.result.balance.skipped["footnote"] == len(note.lstrip("\n"))


def test_blank_lines_and_rows_of_nothing_are_skipped(read: Read) -> None:
    done = read("id,day,size,code\n" + BODY.replace("k5\n", "k5\n\n   \n,,,\n") + "\n\n")
    assert done.frame.height == 19 and done.result.balance.skipped["blank"] == 1 + 4 + 4 + 2


def test_an_odd_first_row_is_no_second_row_of_the_header(read: Read) -> None:
    done = read("size,paid\n1_0,true\n" + "5,true\n" * 30)
    assert [column.name for column in done.result.columns] == ["size", "paid"]
    assert done.result.rows == 30 and done.quarantine["raw"].to_list() == [b"1_0,true\n"]


def test_the_same_header_again_is_the_same_export_going_on(read: Read) -> None:
    done = read("id,day,size,code\n" + BODY + "id,day,size,code\n" + BODY)
    assert done.frame.height == 38 and done.result.balance.skipped["repeated-header"] == 17


@pytest.mark.parametrize(
    "second",
    [
        '"id","day","size","code"\n' + BODY,
        "id,day,size,code,more\n" + BODY.replace("\n", ",x\n"),
        "id,day,size\n" + "".join(f"{n},2024-01-01,1.5\n" for n in range(9)),
        "name,street\n" + "Ann,High Street\n" * 5,
    ],
)
def test_of_several_tables_the_first_counts_and_the_rest_is_a_named_skip(read: Read, second: str) -> None:
    for between in ("", "\n"):
        done = read("id,day,size,code\n" + BODY + between + second)
        assert done.frame.height == 19 and done.result.quarantined == 0
        assert done.result.balance.skipped["other-table"] == len(second)


def test_rows_that_leave_out_empty_cells_at_their_end_are_filled(read: Read) -> None:
    rows = [f"{n},2024-03-01,x,{'late' if n % 3 == 0 else ''}" for n in range(40)]
    done = read("id,day,kind,remark\n" + "\n".join(row.rstrip(",") for row in rows) + "\n")
    assert done.frame.height == 40 and done.frame["remark"].null_count() == 26


def test_column_names_are_unique_and_none_is_empty(read: Read) -> None:
    done = read("id,,x,x,x\n" + "1,2,3,4,5\n" * 3)
    assert done.frame.columns == ["id", "column_2", "x", "x_2", "x_3"]


@pytest.mark.parametrize(
    "header",
    ["id,day,,size,code", "id;day;size;code", '"id,day,size,code', 'id,"day,size,code', "idday,size,code"],
)
def test_a_broken_header_is_mended(read: Read, header: str) -> None:
    columns = read(header + "\n" + BODY).frame.columns
    assert len(columns) == 4 and [name.strip('"') for name in columns][2:] == ["size", "code"]


def test_the_reference_reading_of_a_row_never_fails_and_counts_faults() -> None:
    dialect = Dialect()
    assert split(b'a,"b ""c"" d",,"e"', dialect).values == [b"a", b'b "c" d', b"", b"e"]
    assert split(b'"a" , "b"', dialect).values == [b"a", b"b"]
    assert split(b'"10" Shearling",x', dialect) == split(b'"10" Shearling",x', dialect)
    assert split(b'"10" Shearling",x', dialect).values == [b'10" Shearling', b"x"]
    assert not split(b'a,"b,c', dialect).closed and split(b'a,"b,c', dialect).values == [b"a", b'"b', b"c"]


def test_a_rival_dialect_is_reported() -> None:
    guess = find_dialect(b"aa:bb~cc:dd\n" * 20, whole=True)
    assert guess.close and {guess.dialect.delimiter, guess.rival and guess.rival.delimiter} == {b":", b"~"}


# ── clean CSV ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_clean_csv_spells_every_value_as_the_source_does(tmp_path: Path) -> None:
    path, target = tmp_path / "in.csv", tmp_path / "clean.csv"
    path.write_text("Titel;;\n\nNr;Tag;Preis\n007;28/01/2018;1.200,50 €\n8;29/01/2018;NA\n9;30/01/2018\n")
    clean(Job(paths=(path,), out=tmp_path / "out"), target)
    assert list(csv.reader(io.StringIO(target.read_text()))) == [
        ["Nr", "Tag", "Preis"],
        ["007", "28/01/2018", "1.200,50 €"],
        ["8", "29/01/2018", "NA"],
        ["9", "30/01/2018", ""],
    ]


def test_clean_csv_of_a_file_without_a_header_has_none_and_of_an_empty_file_is_empty(tmp_path: Path) -> None:
    path, target = tmp_path / "in.csv", tmp_path / "clean.csv"
    path.write_text(BODY)
    clean(Job(paths=(path,), out=tmp_path / "out"), target)
    assert target.read_text() == BODY.replace("0.0", "0.0")
    path.write_text("")
    clean(Job(paths=(path,), out=tmp_path / "out"), target)
    assert target.read_text() == "" and sorted(one.name for one in tmp_path.iterdir()) == ["clean.csv", "in.csv", "out"]

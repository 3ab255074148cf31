"""Generated files come back as a careful person reads them: every pollution of our tables, frames of open-data portals.

The generators are bench/pollution.py and bench/portals.py, which measure many more files than are read here.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
from datetime import date, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tenon.ingest import Job, ingest
from tenon.ingest.clean import clean
from tenon.ingest.values import learn
from tenon.limits import IngestLimits

from ..script import loaded
from .conftest import Read, read_back


@pytest.fixture(scope="module")
def pollution() -> ModuleType:
    """The generator of polluted tables, with the judge."""
    return loaded("bench/pollution.py")


@pytest.fixture(scope="module")
def portals() -> ModuleType:
    """The generator of files of portals."""
    return loaded("bench/portals.py")


def test_pollutions_are_read_exactly_and_what_is_not_waits(pollution: ModuleType) -> None:
    made = [one for table in pollution.tables(seed=5, height=12) for one in pollution.variants(table, every=37)]
    tallies = pollution.judge(iter([one for n, one in enumerate(made) if n % 3 == 0]), pollution.ours)
    files, exact = sum(t.files for t in tallies.values()), sum(t.exact for t in tallies.values())
    told = [miss for tally in tallies.values() for miss in tally.misses]
    assert files > 150 and exact >= 0.95 * files, told
    assert sum(t.quiet for t in tallies.values()) <= 0.02 * files, told


@pytest.mark.parametrize("seed", [11, 12])
def test_files_of_portals_are_read_exactly(portals: ModuleType, pollution: ModuleType, seed: int) -> None:
    tallies = pollution.judge(portals.files(5 * len(portals.FRAMES), seed), pollution.ours)
    files, exact = sum(t.files for t in tallies.values()), sum(t.exact for t in tallies.values())
    told = [miss for tally in tallies.values() for miss in tally.misses]
    assert exact >= 0.94 * files, told
    assert all(tally.exact >= 3 for tally in tallies.values()), told


def _spelt(tmp_path: Path, data: str | bytes, **options: Any) -> list[str]:
    source = tmp_path / "in.csv"
    source.write_bytes(data.encode() if isinstance(data, str) else data)
    clean(Job(paths=(source,), out=tmp_path / "out", **options), tmp_path / "out.csv")
    return (tmp_path / "out.csv").read_text("utf-8").splitlines()


ROWS = "Leeds;12;3,5\nYork;7;0,25\nHull;31;12,0\nBath;4;1,75\n"
NAMES = "place;count;rate"
WANTED = ["place,count,rate", 'Leeds,12,"3,5"', 'York,7,"0,25"', 'Hull,31,"12,0"', 'Bath,4,"1,75"']


@pytest.mark.parametrize(
    "before",
    [
        "# made by the office, for all\n# see the licence, page 2; or ask\n#\n",
        "// one, two\n// three, four\n// five, six\n",
        "sep=;\n",
        '"sep=;"\n',
        "Title;;\n;;\n",
        "Published;2024-03-01;\nVersion;1.0;\n\n",
        "Published;2024-03-01\nEdition;first of two\nVersion;1.0\n\n",
    ],
)
def test_what_stands_above_the_table_is_no_part_of_it(tmp_path: Path, before: str) -> None:
    assert _spelt(tmp_path, before + NAMES + "\n" + ROWS) == WANTED


@pytest.mark.parametrize(
    "after",
    [
        "Source: the office;;\n",
        ";;\nSource: the office;;\nStand: 2024;;\n",
        "\n* provisional\n** revised, see page 3\n(c) the office\n",
        "\nQuelle: Amt;;\n",
        "\nhttps://www.example.org\n",
    ],
)
@pytest.mark.parametrize("ranges", [1, 97])
def test_notes_below_the_table_are_a_skip_with_a_name(tmp_path: Path, after: str, ranges: int) -> None:
    assert _spelt(tmp_path, NAMES + "\n" + ROWS + after, ranges=ranges) == WANTED


def test_a_page_of_text_above_a_small_table_is_no_table(tmp_path: Path) -> None:
    text = "Figures of the office; in full\nMade each spring\nAsk for more; or write\nThey may change\nThanks; all\n"
    assert _spelt(tmp_path, text + "\n" + NAMES + "\n" + ROWS) == WANTED


def test_of_two_tables_of_text_the_first_is_read(tmp_path: Path) -> None:
    rows = "Ada,Moore,Leeds\nKim,Berg,York\nEve,Silva,Bath\nIvo,Kaya,Hull\n"
    other = "a,b,c,d\n" + "".join(f"p{n},q{n},r{n},s{n}\n" for n in range(9))
    assert _spelt(tmp_path, f"first,last,town\n{rows}\n{other}")[:2] == ["first,last,town", "Ada,Moore,Leeds"]


def test_a_row_with_one_value_is_a_row_where_others_are(tmp_path: Path) -> None:
    rows = "North;;\nLeeds;12;3,5\nYork;7;0,25\nSouth;;\nBath;4;1,75\nDover;;\n"
    assert len(_spelt(tmp_path, NAMES + "\n" + rows)) == 7


def test_a_total_that_leaves_out_its_last_cell_is_no_note(read: Read) -> None:
    rows = "".join(f"Ward {n};{n + 10};{n + 20};{n + 30}\n" for n in range(20))
    done = read("ward;red;blue;green\n" + rows + "Total;123456;234567\n")
    assert "footnote" not in done.result.balance.skipped


def test_groups_over_columns_are_part_of_their_names(tmp_path: Path) -> None:
    data = ";Pupils;;\nSchool;Girls;Boys;Rooms\nHill;120;131;12\nPark;98;87;9\nQuay;77;80;8\n"
    assert _spelt(tmp_path, data)[0] == "School,Pupils Girls,Boys,Rooms"


def test_units_in_thousands_are_part_of_their_names(tmp_path: Path) -> None:
    data = "Office;Budget;Share\n;1000;%\nHealth;120;12,5\nRoads;98;8,1\nParks;77;7,0\n"
    assert _spelt(tmp_path, data)[0] == "Office,Budget 1000,Share %"


@pytest.mark.parametrize("mark", [" | ", "|~|", "::", "||", "; ", "\x1f"])
def test_delimiters_of_several_signs_are_found(tmp_path: Path, mark: str) -> None:
    rows = [("id", "taken", "what"), *((str(n), f"2024-01-0{n} 10:0{n}:00", f"word {n}") for n in range(1, 8))]
    data = "".join(mark.join(row) + "\n" for row in rows)
    assert _spelt(tmp_path, data) == [",".join(row) for row in rows]


@pytest.mark.parametrize("values", [["pl:77:0", "pl:30:1", "pl:41:2", "pl:5:3"], ["St. Gallen 0", "Genf 1", "Uri 2"]])
def test_one_column_whose_values_hold_signs_stays_one(tmp_path: Path, values: list[str]) -> None:
    assert _spelt(tmp_path, "\n".join(["stop", *values]) + "\n") == ["stop", *values]


def test_a_comment_that_names_the_columns_is_the_header(read: Read) -> None:
    done = read("# made on Monday, by hand\n#id,when,much\n1,2024-01-02,3.5\n2,2024-01-03,4.5\n3,2024-01-04,1.0\n")
    assert done.frame.columns == ["#id", "when", "much"] and done.result.balance.closes


def test_as_text_a_row_with_a_quote_inside_a_cell_is_kept(tmp_path: Path) -> None:
    rows = "".join(f"{n},{n % 28 + 1:02d}/03/2024,{n}.5\n" for n in range(10, 40))
    assert len(_spelt(tmp_path, "id,day,price\n" + rows + '40,05/0"3/2024,1.5\n')) == 32
    source = tmp_path / "in.csv"
    assert ingest(Job(paths=(source,), out=tmp_path / "typed")).quarantined == 1


# ── values that could mean two things, or would lose something as numbers ────────────────────────────────────────────


@pytest.mark.parametrize(
    ("cells", "why"),
    [
        (["1e5", "2e7", "9e3"], "codes such as 1e5"),
        (["12", "1e5", "33", "45", "77", "81", "90", "11", "10", "13"], "codes such as 1e5"),
        (["+4930123456789", "+4940123456789", "+33123456789"], "telephone numbers"),
        (["1.234", "12", "123.456", "999"], "a point that may mean decimals or thousands"),
        (["5%", "0.07", "12%", "0.5"], "percent beside fractions"),
        (["24-01-05", "23-12-31", "22-06-07"], "day and month cannot be told apart"),
        (["2024-01-02", "2024-01-05", "03/04/2024", "2024-02-05"], "day and month cannot be told apart"),
        (["007", "12", "13"], "leading zeros"),
    ],
)
def test_what_may_mean_two_things_stays_text_and_says_why(cells: list[str], why: str) -> None:
    reading = learn(cells)
    assert (reading.type, reading.why) == ("text", why)


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["1,23,456", "12,34,567", "999"], [123456, 1234567, 999]),
        (["1\u2019234.50", "12\u2019000.00", "999.90"], [1234.5, 12000.0, 999.9]),
        (["1\u2009234", "12\u2009345", "7"], [1234, 12345, 7]),
        (["\u22121", "\u22122", "3"], [-1, -2, 3]),
        (["1.230", "12", "123.456", "999"], [1230, 12, 123456, 999]),
        (["0.5", "1.234", "2.25"], [0.5, 1.234, 2.25]),
        (["1e-05", "2.5e3", "1"], [1e-05, 2500.0, 1.0]),
        (["x", "", "x"], ["x", None, "x"]),
        (["13/02/24", "03/04/24", "25/12/23"], [date(2024, 2, 13), date(2024, 4, 3), date(2023, 12, 25)]),
        (["2024-01-02T10:00:00Z"] * 2, [datetime(2024, 1, 2, 10)] * 2),
    ],
)
def test_numbers_and_dates_of_many_countries(read: Read, cells: list[str], values: list[Any]) -> None:
    done = read("id;it\n" + "".join(f"{n};{cell}\n" for n, cell in enumerate(cells, 10)))
    assert done.frame.to_series(1).to_list() == values


def test_years_of_two_digits_are_told_from_days_by_their_spread() -> None:
    first = [f"{20 + n % 4}-{n % 12 + 1:02d}-{n % 28 + 1:02d}" for n in range(60)]
    last = ["-".join(reversed(cell.split("-"))) for cell in first]
    assert learn(first).formats == ("%y-%m-%d",) and learn(last).formats == ("%d-%m-%y",)


@pytest.mark.parametrize("compiled", [True, False])
def test_codes_that_come_after_the_sample_do_not_lose_their_zeros(tmp_path: Path, compiled: bool) -> None:
    def run(name: str, count: int) -> Any:
        rows = [f"{n},{n % 997 + 1000},a" for n in range(80_000)]
        rows[70_001 : 70_001 + count] = [f"{n},007,b" for n in range(70_001, 70_001 + count)]
        (tmp_path / name).write_text("id,code,t\n" + "\n".join(rows) + "\n")
        limits = IngestLimits(sample_bytes=1 << 16, chunk_bytes=1 << 20)
        return read_back(ingest(Job(paths=(tmp_path / name,), out=tmp_path / "out", limits=limits, compiled=compiled)))

    few = run("few.csv", 2)
    assert few.types["code"] == "int" and few.quarantine["column"].to_list() == ["code", "code"]
    assert 7 not in few.frame["code"]
    many = run("many.csv", 2_000)
    assert many.types["code"] == "text" and many.frame["code"].to_list().count("007") == 2_000


# ── bytes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress], ids=["gzip", "bz2", "xz"])
def test_compression_that_breaks_off_after_the_sample_is_told(tmp_path: Path, pack: Any) -> None:
    # The end of what can be decompressed is cut to a line, so that no row breaks off.
    data = "".join(f"{n * 7919 % 100_003},{n},{n % 7}\n" for n in range(120_000)).encode()
    packed = pack(b"a,b,c\n" + data)
    (tmp_path / "in.csv").write_bytes(packed[: len(packed) * 3 // 4])
    done = read_back(ingest(Job(paths=(tmp_path / "in.csv",), out=tmp_path / "out")))
    told = [one.said for one in done.result.findings if one.code == "ingest/truncated"]
    assert any("compression" in said for said in told)


def test_zero_bytes_in_names_are_taken_out(read: Read) -> None:
    assert read(b"id,na\x00me\n1,a\n2,b\n3,c\n").frame.columns == ["id", "name"]


@pytest.mark.parametrize("code", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("words", ["Köln;Übersee;Paris", "Москва;Тверь;Ростов"])
def test_wide_characters_without_a_mark_in_small_files(tmp_path: Path, code: str, words: str) -> None:
    data = "a;b;c\n" + words + "\n"
    assert _spelt(tmp_path, data.encode(code)) == ["a,b,c", words.replace(";", ",")]

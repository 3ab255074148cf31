"""Generated files come back as a careful person reads them: every pollution of our tables, frames of open-data portals.

The generators are bench/pollution.py and bench/portals.py, which measure many more files than are read here.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tenon.ingest import Job, ingest
from tenon.ingest.clean import clean

from .conftest import Read

BENCH = Path(__file__).parents[2] / "bench"


def _loaded(name: str) -> ModuleType:
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pollution() -> ModuleType:
    """The generator of polluted tables, with the judge."""
    _loaded("measure")
    return _loaded("pollution")


@pytest.fixture(scope="module")
def portals(pollution: ModuleType) -> ModuleType:
    """The generator of files of portals."""
    return _loaded("portals")


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

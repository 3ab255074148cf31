"""Check 300,000 rows against a contract: tenon, dataframely and pandera, and plain Polars without anybody to tell.

Every candidate holds the rows to the same ten rules (types, nulls, ranges, a set, a pattern, one condition between
columns, a unique key of two columns) and parts good rows from bad; 1 % of the rows break one rule each. The rows come
in three states: in order of their id, shuffled (no column shows by its order that the key is unique), and without a row
at fault. pandera reports which rows fail but does not part them, so its rows are filtered by its report. The naive
candidate filters with one Polars expression and cannot say why. Run as `python bench/validation.py`; peers that are not
installed are left out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import measure
import numpy as np
import polars as pl

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from tenon.contract import Column, Contract, Source, check, row_checker

ROWS = 300_000


def table() -> pl.DataFrame:
    """Make rows of which about 1 % break one rule each."""
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "id": np.arange(ROWS),
            "hour": rng.integers(0, 24, ROWS),
            "delay": rng.normal(0, 30, ROWS),
            "distance": rng.uniform(50, 5000, ROWS),
            "carrier": rng.choice(["UA", "B6", "9E"], ROWS),
            "dest": rng.choice(["LAX", "SFO", "ORD", "BOS"], ROWS),
            "dep": rng.integers(0, 1_000_000, ROWS),
            "arr": rng.integers(1_000_000, 2_000_000, ROWS),
        }
    )
    n, lot = pl.int_range(pl.len()), 400
    return frame.with_columns(
        hour=pl.when(n % lot == 1).then(99).otherwise("hour"),
        delay=pl.when(n % lot == 2).then(None).otherwise("delay"),
        carrier=pl.when(n % lot == 3).then(pl.lit("ZZ")).otherwise("carrier"),
        arr=pl.when(n % lot == 4).then(0).otherwise("arr"),
    )


CONTRACT = Contract.of(
    Source(
        "flights",
        key=["id", "carrier"],
        columns=[
            Column("id", "int"),
            Column("hour", "int", between=(0, 23)),
            Column("delay", "float", between=(-1000, 1000)),
            Column("distance", "float", between=(0, 10_000)),
            Column("carrier", one_of=("UA", "B6", "9E")),
            Column("dest", pattern="[A-Z]{3}"),
            Column("dep", "int"),
            Column("arr", "int"),
        ],
        rules=["arr > dep"],
    )
)


def tenon(frame: pl.DataFrame) -> tuple[int, int]:
    """Part the rows, with the rules each broke."""
    verdict = check(frame, CONTRACT)
    return verdict.good.height, verdict.bad.height


def naive(frame: pl.DataFrame) -> tuple[int, int]:
    """Filter by one expression; nobody learns why a row is out."""
    fine = (
        pl.col("hour").is_between(0, 23)
        & pl.col("delay").is_between(-1000, 1000)
        & pl.col("distance").is_between(0, 10_000)
        & pl.col("carrier").is_in(["UA", "B6", "9E"])
        & pl.col("dest").str.contains("^[A-Z]{3}$")
        & (pl.col("arr") > pl.col("dep"))
        & ~pl.struct("id", "carrier").is_duplicated()
    ).fill_null(False)
    split = frame.with_columns(fine.alias("fine"))
    return split.filter("fine").height, split.filter(~pl.col("fine")).height


def dataframely() -> Callable[[pl.DataFrame], tuple[int, int]]:
    """Return dataframely's filter with the same rules."""
    import dataframely as dy

    class Flights(dy.Schema):
        id = dy.Int64(primary_key=True)
        hour = dy.Int64(nullable=False, min=0, max=23)
        delay = dy.Float64(nullable=False, min=-1000, max=1000)
        distance = dy.Float64(nullable=False, min=0, max=10_000)
        carrier = dy.String(primary_key=True, check=lambda column: column.is_in(["UA", "B6", "9E"]))
        dest = dy.String(nullable=False, regex="^[A-Z]{3}$")
        dep = dy.Int64(nullable=False)
        arr = dy.Int64(nullable=False)

        @dy.rule()
        def lands_after(cls) -> pl.Expr:  # noqa: N805  # dataframely's way
            return pl.col("arr") > pl.col("dep")

    def run(frame: pl.DataFrame) -> tuple[int, int]:
        good, failed = Flights.filter(frame)
        return good.height, len(failed.invalid())

    return run


def pandera(engine: Any, condition: Any) -> Any:
    """Return pandera's schema with the same rules, for its Polars or its pandas engine."""
    return engine.DataFrameSchema(
        {
            "id": engine.Column(int),
            "hour": engine.Column(int, engine.Check.in_range(0, 23)),
            "delay": engine.Column(float, engine.Check.in_range(-1000, 1000), nullable=False),
            "distance": engine.Column(float, engine.Check.in_range(0, 10_000)),
            "carrier": engine.Column(str, engine.Check.isin(["UA", "B6", "9E"])),
            "dest": engine.Column(str, engine.Check.str_matches("^[A-Z]{3}$")),
            "dep": engine.Column(int),
            "arr": engine.Column(int),
        },
        checks=[engine.Check(condition)],
        unique=["id", "carrier"],
    )


def pandera_polars() -> Callable[[pl.DataFrame], tuple[int, int]]:
    """Return pandera's lazy validation of a Polars frame, and its report used to part the rows."""
    import pandera.polars as engine
    from pandera.errors import SchemaErrors

    schema = pandera(engine, lambda data: data.lazyframe.select(pl.col("arr") > pl.col("dep")))

    def run(frame: pl.DataFrame) -> tuple[int, int]:
        try:
            schema.validate(frame, lazy=True)
        except SchemaErrors as failed:
            bad = failed.failure_cases["index"].drop_nulls().unique()
            at_fault = pl.int_range(pl.len()).is_in(bad.cast(pl.Int64).implode())
            return frame.filter(~at_fault).height, frame.filter(at_fault).height
        return frame.height, 0

    return run


def pandera_pandas() -> Callable[[Any], tuple[int, int]]:
    """Return pandera's validation of a pandas frame."""
    import pandera.pandas as engine
    from pandera.errors import SchemaErrors

    schema = pandera(engine, lambda frame: frame["arr"] > frame["dep"])

    def run(frame: Any) -> tuple[int, int]:
        try:
            schema.validate(frame, lazy=True)
        except SchemaErrors as failed:
            bad = failed.failure_cases["index"].dropna().astype(int).unique()
            at_fault = frame.index.isin(bad)
            return int((~at_fault).sum()), len(frame[at_fault])
        return len(frame), 0

    return run


def request_rows() -> str:
    """Time the check of plain request rows."""
    checker = row_checker(CONTRACT.columns)
    rows = table().filter(pl.col("delay").is_not_null() & (pl.col("hour") < 24)).head(10_000).to_dicts()
    taken = measure.turns({"tenon row_checker": lambda: checker(rows)})
    return measure.table("Plain rows of a request, 8 fields", taken, work=10_000, unit="rows")


def states() -> dict[str, pl.DataFrame]:
    """Return the rows in order, shuffled with an id of wide gaps, and the good ones alone."""
    frame = table()
    mixed = frame.with_columns(id=pl.Series(np.random.default_rng(1).permutation(ROWS) * 1_000))
    return {"in order": frame, "shuffled": mixed, "no row at fault": check(frame, CONTRACT).good}


def main() -> None:
    """Print the tables."""
    measure.options(__doc__).parse_args()
    found: dict[str, Callable[[pl.DataFrame], tuple[int, int]]] = {"tenon": tenon, "naive Polars filter": naive}
    if measure.has("dataframely"):
        found["dataframely"] = dataframely()
    peers = measure.has("pandera")
    if peers:
        found["pandera, Polars"] = pandera_polars()
    on_pandas = pandera_pandas() if peers and measure.has("pandas") else None
    parts = []
    for state, frame in states().items():
        runs = {name: partial(run, frame) for name, run in found.items()}
        if on_pandas is not None:
            runs["pandera, pandas"] = partial(on_pandas, frame.to_pandas())
        split = [[name, *run()] for name, run in runs.items()]
        taken = measure.turns(runs, repeats=9)
        least = [
            [name, f"{min(times):.4g}", f"{min(times) / min(taken['tenon']):.2f}"] for name, times in taken.items()
        ]
        parts += [
            measure.table(f"Ten rules over {frame.height:,} rows, {state}", taken, work=ROWS, unit="rows"),
            measure.rows("The quickest of nine", ["candidate", "s", "times the first"], least),
            measure.rows("Rows parted", ["candidate", "good", "bad"], split),
        ]
    measure.show(*parts, request_rows(), measure.machine("polars", "dataframely", "pandera"))


if __name__ == "__main__":
    main()

"""The online state: what goes in, what it forgets, how it is kept, and what it says when something is wrong."""

from __future__ import annotations

import datetime as dt
import io
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import polars as pl
import pytest

from tenon.contract import Column, Source
from tenon.errors import CorruptError, InputError, MissingError
from tenon.feature import Feature, FeatureSet, Label, Online

Row = dict[str, Any]
START = dt.datetime(2024, 1, 1)
SALES = Source(
    "sales",
    key=["sale"],
    time="at",
    known="paid",
    columns=[
        Column("sale", "int"),
        Column("at", "timestamp"),
        Column("paid", "timestamp", nullable=True),
        Column("shop"),
        Column("sum", "float", late=True, nullable=True),
    ],
)
PRICES = Source(
    "prices", key=["shop"], time="day", columns=[Column("shop"), Column("day", "date"), Column("price", "float")]
)
SHOPS = Source("shops", key=["shop"], columns=[Column("shop"), Column("size", "int")])
SOURCES = {source.name: source for source in (SALES, PRICES, SHOPS)}
FEATURES = (
    Feature("week", "sum(sum)", over="shop", window="7d"),
    Feature("sales", "count(*)", over="shop", window="7d"),
    Feature("last", "last(sum)", over="shop", window="1d"),
    Feature("price", "price", of="prices"),
    Feature("size", "size", of="shops"),
)


def compiled(*features: Feature) -> FeatureSet:
    return FeatureSet.compile(features or FEATURES, Label("sum > 10"), SALES, SOURCES)


def sale(
    number: int, hour: float, total: float | None, *, shop: str = "north", paid: float | None = 1
) -> dict[str, Any]:
    at = START + dt.timedelta(hours=hour)
    return {
        "sale": number,
        "at": at,
        "paid": None if paid is None else at + dt.timedelta(hours=paid),
        "shop": shop,
        "sum": total,
    }


SCHEMA: dict[str, Any] = {
    "sale": pl.Int64,
    "at": pl.Datetime("us"),
    "paid": pl.Datetime("us"),
    "shop": pl.String,
    "sum": pl.Float64,
}


def sales(*rows: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=SCHEMA)


def many(count: int) -> pl.DataFrame:
    return sales(*(sale(n, n / 10, n / 7, shop=f"shop {n % 13}") for n in range(count)))


def empty(features: FeatureSet) -> Online:
    prices = pl.DataFrame(schema={"shop": pl.String, "day": pl.Date, "price": pl.Float64})
    shops = pl.DataFrame(schema={"shop": pl.String, "size": pl.Int64})
    return features.online({"sales": sales(), "prices": prices, "shops": shops})


def asked(hour: float, shop: str = "north") -> dict[str, Any]:
    return {"at": START + dt.timedelta(hours=hour), "shop": shop}


# ── facts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_fact_counts_from_the_moment_it_is_known_and_a_correction_replaces_it() -> None:
    state = empty(compiled())
    assert state.apply("sales", sales(sale(1, 0, 5.0))) == 1
    assert state.read([asked(0.5), asked(1), asked(2)])["week"] == [None, 5.0, 5.0]
    assert state.apply("sales", sales(sale(1, 0, 5.0))) == 0, "the same fact again"
    assert state.apply("sales", sales(sale(1, 0, 8.0))) == 1, "the same moment, another value"
    assert state.read([asked(2)]) == {"week": [8.0], "sales": [1.0], "last": [8.0], "price": [None], "size": [None]}
    assert state.apply("sales", sales(sale(1, 0, 9.0, paid=3))) == 1, "known later: the old value counts until then"
    assert state.read([asked(2), asked(3)])["week"] == [8.0, 9.0]
    assert state.read([asked(3)])["sales"] == [1.0]
    assert state.apply("sales", sales(sale(1, 0, 5.0), sale(1, 0, 8.0))) == 0, "old versions told again are no news"
    assert state.apply("sales", sales(sale(1, 0, 9.5, paid=2, shop="south"))) == 1, "known earlier, in another group"
    assert state.read([asked(2), asked(3)])["week"] == [None, None]
    assert state.read([asked(1.5), asked(2), asked(3)])["week"] == [8.0, None, None]
    assert state.read([asked(1.5, "south"), asked(2, "south")])["week"] == [None, 9.5]


def test_a_fact_that_is_not_known_yet_changes_nothing() -> None:
    state = empty(compiled())
    assert state.apply("sales", sales(sale(1, 0, None, paid=None))) == 0
    assert state.read([asked(100)])["sales"] == [0.0]


def test_many_facts_at_once_come_to_the_same_as_one_by_one() -> None:
    facts = many(1_500)
    versions = facts.head(40).with_columns(pl.col("sum") + 1, pl.col("paid") + dt.timedelta(hours=2))
    one, whole = empty(compiled()), empty(compiled())
    for start in range(0, 1_500, 100):
        one.apply("sales", facts[start : start + 100])
    one.apply("sales", versions)
    assert whole.apply("sales", pl.concat([facts, versions])) == 1_540
    assert whole.apply("sales", pl.concat([facts, versions])) == 0
    rows = [asked(hour, f"shop {hour % 13}") for hour in range(0, 160, 3)]
    assert one.read(rows) == whole.read(rows)
    assert one.to_bytes() == whole.to_bytes()


def test_a_lookup_takes_the_newest_row_of_a_key() -> None:
    state = empty(compiled())
    state.apply("shops", pl.DataFrame({"shop": ["north", "south"], "size": [3, 4]}))
    assert state.read([asked(0), asked(0, "south"), asked(0, "west")])["size"] == [3.0, 4.0, None]
    assert state.apply("shops", pl.DataFrame({"shop": ["north", "south"], "size": [7, 4]})) == 1
    assert state.read([asked(0)])["size"] == [7.0]


def test_a_date_happens_at_its_midnight() -> None:
    state = empty(compiled())
    state.apply("prices", pl.DataFrame({"shop": ["north"], "day": [dt.date(2024, 1, 2)], "price": [9.5]}))
    assert state.read([asked(23.999), asked(24)])["price"] == [None, 9.5]


def test_a_time_with_a_zone_is_the_same_instant_in_utc() -> None:
    state = empty(compiled())
    state.apply("sales", sales(sale(1, 0, 5.0)))
    there = dt.timezone(dt.timedelta(hours=5))
    rows = [{"at": dt.datetime(2024, 1, 1, hour, tzinfo=there), "shop": "north"} for hour in (5, 6)]
    assert state.read(rows)["week"] == [None, 5.0]


def test_a_source_nobody_reads_changes_nothing_and_an_unknown_one_is_refused() -> None:
    state = compiled(Feature("week", "sum(sum)", over="shop", window="7d")).online({"sales": sales()})
    assert state.apply("shops", pl.DataFrame({"shop": ["north"], "size": [3]})) == 0
    with pytest.raises(MissingError, match="'shop'; did you mean 'shops'"):
        state.apply("shop", pl.DataFrame({"shop": ["north"], "size": [3]}))
    with pytest.raises(MissingError, match="did you mean 'sales'"):
        state.derive_facts("sale", [])


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (sales(sale(1, 0, 5.0)).drop("shop"), "the column 'shop', got rows without it - at source 'sales'"),
        (
            sales(sale(1, 0, 5.0)).with_columns(at=pl.lit(None, pl.Datetime("us"))),
            "a time in every row, got 1 of 1 rows",
        ),
        (sales(sale(1, 0, 5.0)).with_columns(sum=pl.lit("5")), "'sum' to be float, as declared, got text"),
    ],
)
def test_facts_that_cannot_be_read_are_refused_in_words_and_change_nothing(rows: pl.DataFrame, words: str) -> None:
    state = empty(compiled())
    before = state.to_bytes()
    with pytest.raises(InputError) as error:
        state.apply("sales", rows)
    assert words in str(error.value)
    assert state.to_bytes() == before


def test_plain_rows_become_facts_of_the_declared_types() -> None:
    state = empty(compiled())
    rows = [{key: value for key, value in sale(1, 0, 5).items() if key != "sum"}, {**sale(2, 1, 7), "note": "?"}]
    facts = state.derive_facts("sales", rows)
    assert facts.schema["sum"] == pl.Float64
    assert state.apply("sales", facts) == 2
    assert state.read([asked(5)])["week"] == [7.0]
    with pytest.raises(InputError, match=r"int values, got '1' - at column 'sale'"):
        state.derive_facts("sales", [{**sale(1, 0, 5), "sale": "1"}])


# ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_request_without_a_column_or_a_time_is_told_so() -> None:
    state = empty(compiled())
    with pytest.raises(InputError, match="the column 'shop' in every row"):
        state.read([{"at": START}])
    with pytest.raises(InputError, match="a time in 'at', got null"):
        state.read([{"at": None, "shop": "north"}])
    assert state.read([]) == {name: [] for name in compiled().names}


def test_a_request_of_an_unknown_group_counts_nothing() -> None:
    state = empty(compiled())
    state.apply("sales", sales(sale(1, 0, 5.0)))
    for shop in ("west", None):
        found = state.read([{"at": START + dt.timedelta(hours=9), "shop": shop}])
        assert found == {"week": [None], "sales": [0.0], "last": [None], "price": [None], "size": [None]}


def test_the_row_asked_about_is_never_in_its_own_window() -> None:
    """Even when its fact was applied already, and claims to be known at once."""
    features = compiled(Feature("n", "count(*)", window="1d"))
    facts = sales(sale(1, 0, 5.0, paid=0), sale(2, 0, 6.0, paid=-5), sale(3, 1, 6.0, paid=0))
    state = features.online({"sales": facts})
    assert state.read([asked(0), asked(1), asked(2)])["n"] == [0.0, 2.0, 3.0]
    assert features.matrix({"sales": facts})["n"].to_list() == [0.0, 0.0, 2.0]


# ── memory and bytes ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_pruning_forgets_what_lies_beyond_the_longest_window() -> None:
    facts, days = many(5_000), [dt.date(2024, 1, 1) + dt.timedelta(days=n) for n in range(400)]
    prices = pl.DataFrame({"shop": ["shop 1"] * 400, "day": days, "price": [1.0 * n for n in range(400)]})
    shops = pl.DataFrame({"shop": ["a"], "size": [1]})
    state = compiled().online({"sales": facts, "prices": prices, "shops": shops})
    before = START + dt.timedelta(days=20)
    rows = [{"at": before + dt.timedelta(hours=n), "shop": f"shop {n % 13}"} for n in range(30)]
    expected, large = state.read(rows), len(state.to_bytes())
    forgotten = state.prune(before)
    kept = facts.filter(pl.col("paid") >= before - dt.timedelta(days=7)).height
    assert forgotten == facts.height - kept + 20, "all prices before, but the newest: it has no limit"
    assert len(state.to_bytes()) < large
    assert state.read(rows) == expected
    assert state.prune(before) == 0


def test_the_bytes_are_a_zip_of_open_formats_and_name_their_features() -> None:
    state = empty(compiled())
    state.apply("sales", many(30))
    with zipfile.ZipFile(io.BytesIO(state.to_bytes())) as archive:
        head = json.loads(archive.read("head.json"))
        assert head == {
            "format": 1,
            "features": compiled().digest,
            "parts": ["facts/prices", "facts/sales", "tables/shops"],
        }
        assert pl.read_parquet(io.BytesIO(archive.read("1.parquet"))).height == 30


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "text", "other zip"])
def test_damaged_bytes_are_refused_as_corrupt(damage: str) -> None:
    state = empty(compiled())
    state.apply("sales", many(50))
    body = state.to_bytes()
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("head.json", "[]")
    middle = body.index(b"PAR1") + 40
    broken = {
        "empty": b"",
        "cut": body[: len(body) // 2],
        "flipped": body[:middle] + bytes([body[middle] ^ 0xFF]) + body[middle + 1 :],
        "text": b"no zip at all",
        "other zip": other.getvalue(),
    }[damage]
    with pytest.raises(CorruptError, match="the bytes of an online state"):
        compiled().load(broken)


def test_a_state_of_other_features_is_refused() -> None:
    body = empty(compiled()).to_bytes()
    other = compiled(*FEATURES[:3], Feature("price", "price * 2", of="prices"), FEATURES[4])
    with pytest.raises(InputError, match=f"features {other.digest}, got features {compiled().digest}"):
        other.load(body)


def test_warming_changes_no_answer() -> None:
    cold, warm = empty(compiled()), empty(compiled())
    for state in (cold, warm):
        state.apply("sales", many(2_000))
    warm.warm()
    rows = [asked(hour, f"shop {hour % 13}") for hour in range(200)]
    assert warm.read(rows) == cold.read(rows)


def test_threads_take_turns() -> None:
    state = empty(compiled())
    facts = many(400)

    def work(part: int) -> None:
        for n in range(part, 400, 4):
            state.apply("sales", facts[n])
            state.read([asked(n / 10, f"shop {n % 13}")])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    whole = empty(compiled())
    whole.apply("sales", facts)
    assert state.to_bytes() == whole.to_bytes()


def test_the_moment_of_a_request_is_its_time() -> None:
    assert empty(compiled()).moments([asked(3), asked(5)]) == [asked(3)["at"], asked(5)["at"]]

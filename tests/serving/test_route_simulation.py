"""`tenon route simulate`: the reference replica as published, any trace or a fault with its line, twice the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenon.cli.route import NAMES
from tenon.errors import InputError, UsageError
from tenon.limits import RouteLimits
from tenon.serving.route import POLICIES, Routing
from tenon.serving.shape import SHAPES, shaped
from tenon.serving.simulation import Fleet, Request, block_tokens, read_trace, simulate

ONE = Fleet(replicas=1, blocks=100, prefill_per_s=1_000.0, decode_per_s=10.0)


def test_a_cached_prefix_saves_its_prefill_and_requests_wait_their_turn() -> None:
    trace = [
        Request(0, 1_024, 10, [1, 2]),
        Request(0, 2_048, 10, [1, 2, 3, 4]),
        Request(10_000, 1_100, 10, [1, 2, 9]),
    ]
    done = simulate(trace, ONE)
    assert done.hit == pytest.approx((1_024 + 1_024) / (1_024 + 2_048 + 1_100))
    assert done.ttft_p50_s == pytest.approx(1.024)  # 0.076, 1.024, 2.048
    assert done.ttft_p99_s == pytest.approx(1.024 + 1.024)
    assert done.ttft_mean_s == pytest.approx((1.024 + 2.048 + 0.076) / 3)
    assert (done.imbalance, done.refused, done.requests) == (1.0, 0, 3)


def test_the_cache_drops_what_was_used_least_recently() -> None:
    trace = [Request(n * 10_000, 512, 1, [block]) for n, block in enumerate([1, 2, 1, 3, 1, 2])]
    assert simulate(trace, Fleet(replicas=1, blocks=2)).hit == pytest.approx(2 / 6)


def test_the_same_seed_gives_the_same_figures() -> None:
    trace = list(shaped("chats", seconds=60, per_s=10, seed=4))
    assert simulate(trace, seed=1) == simulate(trace, seed=1)


def test_requests_beyond_the_bound_are_refused_and_counted_against_goodput() -> None:
    trace = [Request(0, 1_000, 1, [n]) for n in range(10)]
    done = simulate(trace, ONE, limits=RouteLimits(waiting=4))
    assert done.refused == 6
    assert done.goodput == pytest.approx(0.3)  # of 1, 2, 3 and 4 s, three are within 3 s


# ── policies on traffic of several shapes ────────────────────────────────────────────────────────────────────────────

SHAPED = [
    ("chats", 20, 8),
    ("agents", 30, 8),
    ("strangers", 12, 8),
    ("bursts", 10, 8),
    ("crowd", 15, 8),
    ("tiny", 90, 3),
]


@pytest.mark.parametrize(("shape", "per_s", "replicas"), SHAPED)
def test_the_default_policy_is_the_best_on_time_and_near_the_best_on_cache(
    shape: str, per_s: int, replicas: int
) -> None:
    trace = list(shaped(shape, seconds=120, per_s=per_s))
    fleet = Fleet(replicas=replicas, blocks=2_000)
    found = {policy: simulate(trace, fleet, Routing(policy=policy)) for policy in POLICIES}
    cache = found.pop("cache")
    assert cache.hit >= 0.97 * max(done.hit for done in found.values())
    assert cache.ttft_mean_s <= min(done.ttft_mean_s for done in found.values())
    assert cache.goodput >= max(done.goodput for done in found.values())
    assert cache.imbalance <= 1.15
    assert cache.refused == 0


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_a_shape_is_the_same_twice_in_order_of_time_and_about_as_frequent_as_asked(shape: str) -> None:
    trace = list(shaped(shape, seconds=400, per_s=6, seed=2))
    assert trace == list(shaped(shape, seconds=400, per_s=6, seed=2))
    assert [r.timestamp for r in trace] == sorted(r.timestamp for r in trace)
    assert 0.5 < len(trace) / (400 * 6) < 1.6
    assert all(0 <= len(r.hash_ids) - r.input_length // 512 <= 1 for r in trace)


# ── reading a trace ──────────────────────────────────────────────────────────────────────────────────────────────────

LINE = '{"timestamp": 5, "input_length": 600, "output_length": 2, "hash_ids": [1, 2]}'


def test_a_trace_is_read_in_order_of_time_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(f"{LINE.replace('5', '9', 1)}\n\n{LINE}\n")
    assert [request.timestamp for request in read_trace(path)] == [5, 9]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "Input data was truncated"),
        ("[]", "Expected `object`, got `array`"),
        ('{"timestamp": 1}', "missing required field `input_length`"),
        (LINE.replace("600", "-1"), "input_length from 0 to"),
        (LINE.replace("600", "1e300"), "got `float`"),
        (LINE.replace("600", "9999999999999"), "input_length from 0 to"),
        (LINE.replace("5", "NaN", 1), "invalid"),
        (LINE.replace("5", "-4", 1), "a timestamp in milliseconds"),
        (LINE.replace("[1, 2]", "[1, 99999999999999999999]"), "hash_ids"),
        (LINE.replace("[1, 2]", '["a"]'), "$.hash_ids[0]"),
        ("\xff\x00", "expected {timestamp"),
        ('{"a": ' * 5_000, "expected {timestamp"),
    ],
)
def test_a_line_that_is_no_request_is_named_by_its_number(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(f"{LINE}\n{line}\n", "latin-1")
    with pytest.raises(InputError) as caught:
        read_trace(path)
    assert said in str(caught.value)
    assert f"{path}:2" in str(caught.value)


def test_a_trace_beyond_its_bounds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(f"{LINE}\n{LINE}\n")
    with pytest.raises(InputError, match="trace_requests"):
        read_trace(path, RouteLimits(trace_requests=1))
    with pytest.raises(InputError, match="more than 50 bytes"):
        read_trace(path, RouteLimits(trace_line_bytes=50))
    path.write_text("")
    with pytest.raises(InputError, match="got none"):
        read_trace(path)
    with pytest.raises(InputError, match="No such file"):
        read_trace(tmp_path / "nothing")


def test_blocks_of_another_size_are_seen_in_the_lengths_and_counted_as_what_they_are() -> None:
    fine = [Request(n * 1e4, 100, 1, list(range(7))) for n in range(4)]  # 16 tokens a block
    assert block_tokens(fine) == 16
    assert simulate(fine, Fleet(replicas=1, block_tokens=16)).hit == pytest.approx(3 * 100 / 400)
    assert block_tokens(list(shaped("chats", seconds=60, per_s=10))) == 512
    assert block_tokens([Request(0, 700, 1, []), Request(0, 0, 0, [1]), Request(0, 5, 1, [1, 2, 3])]) == 512


def test_a_trace_out_of_order_without_blocks_or_output_is_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    lines = [
        {"timestamp": 9_000.5, "input_length": 600, "output_length": 0, "hash_ids": [1, 2], "type": "agent"},
        {"timestamp": 0, "input_length": 700, "output_length": 3, "hash_ids": []},
        {"timestamp": 100, "input_length": 0, "output_length": 0, "hash_ids": []},
        {"timestamp": 50, "input_length": 600, "output_length": 1, "hash_ids": [1, 2]},
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    for policy in POLICIES:
        done = simulate(read_trace(path), Fleet(replicas=1), Routing(policy=policy))
        assert (done.requests, done.refused) == (4, 0)
        assert done.hit == pytest.approx(600 / 1_900)


REQUESTS = st.builds(
    Request,
    st.floats(0, 1e6),
    st.integers(0, 10**9),
    st.integers(0, 10**9),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=8),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(REQUESTS, max_size=30), st.sampled_from(sorted(POLICIES)), st.integers(1, 9), st.integers(1, 9))
def test_no_trace_however_odd_breaks_a_replay(trace: list[Request], policy: str, replicas: int, blocks: int) -> None:
    trace.sort(key=lambda request: request.timestamp)
    done = simulate(trace, Fleet(replicas=replicas, blocks=blocks), Routing(policy=policy))
    assert done.requests == len(trace)
    assert 0 <= done.hit <= 1 <= done.imbalance + 1e-9
    assert 0 <= done.ttft_p50_s <= done.ttft_p99_s


@pytest.mark.parametrize(
    "more", [{"replicas": 0}, {"blocks": -1}, {"prefill_per_s": 0.0}, {"decode_per_s": float("nan")}]
)
def test_a_fleet_that_cannot_be_is_refused(more: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="a number above 0"):
        Fleet(**more)


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


def tenon(*words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-m", "tenon", "route", *words], capture_output=True, text=True, env=env, check=False
    )


def test_the_command_prints_the_figures_for_programs_and_a_table_for_people(tmp_path: Path) -> None:
    assert set(NAMES) == set(POLICIES)
    path = tmp_path / "trace.jsonl"
    path.write_text(f"{LINE}\n{LINE}\n")
    one = json.loads(tenon("simulate", str(path), "--replicas", "2", "--policy", "cache", "--json").stdout)
    assert {"hit", "ttft_p50_s", "ttft_p99_s", "imbalance", "refused"} <= set(one)
    every = tenon("simulate", str(path)).stdout
    assert all(name in every for name in NAMES)
    wrong = tenon("simulate", str(path), "--policy", "cached")
    assert wrong.returncode == 2
    assert "did you mean 'cache'" in wrong.stderr

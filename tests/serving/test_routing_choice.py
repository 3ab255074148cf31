"""The router: what it believes, what it learns, and what it never does, whatever comes."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenon.errors import ConfigError
from tenon.limits import RouteLimits
from tenon.serving.cachemap import CacheMap
from tenon.serving.route import POLICIES, Need, Router, Routing, Speed, Ticket


def routed(count: int = 3, *, seed: int = 0, limits: RouteLimits | None = None, **more: object) -> Router:
    router = Router(Routing(**more), limits=limits, rng=random.Random(seed))  # type: ignore[arg-type]
    for number in range(count):
        router.add(f"r{number}", capacity=1_000)
    return router


def sent(router: Router, need: Need, now: float) -> Ticket:
    ticket = router.route(need, now)
    assert ticket is not None
    return ticket


def served(router: Router, need: Need, now: float, *, per_unit: float = 1e-3) -> Ticket:
    """Route one request on idle replicas and answer it as quickly as a replica of that speed would."""
    ticket = sent(router, need, now)
    missing = need.units - ticket.believed * need.block_units
    router.began(ticket, now + missing * per_unit)
    router.done(ticket, now + missing * per_unit)
    return ticket


# ── what it chooses ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_request_goes_where_its_prefix_is_cached() -> None:
    router = routed()
    first = served(router, Need(units=4_000, blocks=[1, 2, 3, 4], block_units=1_000), 0.0)
    again = served(router, Need(units=5_000, blocks=[1, 2, 3, 4, 5], block_units=1_000), 100.0)
    assert again.replica == first.replica
    assert again.believed == 4


def test_it_goes_elsewhere_when_waiting_for_the_cache_would_make_it_late() -> None:
    router = routed()
    home = served(router, Need(units=1_000, blocks=[1, 2], block_units=500), 0.0).replica
    sent(router, Need(units=60_000, blocks=[1, 2, *range(100, 218)], block_units=500), 10.0)
    assert router.wait_s(home, 10.0) > 20
    assert sent(router, Need(units=1_000, blocks=[1, 2], block_units=500), 10.0).replica != home


def test_what_many_wait_for_is_worth_having_twice() -> None:
    router = routed(2, thrift=24.0)
    served(router, Need(units=1_000, blocks=[1], block_units=1_000), 0.0)
    replicas = {sent(router, Need(units=1_100, blocks=[1], block_units=1_000), 10.0).replica for _ in range(40)}
    assert replicas == {0, 1}


def test_requests_that_share_one_block_do_not_starve_a_replica_that_lacks_it() -> None:
    router = routed(4)
    now, given = 0.0, [0] * 4
    for number in range(2_000):
        now += 0.5
        given[served(router, Need(units=100, blocks=[7, 1_000 + number], block_units=50), now).replica] += 1
    assert max(given) < 1.15 * min(given)


def test_equal_replicas_are_drawn_at_random() -> None:
    first = {sent(routed(8, seed=seed), Need(units=10), 0.0).replica for seed in range(40)}
    assert len(first) > 4


def test_a_session_stays_where_it_is_until_its_replica_is_lost() -> None:
    router = routed(4)
    home = served(router, Need(session="a"), 0.0).replica
    assert {served(router, Need(session="a"), float(now)).replica for now in range(1, 50)} == {home}
    router.close(home, lost=True)
    moved = served(router, Need(session="a"), 60.0).replica
    assert moved != home
    router.reopen(home)
    assert {served(router, Need(session="a"), float(now)).replica for now in range(61, 90)} == {moved}


def test_a_session_leaves_a_replica_where_it_would_be_late_while_another_is_idle() -> None:
    router = routed(2)
    home = served(router, Need(session="a"), 0.0).replica
    for _ in range(10_000):
        if sent(router, Need(units=1_000), 1.0).replica == home and router.wait_s(home, 1.0) > 9:
            break
    other = 1 - home
    for ticket in list(router.waiting(other)):
        router.began(ticket, 1.0)
        router.done(ticket, 1.0)
    assert sent(router, Need(session="a"), 1.0).replica == other


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_full_or_closed_replica_gets_nothing_and_none_is_said_when_all_are(policy: str) -> None:
    router = routed(2, policy=policy, limits=RouteLimits(waiting=3))
    router.close(0, lost=False)
    tickets = [router.route(Need(blocks=[number]), 0.0) for number in range(4)]
    assert [ticket and ticket.replica for ticket in tickets] == [1, 1, 1, None]
    assert tickets[0] is not None
    router.began(tickets[0], 1.0)
    assert sent(router, Need(), 1.0).replica == 1


def test_a_policy_that_does_not_exist_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'round-robin'"):
        Routing(policy="roundrobin")
    with pytest.raises(ConfigError, match="at target_s"):
        Routing(target_s=math.nan)


# ── what it learns ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_speed_of_each_replica_is_learnt_from_its_answers() -> None:
    router = routed(2, policy="round-robin")
    slow = {0: 1e-3, 1: 5e-3}
    rng = random.Random(1)
    for number in range(60):
        need = Need(units=rng.randint(10, 1_000))
        ticket = sent(router, need, 100.0 * number)
        router.began(ticket, 100.0 * number + 0.02 + need.units * slow[ticket.replica])
        router.done(ticket, 100.0 * number + 50)
    for replica, per in slow.items():
        assert router.speeds[replica].per == pytest.approx(per, rel=0.01)
        assert router.speeds[replica].base == pytest.approx(0.02, rel=0.1)


def test_the_faster_replica_gets_more() -> None:
    router = routed(2)
    given = [0, 0]
    free = [0.0, 0.0]
    now = 0.0
    pending: list[tuple[float, Ticket]] = []
    rng = random.Random(3)
    for _ in range(3_000):
        now += 0.1
        for end, ticket in [each for each in pending if each[0] <= now]:
            router.began(ticket, end)
            router.done(ticket, end)
            pending.remove((end, ticket))
        need = Need(units=rng.randint(50, 150))
        ticket = sent(router, need, now)
        given[ticket.replica] += 1
        free[ticket.replica] = max(now, free[ticket.replica]) + need.units * (1e-3, 4e-3)[ticket.replica]
        pending.append((free[ticket.replica], ticket))
        pending.sort(key=lambda each: each[0])
    assert given[0] > 2 * given[1]


def test_an_overdue_replica_is_expected_to_stay_so() -> None:
    router = routed(2)
    stuck = sent(router, Need(units=100), 0.0).replica
    assert router.wait_s(stuck, 60.0) == pytest.approx(60, abs=1)
    assert all(served(router, Need(units=100), 60.0 + n).replica != stuck for n in range(5))


def test_a_replica_that_says_less_was_cached_than_believed_is_believed_to_have_a_smaller_cache() -> None:
    router = Router(rng=random.Random(0))
    replica = router.add("r0")
    before = router.map.capacity(replica)
    for number in range(20):
        blocks = [number, number + 1_000]
        router.began(sent(router, Need(units=20, blocks=blocks, block_units=10), number), number, cached=0)
        router.began(sent(router, Need(units=20, blocks=blocks, block_units=10), number), number, cached=0)
    assert router.map.capacity(replica) < 0.8 * before


def test_speed_of_no_work_at_all_is_a_time_and_no_division() -> None:
    speed = Speed()
    speed.observe(0.0, 0.5)
    assert (speed.base, math.isfinite(speed.per)) == (0.5, True)


# ── what holds whatever comes ────────────────────────────────────────────────────────────────────────────────────────

STEPS = st.lists(st.tuples(st.sampled_from("rrrbbdfclo"), st.integers(0, 5), st.integers(0, 60)), max_size=120)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS, policy=st.sampled_from(sorted(POLICIES)))
def test_queues_and_counts_close_whatever_happens_in_whatever_order(
    steps: list[tuple[str, int, int]], policy: str
) -> None:
    router = routed(3, policy=policy, limits=RouteLimits(blocks=60, waiting=5, sessions=3))
    flying: list[Ticket] = []
    now = 0.0
    for what, number, more in steps:
        now += more / 20
        if what == "r":
            blocks = list(range(number * 10, number * 10 + more % 13))
            ticket = router.route(
                Need(units=more, blocks=blocks, block_units=5, session=str(number) if more % 3 == 0 else ""), now
            )
            flying += [ticket] if ticket else []
        elif what in "bdf" and flying:
            ticket = flying[number % len(flying)]
            if what == "b":
                router.began(ticket, now, cached=float(more))
            else:
                router.done(ticket, now)
        elif what in "cl":
            router.close(number % 3, lost=what == "l")
        elif what == "o":
            router.reopen(number % 3)
        assert all(router.wait_s(n, now) >= 0 for n in range(3))
        assert len(router.map) <= 60
    for ticket in flying:
        router.done(ticket, now)
        router.done(ticket, now)
    assert router.running == [0, 0, 0]
    assert [router.wait_s(n, now) for n in range(3)] == [0, 0, 0]
    assert not router._shared and not any(router._queues)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 30), max_size=12)), max_size=60))
def test_the_map_agrees_with_caches_that_are_looked_into(touches: list[tuple[int, list[int]]]) -> None:
    caches: list[dict[int, None]] = [{} for _ in range(3)]
    held = CacheMap(1_000)
    for _ in caches:
        held.add(20)
    for now, (replica, blocks) in enumerate(touches):
        held.touch(replica, blocks, float(now))
        for block in blocks:
            caches[replica].pop(block, None)
            caches[replica][block] = None
        while len(caches[replica]) > 20:
            del caches[replica][next(iter(caches[replica]))]
        for probe in ([*blocks, 1], list(range(31)), [30, 3]):
            expected = [next((d for d, b in enumerate(probe) if b not in cache), len(probe)) for cache in caches]
            found = {n: depth for depth, bits in held.match(probe) for n in range(3) if bits >> n & 1}
            assert [found[n] for n in range(3)] == expected == [held.depth(n, probe) for n in range(3)]


def test_what_is_remembered_stays_within_its_bound_and_a_cleared_replica_holds_nothing() -> None:
    held = CacheMap(300)
    for _ in range(3):
        held.add(1_000)
    for number in range(100):
        held.touch(number % 3, range(number * 50, number * 50 + 50), float(number))
    assert len(held) <= 300
    held.clear(0)
    assert held.count(0) == 0
    assert all(not bits & 1 or depth == 0 for depth, bits in held.match([4_950, 4_951]))


# ── a restart ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_router_that_comes_back_knows_caches_speeds_and_sessions(tmp_path: Path) -> None:
    router = routed(3)
    for number in range(30):
        served(router, Need(units=200, blocks=[number, number + 100], block_units=100, session=f"s{number}"), number)
    back = Router(rng=random.Random(9))
    back.add("r2", capacity=1_000)
    back.add("r0", capacity=1_000)
    back.restore(router.keep(), 100.0)
    for number in range(30):
        need = Need(units=200, blocks=[number, number + 100], block_units=100, session=f"s{number}")
        home = router.names[router._sessions[f"s{number}"]]
        if home != "r1":
            assert back.names[served(back, need, 200.0 + number).replica] == home
    assert back.speeds[0].per == pytest.approx(router.speeds[2].per)


@pytest.mark.parametrize("seed", range(12))
def test_after_a_restart_nothing_is_moved_only_to_even_out_what_little_was_done(seed: int) -> None:
    router = routed(2, seed=seed)
    needs = [
        Need(units=20_040, blocks=range(talk * 100, talk * 100 + 78), block_units=256, session="") for talk in range(8)
    ]
    homes = [served(router, need, 1.0 + n, per_unit=7.5e-6).replica for n, need in enumerate(needs)]
    back = routed(2, seed=seed + 1)
    back.restore(router.keep(), 50.0)
    assert [served(back, need, 60.0 + n, per_unit=7.5e-6).replica for n, need in enumerate(needs)] == homes


def test_where_time_does_not_seem_to_depend_on_work_what_is_cached_is_still_chosen() -> None:
    router = routed(4)
    router._base, router._per = [0.3] * 4, [0.0] * 4  # what a busy machine's noise may come to
    need = Need(units=500, blocks=[1, 2, 3], block_units=160)
    first = sent(router, need, 1_000.0)
    router.done(first, 1_001.0)
    for number in range(20):
        ticket = sent(router, need, 2_000.0 + number)
        router.done(ticket, 2_000.5 + number)
        assert ticket.replica == first.replica


@pytest.mark.parametrize("bad", [b"", b"\x00", b"\x80", b"\x81\xa8replicas\x01", b"\x81\xa8replicas\x81\xa2r0\x80"])
def test_a_state_that_cannot_be_read_is_no_state(bad: bytes) -> None:
    router = routed(2)
    assert router.restore(bad, 0.0) is False
    assert len(router.map) == 0

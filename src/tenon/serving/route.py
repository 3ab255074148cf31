"""The router: which replica a request should go to, by one score in seconds, the expected time to its first answer.

    router = Router()
    replica = router.add("http://10.0.0.7:8000")
    ticket = router.route(Need(units=900, blocks=keys, block_units=512), now)     # None: every replica is full
    router.began(ticket, now)          # the first answer came: queue and speed are learnt from it
    router.done(ticket, now)           # the answer is complete, or failed

The score of a replica is the wait for its queue, then its own time for the units of work it has not cached. To that the
policy `cache` adds what the choice costs those who come later, in the same seconds:

- work done again although another replica has it cached, at `thrift` seconds of waiting for a second of work. It is
  divided by the number of running requests that share it: what many want is worth having twice;
- what is late past `target_s`, at more: within the target a request waits for its cache, past it time is what counts;
- work above a fair share by more than `skew`: a prefix that all requests share must not starve a replica without it;
- cached work that is driven out, dearer where the oldest block is young: the chance that a block is asked for again
  falls with the time since it was.

Nothing of a replica is told: speed is a line fitted to (units, seconds) of its own first answers, its queue is what was
sent there and has not begun, and one that is overdue is expected to need as long again. Scores within 1 % are ties and
drawn at random, so that two routers do not march in step.

Rejected: the expected time alone (diverts a twelfth of what is cached for a gain of a few milliseconds), cache first
(queues without bound), a power of the time (seconds squared, which nobody can set), consistent hashing with a load
bound (knows neither lengths nor what is cached). Time-average balance as a virtual queue is Neely's drift plus penalty.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from tenon.errors import ConfigError, nearest, sentence
from tenon.limits import RouteLimits
from tenon.serving.cachemap import CacheMap

PRIOR_S_PER_UNIT = 1e-4  # until a first answer says better
FORGET = 0.99  # how much of what was learnt of a speed remains at the next observation
TIE = 0.01  # scores within this share of the best are equal
LATE = 5.0  # past the target a second late counts as much as so many seconds of work
TOLL_S = 1.0  # how long the price of what is driven out holds
GRACE = 3.0  # requests' worth of work that a share may exceed the fair one besides: few requests are never even
STEEPEST = 4.0  # seconds a replica is put back for a second above its share: little work is never worth moving
RESCALE = 1e100
HASHED_BLOCK = 1  # `hash` looks at the second block: the first is often the same system prompt for all


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """How to choose; `thrift` is the main dial: 0 is the shortest time for this request alone."""

    policy: str = "cache"  # `cache`, `least-loaded`, `round-robin` or `hash`
    thrift: float = 24.0  # seconds a request may wait to spare a replica a second of work done before
    target_s: float = 3.0  # the time to first answer past which waiting for a cache no longer pays
    skew: float = 0.03  # share of work above the mean from which a replica is avoided
    skew_s: float = 50.0  # seconds that a replica twice above the mean is put back
    memory_s: float = 600.0  # how long work counts for a replica's share
    regret: float = 0.2  # chance that a block driven out would have been asked for again

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ConfigError(
                sentence("a policy", f"'{self.policy}'", at="policy", hint=nearest(self.policy, POLICIES))
            )
        for name in ("thrift", "target_s", "skew", "skew_s", "regret"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(sentence("a number that is not negative", str(value), at=name))
        if not (math.isfinite(self.memory_s) and self.memory_s > 0):
            raise ConfigError(sentence("a time above 0", str(self.memory_s), at="memory_s"))


@dataclass(slots=True, kw_only=True)
class Need:
    """What a request needs: units of work (tokens, rows), and the blocks of it that a cache may already hold."""

    units: float = 1.0
    blocks: Sequence[int] = ()
    block_units: float = 1.0  # units that one cached block saves
    session: str = ""  # requests of one session stay on one replica


@dataclass(slots=True, eq=False)
class Ticket:
    """One request on its way: where it was sent, when, and what was believed of it."""

    replica: int
    need: Need
    at: float
    believed: int  # leading blocks thought to be cached there
    work_s: float
    wait_s: float
    began: bool = False
    done: bool = False

    @property
    def expected_s(self) -> float:
        """The time to the first answer that was expected when it was sent."""
        return self.wait_s + self.work_s


class Speed:
    """Seconds for units of work, as a line through what was observed, older observations counting less."""

    __slots__ = ("base", "n", "per", "s", "u", "us", "uu")

    def __init__(self, like: Sequence[Speed] = ()) -> None:
        self.base: float
        self.per: float
        self.n: float
        known = [speed for speed in like if speed.n]
        self.base = sum(speed.base for speed in known) / len(known) if known else 0.0
        self.per = sum(speed.per for speed in known) / len(known) if known else PRIOR_S_PER_UNIT
        self.n = self.u = self.s = self.uu = self.us = 0.0

    def observe(self, units: float, seconds: float) -> None:
        """Learn that so many units took so long."""
        self.n = self.n * FORGET + 1
        self.u = self.u * FORGET + units
        self.s = self.s * FORGET + seconds
        self.uu = self.uu * FORGET + units * units
        self.us = self.us * FORGET + units * seconds
        spread = self.n * self.uu - self.u * self.u
        if self.n > 3 and spread > 1e-6 * self.n * self.uu:
            self.per = max((self.n * self.us - self.u * self.s) / spread, 0.0)
            self.base = (self.s - self.per * self.u) / self.n
            if self.base < 0:
                self.base, self.per = 0.0, self.us / self.uu
        elif self.u > 0:  # all alike: what an average one took
            self.base, self.per = 0.0, self.s / self.u
        else:
            self.base = self.s / self.n


class _Kept(msgspec.Struct):
    capacity: int
    blocks: bytes
    speed: tuple[float, float, float, float, float, float, float]


class _State(msgspec.Struct):
    replicas: dict[str, _Kept]
    sessions: dict[str, str]


def members(bits: int) -> list[int]:
    """Return the numbers of the bits that are set, lowest first; as text, for sums of large numbers are slower."""
    return [n for n, bit in enumerate(bin(bits)[:1:-1]) if bit == "1"]


class Router:
    """Chooses a replica for each request and learns from what comes back. Not thread-safe: one event loop owns it."""

    def __init__(
        self, routing: Routing | None = None, *, limits: RouteLimits | None = None, rng: random.Random | None = None
    ) -> None:
        self.routing = routing or Routing()
        self.limits = limits or RouteLimits()
        self.rng = rng or random.Random()
        self.map = CacheMap(self.limits.blocks)
        self.names: list[str] = []
        self.speeds: list[Speed] = []
        self.running: list[int] = []  # requests sent and not done
        self._queues: list[dict[int, Ticket]] = []  # sent and not begun, in order
        self._due: list[float] = []  # when the first of the queue should begin to answer
        self._rest: list[float] = []  # seconds of work behind the first of the queue
        self._begun: list[float] = []  # when the last first answer came
        self._work: list[float] = []  # seconds of work given, in units that grow instead of the past decaying
        self._scale, self._scaled_at = 1.0, 0.0
        self._typical = 0.0  # seconds of work of a request
        self._shared: dict[int, int] = {}  # block -> running requests that have it
        self._sessions: dict[str, int] = {}
        self._turn = 0
        self._base: list[float] = []  # what `speeds` say
        self._per: list[float] = []
        self._toll: list[float] = []  # seconds that a second of work costs by what it drives out
        self._tolled_at = -math.inf
        self._gone: list[int] = []  # numbers of replicas that were removed
        self.asked_s = 0.0  # seconds of work of all requests so far
        self._closed = 0  # as bits: gets no more requests
        self._shut = 0  # closed, or has as many waiting as it may hold
        self._unknown = 0  # has not answered yet
        self._choose: Callable[[Need, float], tuple[int, int] | None] = getattr(self, POLICIES[self.routing.policy])

    # ── replicas ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def add(self, name: str, *, capacity: int = 0) -> int:
        """Take in a replica, with the blocks its cache holds if that is known; returns its number, perhaps a used one.

        It begins with the mean share of work: nobody owes it anything, so it is not flooded, and its share of requests
        grows with its cache.
        """
        shares = [self._work[n] for n in range(len(self.names)) if self.is_open(n)]
        share = sum(shares) / len(shares) if shares else 0.0
        if self._gone:
            number = self._gone.pop()
            self.map.renew(number, capacity)
        else:
            number = self.map.add(capacity)
            self.names.append("")
            self.speeds.append(Speed())
            self.running.append(0)
            self._queues.append({})
            for values in (self._base, self._per, self._toll, self._due, self._rest, self._begun, self._work):
                values.append(0.0)
        self.names[number] = name
        like = self.speeds[number] = Speed(self.speeds)
        self._base[number], self._per[number], self._work[number] = like.base, like.per, share
        self._toll[number], self._begun[number] = 0.0, -math.inf
        self._unknown |= 1 << number
        self._closed &= ~(1 << number)
        self._full(number)
        return number

    def remove(self, replica: int) -> None:
        """Forget a replica for good: its name is free at once, its number when the last of its requests is over."""
        self.close(replica, lost=True)
        self.names[replica] = ""
        self._unknown &= ~(1 << replica)
        self._work[replica] = 0.0
        self._free_number(replica)

    def _free_number(self, replica: int) -> None:
        if not self.names[replica] and not self.running[replica] and replica not in self._gone:
            self._gone.append(replica)

    def close(self, replica: int, *, lost: bool) -> None:
        """Send it nothing more; `lost` when it died, so that its cache is gone and its sessions must move."""
        self._closed |= 1 << replica
        self._shut |= 1 << replica
        if lost:
            self.map.clear(replica)
            self._sessions = {session: home for session, home in self._sessions.items() if home != replica}

    def reopen(self, replica: int) -> None:
        """Send it requests again, with its fair share of the work from here on."""
        others = [self._work[n] for n in range(len(self.names)) if self.is_open(n)]
        self._closed &= ~(1 << replica)
        self._full(replica)
        self._work[replica] = max(self._work[replica], sum(others) / len(others) if others else 0.0)

    def is_open(self, replica: int) -> bool:
        """Say whether it may be sent requests."""
        return not self._closed >> replica & 1

    def settle(self, session: str, replica: int) -> None:
        """Say where a session lives from now on: its state was brought there."""
        self._sessions.pop(session, None)
        self._sessions[session] = replica
        if len(self._sessions) > self.limits.sessions:
            del self._sessions[next(iter(self._sessions))]

    @property
    def typical_s(self) -> float:
        """The seconds of work of a usual request."""
        return self._typical

    def wait_s(self, replica: int, now: float) -> float:
        """Return the seconds a request sent there now would wait for those before it."""
        if not self._queues[replica]:
            return 0.0
        return abs(self._due[replica] - now) + self._rest[replica]

    # ── one request ──────────────────────────────────────────────────────────────────────────────────────────────────

    def route(self, need: Need, now: float, *, avoid: int = 0) -> Ticket | None:
        """Choose a replica and count the request there; None when every open replica has as many as it may hold.

        `avoid` are replicas, as bits, that have failed this request already.
        """
        shut, self._shut = self._shut, self._shut | avoid
        found = self._home(need, now) or self._choose(need, now)
        self._shut = shut
        if found is None:
            return None
        replica, depth = found
        speed, missing = self.speeds[replica], max(need.units - depth * need.block_units, 0.0)
        wait_s = self.wait_s(replica, now)
        ticket = Ticket(replica, need, now, depth, speed.base + speed.per * missing, wait_s)
        queue = self._queues[replica]
        if queue:
            self._rest[replica] += ticket.work_s
        else:
            self._due[replica] = now + ticket.work_s
        queue[id(ticket)] = ticket
        if len(queue) >= self.limits.waiting:
            self._full(replica)
        self.running[replica] += 1
        self.asked_s += ticket.work_s
        self._count(replica, ticket.work_s, now)
        blocks = need.blocks
        self.map.touch(replica, blocks, now)
        shared = self._shared
        for block in blocks:
            shared[block] = shared.get(block, 0) + 1
        if need.session:
            self.settle(need.session, replica)
        return ticket

    def began(self, ticket: Ticket, now: float, cached: float | None = None) -> None:
        """Learn from the first answer; `cached` is how many units the replica says it had, if it says so."""
        if not self._leave(ticket, now):
            return
        replica, need = ticket.replica, ticket.need
        took_s = now - max(ticket.at, self._begun[replica])
        self._begun[replica] = now
        saved = ticket.believed * need.block_units
        if cached is not None:
            self.heard(ticket, cached)
            saved = cached
        speed = self.speeds[replica]
        speed.observe(max(need.units - saved, 0.0), max(took_s, 0.0))
        self._base[replica], self._per[replica] = speed.base, speed.per
        if self._unknown:
            self._unknown &= ~(1 << replica)
            for other in range(len(self.names)):
                if self._unknown >> other & 1:  # taken to be like those that have answered
                    self.speeds[other] = like = Speed(self.speeds)
                    self._base[other], self._per[other] = like.base, like.per

    def heard(self, ticket: Ticket, cached: float) -> None:
        """Learn what was cached, where that is said only at the end of an answer."""
        need = ticket.need
        found = int(min(cached, need.units) // need.block_units)
        self.map.correct(ticket.replica, need.blocks, ticket.believed, found)

    def done(self, ticket: Ticket, now: float) -> None:
        """The request is over, answered or not; safe to call twice."""
        if ticket.done:
            return
        self._leave(ticket, now)
        ticket.done = True
        self.running[ticket.replica] -= 1
        self._free_number(ticket.replica)
        shared = self._shared
        for block in ticket.need.blocks:
            left = shared[block] - 1
            if left:
                shared[block] = left
            else:
                del shared[block]

    def _leave(self, ticket: Ticket, now: float) -> bool:
        """Take a request out of its replica's queue; False when it had left."""
        if ticket.began or ticket.done:
            return False
        ticket.began = True
        replica = ticket.replica
        queue = self._queues[replica]
        first = next(iter(queue)) == id(ticket)
        del queue[id(ticket)]
        if not first:
            self._rest[replica] -= ticket.work_s
        elif queue:
            head = next(iter(queue.values()))
            self._due[replica] = now + head.work_s
            self._rest[replica] -= head.work_s
        if len(queue) < 2:
            self._rest[replica] = 0.0  # no dust of additions and subtractions
        if self._shut >> replica & 1:
            self._full(replica)
        return True

    def _full(self, replica: int) -> None:
        """Note whether the replica may be sent more."""
        bit = 1 << replica
        full = self._closed & bit or len(self._queues[replica]) >= self.limits.waiting
        self._shut = self._shut | bit if full else self._shut & ~bit

    def _count(self, replica: int, work_s: float, now: float) -> None:
        """Add to a replica's share of work; the past fades because the present grows."""
        self._scale = math.exp(min((now - self._scaled_at) / self.routing.memory_s, 300.0))
        if self._scale > RESCALE:
            self._work = [work / self._scale for work in self._work]
            self._scale, self._scaled_at = 1.0, now
        self._work[replica] += work_s * self._scale
        self._typical += (work_s - self._typical) * (1 - FORGET if self._typical else 1.0)

    def waiting(self, replica: int) -> list[Ticket]:
        """Return the requests sent there that have not begun to be answered, first come first."""
        return list(self._queues[replica].values())

    # ── what survives a restart ──────────────────────────────────────────────────────────────────────────────────────

    def keep(self) -> bytes:
        """Return what was learnt of each replica and where sessions live; a few bytes for each cached block."""
        return self.packed({name: self.kept(number) for number, name in enumerate(self.names) if name})

    def kept(self, number: int) -> _Kept:
        """Return what was learnt of one replica; a part of `keep`, for those who must not stop for the whole."""
        capacity, blocks = self.map.keep(number)
        speed = self.speeds[number]
        line = (speed.n, speed.u, speed.s, speed.uu, speed.us, speed.base, speed.per)
        return _Kept(capacity, blocks, line)

    def packed(self, replicas: dict[str, _Kept]) -> bytes:
        """Return what `keep` does, of parts that were taken one by one."""
        sessions = {session: self.names[home] for session, home in self._sessions.items() if self.names[home]}
        return msgspec.msgpack.encode(_State(replicas, sessions))

    def restore(self, state: bytes, now: float) -> bool:
        """Take back what `keep` returned, for replicas that are here by the same name; False when it is unreadable."""
        try:
            kept = msgspec.msgpack.decode(state, type=_State)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return False
        numbers = {name: number for number, name in enumerate(self.names) if name}
        for name, replica in kept.replicas.items():
            number = numbers.get(name)
            if number is None or not all(math.isfinite(value) and value >= 0 for value in replica.speed):
                continue
            self.map.restore(number, replica.capacity, replica.blocks, now)
            speed = self.speeds[number]
            speed.n, speed.u, speed.s, speed.uu, speed.us, speed.base, speed.per = replica.speed
            self._base[number], self._per[number] = speed.base, speed.per
        homes = {session: numbers[name] for session, name in kept.sessions.items() if name in numbers}
        self._sessions = dict(list(homes.items())[-self.limits.sessions :])
        return True

    # ── policies ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _free(self) -> list[int]:
        return [n for n in range(len(self.names)) if not self._shut >> n & 1]

    def _home(self, need: Need, now: float) -> tuple[int, int] | None:
        """Return where the request's session lives, unless that is closed, late while another is not, or forgot it."""
        home = self._sessions.get(need.session) if need.session else None
        if home is None or self._shut >> home & 1:
            return None
        if self.wait_s(home, now) > self.routing.target_s:
            waits = [self.wait_s(n, now) for n in self._free()]
            if min(waits) < self.routing.target_s:
                return None
        depth = self.map.depth(home, need.blocks)
        if need.blocks and not depth and self.map.full(home):
            return None  # what it had cached has been driven out: it may as well begin anew where there is room
        return home, depth

    def _cache(self, need: Need, now: float) -> tuple[int, int] | None:
        """The score of the module's docstring, for every replica; the best, or one of the best at random."""
        routing, bases, pers, work = self.routing, self._base, self._per, self._work
        thrift, target_s, skew_s, due, rest = routing.thrift, routing.target_s, routing.skew_s, self._due, self._rest
        if abs(now - self._tolled_at) > TOLL_S:
            self._price(now)
        tolls, shut, queues = self._toll, self._shut, self._queues
        groups = self.map.match(need.blocks)
        units, block_units = need.units, need.block_units
        total, sharing = sum(work), len(work)
        if self._closed:  # shares are among those that take part
            sharing -= self._closed.bit_count()
            total -= sum(work[n] for n in range(len(work)) if self._closed >> n & 1)
        fair = total * (1.0 + routing.skew) / sharing + GRACE * self._typical * self._scale if sharing else 0.0
        steep = min(skew_s * sharing / total, STEEPEST / self._scale) if total else 0.0
        near: list[tuple[float, int, int]] = []  # those that may be the best or alike, as far as has been looked
        best = bound = math.inf
        for (depth, replicas), repeated in zip(groups, self._again(need, groups), strict=True):
            missing = max(units - depth * block_units, 0.0)
            for n in members(replicas & ~shut):
                cost = work_s = bases[n] + pers[n] * missing
                if queues[n]:
                    cost += abs(due[n] - now) + rest[n]
                if cost > target_s:
                    cost += LATE * thrift * (cost - target_s)
                cost += tolls[n] * work_s
                if repeated:
                    cost += thrift * pers[n] * repeated
                if work[n] > fair:
                    cost += steep * (work[n] - fair)
                if cost <= bound:
                    near.append((cost, n, depth))
                    if cost < best:
                        best, bound = cost, cost * (1 + TIE)
        if not near:
            return None
        ties = [(n, depth) for cost, n, depth in near if cost <= bound]
        if len(ties) > 1 and not pers[ties[0][0]]:  # nothing seems to depend on work: what is cached may yet count
            deepest = max(depth for _, depth in ties)
            ties = [tie for tie in ties if tie[1] == deepest]
        return ties[0] if len(ties) == 1 else ties[int(self.rng.random() * len(ties))]

    def _again(self, need: Need, groups: Sequence[tuple[int, int]]) -> list[float]:
        """Return for each group the units it would do again though a replica has them, divided among those who run."""
        deepest = groups[-1][0]
        if len(groups) == 1:
            return [0.0]
        again, repeated, at = [0.0] * len(groups), 0.0, deepest
        for place in range(len(groups) - 2, -1, -1):
            depth = groups[place][0]
            while at > depth:
                at -= 1
                repeated += need.block_units / max(1, self._shared.get(need.blocks[at], 0))
            again[place] = repeated
        return again

    def _price(self, now: float) -> None:
        """Say what a second of work costs each replica in cached work driven out; ages change slowly."""
        oldest = self.map.oldest
        ages = [now - at for at in oldest if at < now]
        regret = self.routing.thrift * self.routing.regret * sum(ages) / len(ages) if ages else 0.0
        self._toll = [min(regret / (now - at), self.routing.thrift) if at < now else 0.0 for at in oldest]
        self._tolled_at = now

    def _least_loaded(self, need: Need, now: float) -> tuple[int, int] | None:
        free = self._free()
        if not free:
            return None
        least = min(self.running[n] for n in free)
        chosen = self.rng.choice([n for n in free if self.running[n] == least])
        return chosen, self.map.depth(chosen, need.blocks)

    def _round_robin(self, need: Need, now: float) -> tuple[int, int] | None:
        free = self._free()
        if not free:
            return None
        chosen = free[self._turn % len(free)]
        self._turn += 1
        return chosen, self.map.depth(chosen, need.blocks)

    def _hash(self, need: Need, now: float) -> tuple[int, int] | None:
        """Rendezvous hashing of the second block (or the first, or the session): a lost replica moves only its own."""
        free = self._free()
        if not free:
            return None
        blocks = need.blocks
        key = blocks[min(HASHED_BLOCK, len(blocks) - 1)] if blocks else hash(need.session)
        chosen = max(free, key=lambda n: _mixed(key ^ _mixed(n + 1)))
        return chosen, self.map.depth(chosen, need.blocks)


POLICIES = {"cache": "_cache", "least-loaded": "_least_loaded", "round-robin": "_round_robin", "hash": "_hash"}
MASK = (1 << 64) - 1


def _mixed(number: int) -> int:
    """Mix the bits of a 64-bit number (the finaliser of splitmix64)."""
    number &= MASK
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & MASK
    return number ^ (number >> 31)

"""A fleet under a gateway: real processes started, replaced, taken over and ended; decisions in simulated time."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pytest

from tenon.errors import UsageError
from tenon.limits import Limits, RouteLimits
from tenon.serving import running, virtual
from tenon.serving.autoscale import LOOP, Autoscaler
from tenon.serving.engines import cache_tokens, share_in_use
from tenon.serving.fleet import LocalFleet, Machine
from tenon.serving.gateway import Gateway
from tenon.serving.scale import Scaling, Starts

from ..script import loaded
from ..waiting import eventually

REPLICA = """
import asyncio, os, sys
async def serve(reader, writer):
    while line := await reader.readline():
        length = 0
        while (head := await reader.readline()).strip():
            if head.lower().startswith(b"content-length:"):
                length = int(head.split(b":")[1])
        await reader.readexactly(length)
        if line.startswith(b"POST"):
            await asyncio.sleep(0.02)
        body = b"%d" % os.getpid()
        writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: %d\\r\\n\\r\\n%s" % (len(body), body))
async def main():
    await (await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]))).serve_forever()
asyncio.run(main())
"""


@pytest.fixture
def replica(tmp_path: Path) -> str:
    """Return the command of a small replica that answers with its process id."""
    path = tmp_path / "replica.py"
    path.write_text(REPLICA)
    return f"{sys.executable} -S {path} {{port}}"


def ask(url: str, method: str = "POST", path: str = "/predict/m") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    try:
        connection.request(method, path, b"{}" if method == "POST" else None)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def fleet_of(url: str) -> Any:
    return json.loads(ask(url, "GET", "/replicas")[1])["fleet"]


# ── real processes ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_grows_from_nothing_under_load_replaces_the_killed_and_goes_back_to_nothing(replica: str) -> None:
    fleet = LocalFleet(replica, drain_s=2.0)
    told = list[str]()

    def record(kind: str, subject: str, body: Any) -> None:
        told.append(f"{kind} {body['what']}: {body['why']}")

    scaling = Scaling(least=0, most=2, busy=0.02, cool_s=0.4, idle_s=0.8)
    scaler = Autoscaler(fleet=fleet, scaling=scaling, sample_s=0.1, record=record)
    with running(Gateway({}, scaler=scaler)) as url:
        first = ask(url)
        assert first[0] == 200  # it was held while the first replica started
        statuses, pids = list[int](), set[bytes]()
        stop = threading.Event()

        def load() -> None:
            while not stop.is_set():
                status, body = ask(url)
                statuses.append(status)
                pids.add(body)

        threads = [threading.Thread(target=load) for _ in range(6)]
        for thread in threads:
            thread.start()
        assert eventually(lambda: fleet_of(url)["ready"] == 2, 20, every=0.05)
        victim = int(first[1])
        os.kill(victim, signal.SIGKILL)
        assert eventually(lambda: {"died"} <= {event["what"] for event in fleet_of(url)["events"]}, 20, every=0.05)
        assert eventually(lambda: fleet_of(url)["ready"] == 2 and len(pids) >= 3, 20, every=0.05)
        stop.set()
        for thread in threads:
            thread.join()
        assert set(statuses) == {200}
        metrics = ask(url, "GET", "/metrics")[1].decode()
        assert 'tenon_fleet_replicas{state="ready"} 2.0' in metrics
        assert 'tenon_fleet_events_total{what="died"} 1.0' in metrics
        assert eventually(lambda: fleet_of(url)["ready"] == 0 and not fleet_of(url)["leaving"], 20, every=0.05)
        assert ask(url)[0] == 200  # and from nothing once more
        left = psutil.Process().children(recursive=True)
    assert not any(process.is_running() and "replica.py" in " ".join(process.cmdline()) for process in left)
    assert any("ended by itself" in line for line in told)
    assert any("no request for" in line for line in told)
    assert any("will be needed in" in line for line in told)


@contextmanager
def command(folder: Path, replica: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `tenon route serve` with a fleet of one in a process of its own; yields it and its URL."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-m", "tenon", "route", "serve", "--fleet", replica, "--least", "1", "--port", "0"]
    (folder / "tenon.toml").write_text("[serve]\nport = 0\n[scale]\nsample_s = 0.1\norphan_s = 1.5\ndrain_s = 1.0\n")
    with subprocess.Popen(words, cwd=folder, env=env, stderr=subprocess.PIPE, text=True) as gateway:
        try:
            assert gateway.stderr is not None
            line = next(line for line in gateway.stderr if "behind" in line)
            yield gateway, line.split()[-1]
        finally:
            gateway.kill()


def test_a_killed_gateway_finds_its_replicas_again_and_leaves_none_when_it_does_not_come_back(
    tmp_path: Path, replica: str
) -> None:
    with command(tmp_path, replica) as (gateway, url):
        status, pid = ask(url)
        assert status == 200
        gateway.kill()
        gateway.wait()
    with command(tmp_path, replica) as (gateway, url):
        assert ask(url) == (200, pid)  # the same process, its cache as it was
        assert json.loads((tmp_path / ".tenon" / "route.starts").read_text())
        assert (tmp_path / ".tenon" / "route.token").stat().st_mode & 0o077 == 0
        gateway.kill()
        gateway.wait()
        process = psutil.Process(int(pid))
        assert eventually(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, 15)


def test_two_gateways_do_not_share_a_fleet(tmp_path: Path, replica: str) -> None:
    async def play() -> None:
        first = LocalFleet(replica, state=tmp_path / "fleet", drain_s=1.0)
        try:
            await first.start()
            with pytest.raises(UsageError, match="held by another gateway"):
                LocalFleet(replica, state=tmp_path / "fleet").adopt()
        finally:
            await first.close()

    asyncio.run(play())


def test_the_last_words_of_a_replica_that_does_not_start_are_told(tmp_path: Path) -> None:
    broken = f'{sys.executable} -c "import no_such_module" {{port}}'

    async def play() -> None:
        fleet = LocalFleet(broken, state=tmp_path / "fleet")
        try:
            with pytest.raises(UsageError, match="No module named 'no_such_module'"):
                await fleet.start()
        finally:
            await fleet.close()

    asyncio.run(play())


# ── decisions, in simulated time ─────────────────────────────────────────────────────────────────────────────────────


class Broken:
    """Machines of which none ever starts."""

    def __init__(self) -> None:
        self.tried = list[float]()

    async def start(self) -> Machine:
        self.tried.append(asyncio.get_running_loop().time())
        await asyncio.sleep(1.0)
        raise UsageError("it does not start")

    async def stop(self, name: str) -> None:
        raise AssertionError(name)

    def list(self) -> list[Machine]:
        return []


async def asked(gateway: Gateway, body: bytes = b"{}") -> SimpleNamespace:
    """Ask a gateway as a server would; returns status, headers and body."""
    told = SimpleNamespace(status=0, headers={}, body=b"")

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            told.status, told.headers = message["status"], dict(message["headers"])
        else:
            told.body += message["body"]

    scope = {"type": "http", "method": "POST", "path": "/predict/m", "headers": [], "query_string": b""}
    await gateway(scope, receive, send)
    return told


def test_a_crash_loop_is_tried_more_and_more_seldom_and_told_and_who_waits_learns_when_to_come_back() -> None:
    machines = Broken()

    async def play() -> tuple[Any, list[str]]:
        clock = asyncio.get_running_loop().time
        scaler = Autoscaler(fleet=machines, scaling=Scaling(least=1), starts=Starts(default_s=20.0))
        gateway = Gateway({}, scaler=scaler, clock=clock)
        looking = asyncio.create_task(scaler.run())
        answer = await asked(gateway)
        await asyncio.sleep(3_600)
        looking.cancel()
        return answer, [event.what for event in scaler.events]

    answer, events = virtual.run(play())
    assert answer.status == 503
    assert int(answer.headers[b"retry-after"]) >= 1
    gaps = [later - earlier for earlier, later in zip(machines.tried, machines.tried[1:], strict=False)]
    assert gaps == sorted(gaps)
    assert len(machines.tried) < 25  # of an hour
    assert events.count("crash loop") == 1
    assert events.index("crash loop") == 2 * LOOP


def test_those_who_wait_for_a_first_replica_are_bounded_in_number_bytes_and_time() -> None:
    machines = Broken()

    async def play(**limits: Any) -> tuple[list[int], float, int]:
        clock = asyncio.get_running_loop().time
        scaler = Autoscaler(fleet=machines, scaling=Scaling(least=0), starts=Starts(default_s=20.0))
        gateway = Gateway({}, scaler=scaler, limits=Limits(route=RouteLimits(**limits)), clock=clock)
        looking = asyncio.create_task(scaler.run())
        tasks = [asyncio.create_task(asked(gateway, b"x" * 100)) for _ in range(5)]
        await asyncio.sleep(0.5)
        turned_away = [task.result().status for task in tasks if task.done()]
        await asyncio.gather(*tasks)
        ended, held = clock(), gateway.held
        looking.cancel()
        return turned_away, ended, held

    turned_away, ended, held = virtual.run(play(held=2))
    assert turned_away == [503, 503, 503]
    assert ended == pytest.approx(40.0, abs=1.0)  # two starts
    assert held == 0
    assert virtual.run(play(held_bytes=350))[0] == [503, 503]
    assert virtual.run(play(cold_s=7.0))[1] == pytest.approx(7.0, abs=0.5)


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return loaded("bench/day.py")


def test_a_day_of_traffic_loses_nothing_leaves_nothing_hanging_and_costs_less_than_a_fixed_fleet(
    bench: ModuleType,
) -> None:
    day = bench.Day(hours=2.0, peak_per_s=1.5, deaths=3, sessions=100)
    played = bench.play(day)
    assert set(played.statuses) <= {200, 503}
    assert played.statuses[200] > 20 * played.statuses[503]
    assert played.wrong == 0
    assert played.moved["lost"] == 0 and played.moved["rebuilt"] > 0
    assert played.stuck == 0
    assert played.events["died"] > 0
    assert played.waiting < 30
    counts = {ready for _, _, ready in played.replicas}
    assert 0 in counts and max(counts) > 1
    assert played.replica_s < 0.7 * played.peak * day.hours * 3_600
    last = played.objects[-1]
    assert last["Talk"] <= 100 and last["Ticket"] < 10 and last["Task"] < 40


def test_memory_in_use_is_read_as_engines_write_it() -> None:
    assert share_in_use(b'vllm:kv_cache_usage_perc{model_name="m"} 0.25\n# HELP x y\n') == 0.25
    assert share_in_use(b'tenon_lm_pages{model="a"} 100.0\ntenon_lm_pages_available{model="a"} 40.0\n') == 0.6
    assert share_in_use(b"tenon_session_memory_ratio 0.5\nnonsense\n\xff\xff 3\nsglang:token_usage x\n") == 0.5
    assert cache_tokens(b'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="2048"} 1.0\n') == 32_768
    assert cache_tokens(b'tenon_lm_pages{model="a"} 10.0\ntenon_lm_pages{model="b"} 5.0\n') == 480
    assert cache_tokens(b"sglang:max_total_num_tokens 9000\n") == 9_000
    assert cache_tokens(b"nothing of it\n") == 0

"""What the gateway adds: the same request to a replica directly and through `tenon route serve`, in turns.

    python bench/gateway.py [--record] [--quick]

Real processes on one machine: a replica that answers a small body at once (uvicorn, 200 bytes), the gateway before
it, and this caller with connections that stay open. Direct and through take turns in short rounds, so that whatever
else the machine does hits both alike; what is added is the difference of the medians of all requests. With several
connections the caller, the gateway and the replica share the cores, and the difference is also what they take from
each other.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import measure
from measure import free_port

REPLICA = """
import sys, uvicorn
BODY = b'{"model": "m", "version": "v1", "predictions": [{"id": "1", "score": 0.25}]}'.ljust(200)
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]
async def app(scope, receive, send):
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": BODY})
uvicorn.Server(uvicorn.Config(app, port=int(sys.argv[1]), log_level="critical", lifespan="off", access_log=False)).run()
"""
ROW = b'{"rows": [{"carrier": "UA", "flight": 1545, "sched_dep": "2013-11-01T05:15:00", "distance": 1400.0}]}'
ASK = b"POST /predict/m HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
    len(ROW),
    ROW,
)


@contextmanager
def running(words: Sequence[str], port: int, cwd: Path) -> Iterator[None]:
    """Run a program until the block ends; begins when it listens."""
    process = subprocess.Popen(words, cwd=cwd, env=dict(os.environ), stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert time.monotonic() < until and process.poll() is None, words
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


class Caller:
    """One connection that stays open."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self) -> float:
        """Ask once; returns the seconds it took."""
        began = time.perf_counter()
        self.sock.sendall(ASK)
        got = b""
        while b"\r\n\r\n" not in got or len(got.partition(b"\r\n\r\n")[2]) < 200:
            part = self.sock.recv(65_536)
            assert part, "the connection was closed"
            got += part
        took_s = time.perf_counter() - began
        assert got.startswith(b"HTTP/1.1 200"), got
        return took_s


def turns(ports: dict[str, int], connections: int, rounds: int, each: int) -> dict[str, list[float]]:
    """Let every target have its round, again and again; returns the seconds of each request."""
    callers = {name: [Caller(port) for _ in range(connections)] for name, port in ports.items()}
    found: dict[str, list[float]] = {name: [] for name in ports}
    for number in range(rounds + 1):
        for name, own in callers.items():
            times: list[float] = []

            def work(caller: Caller, times: list[float] = times) -> None:
                times.extend(caller.ask() for _ in range(each))

            threads = [threading.Thread(target=work, args=(caller,)) for caller in own[1:]]
            for thread in threads:
                thread.start()
            work(own[0])
            for thread in threads:
                thread.join()
            if number:  # the first round warms up
                found[name] += times
    return found


def main() -> None:
    """Print the table."""
    parser = measure.options(__doc__)
    parser.add_argument("--quick", action="store_true", help="a third of the rounds")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        replica, gateway = free_port(), free_port()
        stack.enter_context(running([sys.executable, "-c", REPLICA, str(replica)], replica, Path(scratch)))
        words = ["route", "serve", "--replica", f"http://127.0.0.1:{replica}", "--port", str(gateway)]
        stack.enter_context(running([sys.executable, "-m", "tenon", *words], gateway, Path(scratch)))
        values = []
        for connections in (1, 8):
            times = turns({"direct": replica, "through": gateway}, connections, 20 if quick else 60, 50)
            direct, through = (statistics.median(each) * 1e3 for each in times.values())
            size = 50 * connections
            best = {
                name: min(statistics.median(own[n : n + size]) for n in range(0, len(own), size))
                for name, own in times.items()
            }
            values.append((connections, f"{direct:.3f}", f"{through:.3f}", f"{through - direct:.3f}",
                           f"{(best['through'] - best['direct']) * 1e3:.3f}"))  # fmt: skip
    header = ("connections", "direct, median ms", "through, median ms", "added ms", "added in the quietest rounds, ms")
    measure.show(measure.rows("What the gateway adds to a request", header, values), measure.machine("uvicorn"))


if __name__ == "__main__":
    main()

"""Kill a process at its write 1, 2, 3 ... and look at the store after each: it is before or after, never between.

Run by test_store_survives.py with `kill_at.so` preloaded; arguments: a folder, a catalog URL or "", and `first` (each
time a new store, so that creation and migration are cut as well) or `next` (one store that goes on after every kill).
Each unit of work keeps a blob and then, in one step, a record that names it, an event, a batch and a charge.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import signal
import sys
from pathlib import Path

from tenon.config import StoreConfig
from tenon.ledger import Entry
from tenon.limits import StoreLimits
from tenon.store import Store

UNITS = 2


def work(root: Path, config: StoreConfig, name: str) -> None:
    with Store.open(root, config, StoreLimits(busy_s=5)) as store:
        for unit in range(UNITS):
            id = f"{name}-{unit}"
            with store.atomic():
                digest = store.blobs.put(f"the bytes of {id}".encode())
                store.put("thing", id, {"id": id, "file": digest})
                store.event("made", id, {"file": digest})
                store.append("rows", "all", id.encode(), rows=1, first=0.0, last=0.0)
                store.charge(Entry(kind="compute", subject=id, quantity=1.0, unit="core s", usd=0.1, at=0.0))
        store.gc(grace_s=-1.0)
        batches = list(store.read("rows", "all"))
        if len(batches) > 3:
            store.fold("rows", "all", b" ".join(batch.body for batch in batches), over=batches)


def look(root: Path, config: StoreConfig) -> set[str]:
    """Return the things that are there, having asserted that every part of each is."""
    with Store.open(root, config, StoreLimits(busy_s=5)) as store:
        things = {record["id"] for record in store.find("thing")}
        assert {event["subject"] for event in store.events("made")} == things
        rows = [name for batch in store.read("rows", "all") for name in batch.body.decode().split()]
        assert sorted(rows) == sorted(things), (rows, things)
        assert sum(batch.rows for batch in store.read("rows", "all")) == len(things)
        assert {entry.subject for entry in store.entries()} == things
        for record in store.find("thing"):
            assert store.blobs.read(record["file"]) == f"the bytes of {record['id']}".encode()
        assert not [finding for finding in store.check() if finding.severity == "error"]
        return things


def main(folder: Path, url: str, mode: str) -> None:
    fault = ctypes.CDLL(None)
    config = StoreConfig(catalog=url)
    before = set[str]()
    for n in itertools.count(1):
        root = folder / (str(n) if mode == "first" else "store")
        root.mkdir(exist_ok=True)
        if mode == "first":
            before = set()
        child = os.fork()
        if child == 0:
            fault.arm(n)
            work(root, config, str(n))
            fault.arm(0)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        after = look(root, config)
        new = sorted(after - before)
        assert before <= after, "what was there is still there"
        assert new == [f"{n}-{unit}" for unit in range(len(new))], new
        before = after
        if not os.WIFSIGNALED(status):
            assert os.WEXITSTATUS(status) == 0 and len(new) == UNITS
            sys.stdout.write(json.dumps({"kills": n - 1, "things": len(after)}))
            return
        assert os.WTERMSIG(status) == signal.SIGKILL


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])

"""The doctor: real probes of this machine, each fault made for real, nothing left behind, nothing that ends it."""

from __future__ import annotations

import http.server
import json
import os
import re
import socket
import subprocess
import sys
import textwrap
import threading
import time
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tenon.cli import doctor
from tenon.cli.doctor import Probe, bounded, probes
from tenon.config import Config, EngineConfig, ServeConfig
from tenon.limits import IngestLimits, Limits
from tenon.store import Store


def elsewhere(code: str, **environ: str) -> Probe:
    """Run a probe in a process of its own, with its own limits, and read back what it said."""
    script = "import json\nfrom pathlib import Path\nfrom tenon.cli import doctor\nfrom tenon.config import Config\n"
    script += textwrap.dedent(code) + "\nprint(json.dumps(found.to_dict()))"
    source = str(Path(doctor.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": source, **environ},
        capture_output=True,
        text=True,
        check=True,
    )
    return Probe(**json.loads(done.stdout))


# ── the whole round ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_probe_answers_and_nothing_is_left_behind(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        free = listener.getsockname()[1]
    found = probes(tmp_path, Config(serve=ServeConfig(port=free)))
    assert [probe.name for probe in found] == list(doctor.LOOKS)
    assert all(probe.said for probe in found)
    assert all(probe.fix for probe in found if probe.ok is False)
    assert not any(probe.fix for probe in found if probe.ok is not False)
    assert json.loads(json.dumps([probe.to_dict() for probe in found]))[0]["name"] == "Python"
    assert list(tmp_path.iterdir()) == []
    well = {probe.name for probe in found if probe.ok}
    assert {"Python", "packages", "clock", "temporary files", "locking", "port", "Polars", "ONNX"} <= well
    assert next(probe for probe in found if probe.name == "store").ok is None


# ── no probe can end the doctor ──────────────────────────────────────────────────────────────────────────────────────


def test_a_probe_that_hangs_is_given_up(tmp_path: Path) -> None:
    def hangs(_root: Path, _config: Config) -> Probe:
        time.sleep(5)
        return doctor.well("too late")

    start = time.monotonic()
    found = bounded("slow", hangs, tmp_path, Config(), 0.1)
    assert time.monotonic() - start < 2
    assert (found.ok, found.said) == (False, "no answer within 0 s")
    assert found.seconds >= 0.1


def test_a_probe_that_breaks_is_told(tmp_path: Path) -> None:
    def breaks(_root: Path, _config: Config) -> Probe:
        raise RuntimeError("odd")

    found = bounded("odd", breaks, tmp_path, Config(), 5.0)
    assert (found.ok, found.said) == (False, "the probe itself failed: RuntimeError: odd")


def test_a_library_that_kills_its_process_is_told_with_the_signal() -> None:
    found = doctor.in_process("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "install another build")
    assert (found.ok, found.fix) == (False, "install another build")
    assert found.said == "the process died of SIGILL (this processor lacks an instruction)"


def test_a_library_that_fails_is_told_with_its_last_words() -> None:
    found = doctor.in_process("raise ValueError('wrong build')", "fix")
    assert found.said == "ValueError: wrong build"


def test_a_library_that_hangs_is_killed() -> None:
    found = doctor.in_process("import time; time.sleep(30)", "fix", limit_s=0.3)
    assert (found.ok, found.said) == (False, "no answer within 0 s")


# ── machine ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_more_workers_than_cores_is_a_fault(tmp_path: Path) -> None:
    found = doctor.processor(tmp_path, Config(engine=EngineConfig(workers=4096)))
    assert found.ok is False
    assert "engine.workers asks for 4096" in found.said
    assert "set engine.workers = " in found.fix


def test_less_memory_than_ingest_may_take_is_a_fault(tmp_path: Path) -> None:
    found = doctor.memory(tmp_path, Config(limits=Limits(ingest=IngestLimits(memory_bytes=10**18))))
    assert found.ok is False
    assert "at least 1,000,000,000.0 GB" in found.fix


def test_too_few_open_files_are_a_fault_with_the_command_that_mends_it() -> None:
    found = elsewhere(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        found = doctor.open_files(Path("."), Config())
        """
    )
    assert found.ok is False
    assert found.said.startswith("300 may be open")
    assert found.fix.startswith("run `ulimit -n ")


def test_a_temporary_folder_that_is_not_there_is_a_fault() -> None:
    code = "import tempfile\ntempfile.tempdir = '/nowhere/at/all'\nfound = doctor.temporary(Path('.'), Config())"
    found = elsewhere(code)
    assert found.ok is False
    assert "set TMPDIR" in found.fix


def test_file_names_that_are_not_utf_8_are_a_fault() -> None:
    found = elsewhere("found = doctor.python(Path('.'), Config())", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", LC_ALL="C")
    assert found.ok is False
    assert "file names in ascii" in found.said
    assert "PYTHONUTF8=1" in found.fix


# ── packages ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_extra_that_is_not_installed_is_no_fault_and_says_how_to_have_it(tmp_path: Path) -> None:
    for name, (packages, _) in doctor.EXTRAS.items():
        found = doctor.extra(name)(tmp_path, Config())
        there = [package for package in packages if doctor.installed(package)]
        assert found.ok is (True if len(there) == len(packages) else False if there else None)
        assert f"tenon[{name}]" in found.said + found.fix or found.ok


def test_the_packages_looked_for_are_those_that_installing_brings() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]

    def names(wanted: list[str]) -> set[str]:
        return {re.split(r"[<>=\[]", one)[0].lower() for one in wanted}

    assert set(doctor.CORE) == names(project["dependencies"])
    extras = {name: names(wanted) for name, wanted in project["optional-dependencies"].items()}
    assert {name: set(packages) for name, (packages, _) in doctor.EXTRAS.items()} == {
        name: wanted for name, wanted in extras.items() if name not in ("dev", "examples")
    }


def test_a_package_that_is_not_there_has_no_version() -> None:
    assert doctor.installed("surely-no-such-distribution") == ""


# ── disk and locks ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_folder_that_is_not_there_is_a_fault_for_disk_and_locks(tmp_path: Path) -> None:
    for look in (doctor.disk, doctor.locking):
        found = look(tmp_path / "absent", Config())
        assert found.ok is False
        assert "there is no folder" in found.said


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write to")
def test_a_folder_nobody_can_write_to_is_a_fault() -> None:
    for look in (doctor.disk, doctor.locking):
        found = look(Path("/proc"), Config())
        assert found.ok is False
        assert found.said.startswith("nothing can be written: ")


def test_a_write_that_fails_is_a_fault_and_leaves_nothing(tmp_path: Path) -> None:
    found = elsewhere(
        f"""
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        found = doctor.disk(Path({str(tmp_path)!r}), Config())
        """
    )
    assert (found.ok, found.said) == (False, f"File too large while writing - at {tmp_path}")
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_does_not_hold_is_found(tmp_path: Path) -> None:
    careless = (
        "import sqlite3, sys; held = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "held.execute('PRAGMA journal_mode=WAL'); held.execute('CREATE TABLE t (x)'); print('held', flush=True);"
        "sys.stdin.readline()"
    )
    path = tmp_path / "lock.db"
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", careless, str(path)], stdin=pipe, stdout=pipe, stderr=pipe, text=True
    ) as child:
        found = doctor.two_writers(child, path, "move it")
        child.communicate("\n")
    assert (found.ok, found.fix) == (False, "move it")
    assert "two processes held the same write lock at once" in found.said


def test_a_file_that_cannot_be_made_is_told_with_the_reason(tmp_path: Path) -> None:
    pipe = subprocess.PIPE
    path = tmp_path / "absent" / "lock.db"
    command = [sys.executable, "-c", doctor.HOLDER, str(path)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as child:
        found = doctor.two_writers(child, path, "move it")
    assert found.ok is False
    assert "unable to open database file" in found.said


# ── store ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_whole_store_is_well_and_a_changed_blob_is_found(tmp_path: Path) -> None:
    with Store.open(tmp_path) as opened:
        digest = opened.blobs.put(b"some bytes" * 100)
        opened.put("dataset", "flights", {"file": digest})
        path = opened.blobs.path(digest)
    found = doctor.store(tmp_path, Config())
    assert (found.ok, found.fix) == (True, "")
    path.chmod(0o600)
    path.write_bytes(b"other bytes")
    found = doctor.store(tmp_path, Config())
    assert found.ok is False
    assert "dataset" in found.said
    assert found.fix


def test_a_catalog_that_is_no_database_is_a_fault(tmp_path: Path) -> None:
    with Store.open(tmp_path):
        pass
    (tmp_path / ".tenon" / "tenon.db").write_bytes(b"this is no database" * 500)
    found = bounded("store", doctor.store, tmp_path, Config(), 20.0)
    assert found.ok is False
    assert "probe itself" not in found.said


# ── port ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Quiet(http.server.BaseHTTPRequestHandler):
    """Answers /healthz the way a service of tenon does."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"status": "ok"}')

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def service() -> Iterator[int]:
    server = http.server.HTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_port_in_use_is_a_fault_that_names_one_that_is_free(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen(1)
        taken = holder.getsockname()[1]
        found = doctor.port(tmp_path, Config(serve=ServeConfig(port=taken)))
    assert found.ok is False
    assert f"127.0.0.1:{taken} cannot be listened on" in found.said
    other = int(found.fix.rpartition("=")[2])
    assert doctor.port(tmp_path, Config(serve=ServeConfig(port=other))).ok


def test_a_port_held_by_a_running_service_is_well(tmp_path: Path, service: int) -> None:
    found = doctor.port(tmp_path, Config(serve=ServeConfig(port=service)))
    assert (found.ok, found.said) == (True, f"127.0.0.1:{service} is held by a running tenon service")


@pytest.mark.parametrize(("host", "number"), [("127.0.0.1", 99_999), ("no.such.host.invalid", 8321)])
def test_an_address_that_cannot_be_is_a_fault(tmp_path: Path, host: str, number: int) -> None:
    found = doctor.port(tmp_path, Config(serve=ServeConfig(host=host, port=number)))
    assert found.ok is False
    assert found.fix


# ── GPU ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def driver(folder: Path, script: str) -> str:
    """Put a program called nvidia-smi into a folder and return the PATH that finds it first."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    program.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def test_what_the_driver_says_of_a_card_is_worded() -> None:
    assert doctor.card("NVIDIA H200, 570.86.15, 143771, 35") == "NVIDIA H200, 150.8 GB, 35 °C, driver 570.86.15"
    assert doctor.card("something else") == "something else"


def test_a_driver_that_fails_is_a_fault_with_its_words(tmp_path: Path) -> None:
    path = driver(tmp_path, "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    found = elsewhere("found = doctor.gpu(Path('.'), Config())", PATH=path)
    assert (found.ok, found.said) == (False, "Failed to initialize NVML: Driver/library version mismatch")


def test_without_a_driver_there_is_nothing_to_judge(tmp_path: Path) -> None:
    found = elsewhere("found = doctor.gpu(Path('.'), Config())", PATH=str(tmp_path))
    assert found.ok is (False if list(Path("/dev").glob("nvidia[0-9]*")) else None)


def test_the_probes_of_a_configuration_are_of_that_configuration(tmp_path: Path) -> None:
    config = replace(Config(), store=replace(Config().store, catalog="postgresql://nobody@127.0.0.1:1/none"))
    assert doctor.locking(tmp_path, config).ok is None
    found = bounded("store", doctor.store, tmp_path, config, 20.0)
    assert found.ok is False

"""Real places to keep things: a folder, an S3 server on this machine, SQLite, and a PostgreSQL cluster of our own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tenon.config import StoreConfig
from tenon.store import Store

Opener = Callable[..., Store]


def _programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    program = shutil.which("initdb")
    return Path(program).parent if program else None


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of an empty database: TENON_TEST_POSTGRES, or a cluster that lives as long as the tests."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    given = os.environ.get("TENON_TEST_POSTGRES")
    if given:
        yield given
        return
    programs = _programs()
    if programs is None:
        pytest.skip("no PostgreSQL server on this machine, and TENON_TEST_POSTGRES is not set")
    # PostgreSQL refuses to run as root: its own user does.
    root = os.geteuid() == 0
    became = ["runuser", "-u", "postgres", "--"] if root else []
    folder = Path(tempfile.mkdtemp(prefix="tenon-postgres-"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    try:
        if root:
            shutil.chown(folder, "postgres")
        data = str(folder / "data")
        initdb = [
            *became,
            str(programs / "initdb"),
            "-D",
            data,
            "-U",
            "tenon",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-sync",
        ]
        done = subprocess.run(initdb, capture_output=True, text=True, cwd=folder, check=False)
        if done.returncode:
            pytest.skip(f"initdb does not run here: {done.stderr.strip()[-200:]}")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=40"
        control = [*became, str(programs / "pg_ctl"), "-D", data, "-w"]
        log = str(folder / "log")
        subprocess.run([*control, "-l", log, "-o", options, "start"], capture_output=True, cwd=folder, check=True)
        try:
            yield f"postgresql://tenon@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], capture_output=True, cwd=folder, check=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The endpoint of a real HTTP server that speaks S3, with an empty bucket called `bucket`."""
    pytest.importorskip("obstore", reason="obstore is not installed")
    server = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        running: Any = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        running.start()
        try:
            host, port = running.get_host_and_port()
            endpoint = f"http://{host}:{port}"
            urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bucket", method="PUT")).close()
            yield endpoint
        finally:
            running.stop()


def catalog_of(request: pytest.FixtureRequest, kind: str) -> str:
    """A catalog nobody has used: a new file, or a new schema of the PostgreSQL database."""
    if kind == "sqlite":
        return ""
    return f"{request.getfixturevalue('postgres')}?schema=t{uuid.uuid4().hex[:16]}"


@pytest.fixture(params=["sqlite-folder", "sqlite-s3", "postgres-folder", "postgres-s3"])
def config(request: pytest.FixtureRequest) -> StoreConfig:
    """Every place a store can be."""
    catalog, blobs = request.param.split("-")
    if blobs == "folder":
        return StoreConfig(catalog=catalog_of(request, catalog))
    endpoint = request.getfixturevalue("s3")
    return StoreConfig(
        catalog=catalog_of(request, catalog),
        blobs=f"s3://bucket/{uuid.uuid4().hex[:12]}",
        s3_endpoint=endpoint,
        s3_region="us-east-1",
    )


@pytest.fixture(params=["sqlite", "postgres"])
def catalog_config(request: pytest.FixtureRequest) -> StoreConfig:
    """Both catalogs, with blobs in a folder: for promises that are the catalog's alone."""
    return StoreConfig(catalog=catalog_of(request, request.param))


@pytest.fixture
def store(config: StoreConfig, tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path, config) as opened:
        yield opened


@pytest.fixture
def catalog(catalog_config: StoreConfig, tmp_path: Path) -> Iterator[Store]:
    """A store to write records, events and batches to."""
    with Store.open(tmp_path, catalog_config) as opened:
        yield opened

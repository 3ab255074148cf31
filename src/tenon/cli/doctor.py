"""Probes of this machine as a project would use it: each does the real thing once and says what it saw.

`probes(root, config)` returns values; `tenon doctor` prints them. A probe answers True (well), False (broken, with a
fix in words) or None (nothing to judge here: no GPU, an extra that is not installed). Guessing is avoided: a lock is
tried by two processes, a rename is done, a port is bound, a model is run.

No probe can end the doctor. Each runs in a thread that is given up after LIMIT_S, because what is broken may hang (a
network file system, a driver). What may kill a process outright (a library built for a newer processor, a GPU kernel)
runs in a process of its own, and its death is told with the signal. Everything written is in a folder of its own,
deleted in the end.

Rejected: reading what /proc and the mount table claim. A file system that says it locks and does not is exactly what a
doctor is for.
"""

from __future__ import annotations

import http.client
import json
import os
import platform
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tenon.config import Config

LIMIT_S = 20.0  # a probe that takes longer is told as hanging
CHILD_S = 15.0  # a probe's own process is killed after this
CHECK_S = 4.0  # how long the store is read back; `tenon store check` reads all of it
GPU_S = 60.0  # importing torch and starting a driver for the first time is slow
KERNELS = ("tenon.ingest._kernel", "tenon.ingest._pages", "tenon.ingest._repair", "tenon.training._fast")
WRITE_BYTES = 16 * 1024 * 1024
SLOW_SYNC_MS = 100.0
LEAST_FREE_BYTES = 1_000_000_000
LEAST_MEMORY_BYTES = 1_000_000_000
LEAST_PYTHON = (3, 11)

# A test compares both with pyproject.toml, which is not there once tenon is installed.
CORE = ("backports.zstd", "polars", "numpy", "onnxruntime", "starlette", "uvicorn", "httptools", "sqlglot", "msgspec",
        "prometheus-client", "psutil", "pyyaml", "jinja2", "click")  # fmt: skip
EXTRAS = {
    "train": (("lightgbm", "scikit-learn", "onnx", "onnxmltools"), "to train with LightGBM and scikit-learn"),
    "torch": (("torch", "onnxscript", "safetensors"), "to train and serve networks"),
    "ray": (("ray",), "to run heavy work on a cluster"),
    "postgres": (("psycopg",), "to keep the catalog in PostgreSQL"),
    "s3": (("obstore",), "to keep blobs in an object store"),
    "gpu": (("nvidia-ml-py",), "to watch a GPU while it trains"),
    "grpc": (("grpcio", "protobuf"), "to serve over gRPC"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One probe: whether what it looked at is well (None: nothing to judge), what it saw, and how to mend it."""

    name: str = ""
    ok: bool | None
    said: str
    fix: str = ""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the probe as plain data."""
        return {"name": self.name, "ok": self.ok, "said": self.said, "fix": self.fix, "seconds": round(self.seconds, 3)}


def probes(root: Path, config: Config) -> list[Probe]:
    """Run every probe for a project folder and its configuration; takes some seconds, leaves nothing behind."""
    slow = {"GPU": GPU_S + CHILD_S + 5}
    return [bounded(name, look, root, config, slow.get(name, LIMIT_S)) for name, look in LOOKS.items()]


def bounded(name: str, look: Look, root: Path, config: Config, limit_s: float) -> Probe:
    """Run one probe in a thread, and give it up when it hangs; never raises."""
    found: list[Probe] = []

    def run() -> None:
        try:
            found.append(look(root, config))
        except Exception as error:  # noqa: BLE001 - the edge: a probe that breaks is told, the others still run
            said = f"the probe itself failed: {type(error).__name__}: {error}"
            found.append(bad(said, "please report this with the line above"))

    start = time.perf_counter()
    thread = threading.Thread(target=run, name=f"doctor-{name}", daemon=True)
    thread.start()
    thread.join(limit_s)
    took = time.perf_counter() - start
    if not found:
        fix = "what hangs is most likely a network drive or a driver; look at it with the tools of your system"
        found.append(bad(f"no answer within {limit_s:.0f} s", fix))
    return replace(found[0], name=name, seconds=took)


def well(said: str) -> Probe:
    """Say that all is well."""
    return Probe(ok=True, said=said)


def bad(said: str, fix: str) -> Probe:
    """Say what is broken, and how to mend it."""
    return Probe(ok=False, said=said, fix=fix)


def absent(said: str) -> Probe:
    """Say that there is nothing to judge here."""
    return Probe(ok=None, said=said)


# ── Python and packages ──────────────────────────────────────────────────────────────────────────────────────────────


def python(_root: Path, _config: Config) -> Probe:
    """Look at the interpreter: its version, its width, and whether it reads text as UTF-8."""
    bits = 64 if sys.maxsize > 2**32 else 32
    said = f"{platform.python_implementation()} {platform.python_version()}, {bits} bits, {platform.machine()}"
    if sys.version_info < LEAST_PYTHON:
        return bad(said, "install Python 3.11 or newer and make the environment with it")
    if bits != 64:
        return bad(said, "install a 64-bit Python: the libraries beneath have no 32-bit builds")
    coding = sys.getfilesystemencoding()
    if coding.lower() not in ("utf-8", "utf8"):
        return bad(f"{said}, file names in {coding}", "set PYTHONUTF8=1, or a UTF-8 locale such as LANG=C.UTF-8")
    return well(said)


def packages(_root: Path, _config: Config) -> Probe:
    """Look for the packages tenon always needs; reads their versions, imports none."""
    # Python reads zstd by itself from 3.14 on.
    needed = [name for name in CORE if name != "backports.zstd" or sys.version_info < (3, 14)]
    versions = {name: installed(name) for name in needed}
    missing = [name for name, version in versions.items() if not version]
    said = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    if missing:
        return bad(f"missing: {', '.join(missing)}", f"pip install --upgrade {' '.join(missing)}")
    return well(said)


def extra(name: str) -> Look:
    """Make the probe of an optional group of packages: all there, none, or half of them."""
    wanted, purpose = EXTRAS[name]

    def look(_root: Path, _config: Config) -> Probe:
        versions = {package: installed(package) for package in wanted}
        missing = [package for package, version in versions.items() if not version]
        if len(missing) == len(wanted):
            return absent(f"not installed; pip install 'tenon[{name}]' {purpose}")
        said = ", ".join(f"{package} {version}" for package, version in versions.items() if version)
        if missing:
            return bad(f"{said}; missing: {', '.join(missing)}", f"pip install 'tenon[{name}]'")
        return well(said)

    return look


def installed(name: str) -> str:
    """Return the installed version of a package, or nothing."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def polars(_root: Path, _config: Config) -> Probe:
    """Send a small table through Parquet and back, in a process of its own."""
    code = (
        "import io, polars as pl\n"
        "frame = pl.DataFrame({'a': [1, None, 3], 'b': ['x', 'ä', None], 'c': [0.5, 1.5, None]})\n"
        "sink = io.BytesIO(); frame.write_parquet(sink); sink.seek(0)\n"
        "assert pl.read_parquet(sink).equals(frame), 'what came back is not what was written'\n"
        "print(f'polars {pl.__version__}: {len(sink.getvalue()):,} bytes of Parquet there and back, '\n"
        "      f'{pl.thread_pool_size()} threads')\n"
    )
    return in_process(code, "pip install --upgrade polars; on a processor without AVX2: pip install 'polars[rtcompat]'")


def kernel(_root: Path, _config: Config) -> Probe:
    """Read a line with the compiled kernel of ingest, in a process of its own; without kernels all is only slower."""
    if any(find_spec(name) is None for name in KERNELS):
        said = "not compiled: ingest works, about half as quickly, and a guarded step of training costs more"
        return absent(f"{said}; install with a C compiler for it")
    code = (
        "from tenon.ingest import _kernel, _pages, _repair\n"
        "from tenon.training import _fast\n"
        "specs = (('i', False, b'', (), (), ()), ('s', False, b'', (), (), ()))\n"
        "assert _kernel.read(b'1,x\\n', 44, 34, 10, 100, specs)[1] == bytes(1), 'a plain row was not read'\n"
        "print('compiled')\n"
    )
    return in_process(code, "install tenon again, with a C compiler, on this machine")


# y = x + x for one row, ONNX opset 13: 73 bytes, so that the probe needs no package to build a model with.
DOUBLE = (
    "080812003a3d0a0e0a01780a017812017922034164641201675a130a0178120e0a0c080112080a0208010a02080162130a0179120e0a0c08"
    "0112080a0208010a02080142040a00100d"
)


def onnx(_root: Path, _config: Config) -> Probe:
    """Score one row with a model of one addition, in a process of its own."""
    code = (
        "import time, numpy as np, onnxruntime as ort\n"
        f"session = ort.InferenceSession(bytes.fromhex('{DOUBLE}'), providers=['CPUExecutionProvider'])\n"
        "row = {'x': np.array([[21.0]], np.float32)}\n"
        "session.run(None, row); start = time.perf_counter(); (y,) = session.run(None, row)\n"
        "took = time.perf_counter() - start\n"
        "assert y[0, 0] == 42.0, f'twice 21 came to {y[0, 0]}'\n"
        "print(f'onnxruntime {ort.__version__}: one row in {1e6 * took:.0f} µs')\n"
    )
    return in_process(code, "pip install --upgrade onnxruntime numpy")


def in_process(code: str, fix: str, limit_s: float = CHILD_S) -> Probe:
    """Run Python in a process of its own: well with what it printed, or broken with its error or its signal."""
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return bad(f"no answer within {limit_s:.0f} s", fix)
    out, err = (stream.decode("utf-8", "replace").strip() for stream in (done.stdout, done.stderr))
    if done.returncode == 0:
        return well(out)
    if done.returncode < 0:
        return bad(f"the process died of {signal_name(-done.returncode)}", fix)
    return bad(err.splitlines()[-1] if err else f"exit code {done.returncode}", fix)


def signal_name(number: int) -> str:
    """Name a signal, with what it usually means."""
    meaning = {4: " (this processor lacks an instruction)", 9: " (killed, most likely for memory)"}
    with suppress(ValueError):
        return signal.Signals(number).name + meaning.get(number, "")
    return f"signal {number}"


# ── machine ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def processor(_root: Path, config: Config) -> Probe:
    """Look at how many cores this process may use: affinity and control group, not what the machine has."""
    from tenon import engine

    usable, there = engine.cores(), os.cpu_count() or 1
    said = f"{usable} of {there} cores may be used"
    workers = config.engine.workers
    if workers > usable:
        fix = f"set engine.workers = {usable} in tenon.toml (0: as many as there are), or raise the container's limit"
        return bad(f"{said}, and engine.workers asks for {workers}", fix)
    return well(said)


def memory(_root: Path, config: Config) -> Probe:
    """Look at how much memory this process may use and how much of it is free."""
    import psutil

    from tenon import engine

    limit = engine.memory_bytes()
    free = min(int(psutil.virtual_memory().available), limit)
    said = f"{gigabytes(limit)} may be used, {gigabytes(free)} free"
    need = max(LEAST_MEMORY_BYTES, config.limits.ingest.memory_bytes)
    if limit < need:
        return bad(said, f"raise the container's or ulimit's memory to at least {gigabytes(need)}")
    if free < need:
        return bad(said, f"end other programs until {gigabytes(need)} are free, or lower limits.ingest.memory_bytes")
    return well(said)


def open_files(_root: Path, config: Config) -> Probe:
    """Look at how many files and connections this process may have open."""
    try:
        import resource
    except ImportError:
        return absent("this system sets no such limit")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = config.limits.serving.connections + 256
    if soft == resource.RLIM_INFINITY or soft >= need:
        return well("no limit" if soft == resource.RLIM_INFINITY else f"{soft:,} may be open")
    fix = f"run `ulimit -n {need}` before serving, or lower limits.serving.connections to {max(soft - 256, 64)}"
    return bad(f"{soft:,} may be open (at most {hard:,}), and {need:,} are needed to serve", fix)


def clock(_root: Path, _config: Config) -> Probe:
    """Compare the wall clock with the steady one, and with when this file was installed."""
    wall, steady = time.time(), time.monotonic()
    time.sleep(0.2)
    gap_ms = abs((time.time() - wall) - (time.monotonic() - steady)) * 1000
    now = time.gmtime(wall)
    zone = time.strftime("%z") or "+0000"
    said = f"{time.strftime('%Y-%m-%d %H:%M', now)} UTC, local zone {time.tzname[0]} ({zone})"
    fix = "set the clock and keep it: systemctl enable --now systemd-timesyncd, or chrony"
    if not 2024 <= now.tm_year <= 2100:
        return bad(f"{said}: that year cannot be", fix)
    if Path(__file__).stat().st_mtime > wall + 86_400:
        return bad(f"{said}, but tenon was installed on a later day", fix)
    if gap_ms > 50:
        return bad(f"{said}; it jumped by {gap_ms:.0f} ms within 0.2 s", fix)
    return well(f"{said}, steady within {gap_ms:.2f} ms")


def temporary(_root: Path, _config: Config) -> Probe:
    """Write to the folder for temporary files, and look at its room."""
    fix = "set TMPDIR to a folder on a disk with room"
    try:
        folder = tempfile.gettempdir()
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"tenon")
            file.flush()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return bad(f"{error.strerror or error} - at {error.filename or tempfile.tempdir}", fix)
    said = f"{folder}, {gigabytes(free)} free"
    return well(said) if free >= LEAST_FREE_BYTES else bad(said, f"free some of it, or {fix}")


# ── disk and store ───────────────────────────────────────────────────────────────────────────────────────────────────


def disk(root: Path, config: Config) -> Probe:
    """Write, sync and rename in the project folder, as every commit does, and look at the room left."""
    if not root.is_dir():
        return bad(f"there is no folder {root}", "name a project's folder, or make one with `tenon init`")
    free = shutil.disk_usage(root).free
    need = max(LEAST_FREE_BYTES, config.limits.store.free_bytes)
    try:
        folder = Path(tempfile.mkdtemp(prefix=".tenon-doctor-", dir=root))
    except OSError as error:
        return bad(f"nothing can be written: {error.strerror} - at {root}", f"make {root} writable for this user")
    try:
        start = time.perf_counter()
        synced(folder / "large", b"\0" * WRITE_BYTES)
        speed = WRITE_BYTES / (time.perf_counter() - start) / 1e6
        waits = sorted(small_commit(folder) for _ in range(9))
    except OSError as error:
        return bad(f"{error.strerror} while writing - at {root}", "make room, or look at the disk's health")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    commit_ms = 1000 * waits[4]
    said = f"{gigabytes(free)} free, writes {speed:,.0f} MB/s, a commit takes {commit_ms:.1f} ms"
    if free < need:
        return bad(said, f"free at least {gigabytes(need)} (`tenon store gc` deletes what nothing refers to)")
    if commit_ms > SLOW_SYNC_MS:
        return bad(said, "keep the project on a local disk: every commit waits this long")
    return well(said)


def small_commit(folder: Path) -> float:
    """Write 4 kB beside, sync, rename over the old: what one commit does; returns its seconds."""
    start = time.perf_counter()
    synced(folder / "new", b"\0" * 4096)
    (folder / "new").replace(folder / "kept")
    return time.perf_counter() - start


def synced(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


HOLDER = (
    "import sqlite3, sys\n"
    "held = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)\n"
    "held.execute('PRAGMA journal_mode=WAL'); held.execute('CREATE TABLE t (x)')\n"
    "held.execute('BEGIN IMMEDIATE'); held.execute('INSERT INTO t VALUES (1)')\n"
    "print('held', flush=True); sys.stdin.readline(); held.execute('COMMIT'); held.close()\n"
    "print('done', flush=True); sys.stdin.readline()\n"
)


def locking(root: Path, config: Config) -> Probe:
    """Let another process hold a write lock on a SQLite file in the project folder, and see whether it holds here."""
    if config.store.catalog:
        return absent("the catalog is in PostgreSQL, which does its own locking")
    if not root.is_dir():
        return bad(f"there is no folder {root}", "name a project's folder, or make one with `tenon init`")
    fix = "keep the project on a local disk (network drives break this), or the catalog in PostgreSQL: store.catalog"
    try:
        folder = Path(tempfile.mkdtemp(prefix=".tenon-doctor-", dir=root))
    except OSError as error:
        return bad(f"nothing can be written: {error.strerror} - at {root}", f"make {root} writable for this user")
    command = [sys.executable, "-c", HOLDER, str(folder / "lock.db")]
    pipe = subprocess.PIPE
    child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    try:
        return two_writers(child, folder / "lock.db", fix)
    finally:
        child.kill()
        child.communicate()
        shutil.rmtree(folder, ignore_errors=True)


def two_writers(child: subprocess.Popen[str], path: Path, fix: str) -> Probe:
    """Try to write while the other process holds the lock, then after it let go."""
    assert child.stdin is not None and child.stdout is not None and child.stderr is not None
    if child.stdout.readline() != "held\n":
        said = child.stderr.read().strip().splitlines()
        return bad(f"a SQLite file cannot be made here: {said[-1] if said else 'no reason given'}", fix)
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as ours:
        mode = ours.execute("PRAGMA journal_mode").fetchone()[0]
        if mode != "wal":
            return bad(f"SQLite's write-ahead log does not work here (it is in mode {mode})", fix)
        try:
            ours.execute("BEGIN IMMEDIATE")
            return bad("two processes held the same write lock at once: locks do nothing here", fix)
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                return bad(f"SQLite: {error}", fix)
        child.stdin.write("\n")
        child.stdin.flush()
        if child.stdout.readline() != "done\n":
            return bad("the other process could not commit", fix)
        ours.execute("BEGIN IMMEDIATE")
        seen = ours.execute("SELECT COUNT(*) FROM t").fetchone()[0]
        ours.execute("COMMIT")
    if seen != 1:
        return bad("what one process committed, the other did not see", fix)
    return well(
        f"two processes lock each other out and see each other's commits (SQLite {sqlite3.sqlite_version}, WAL)"
    )


class Enough(Exception):
    """Reading back stops here: the time for it is over."""


def store(root: Path, config: Config) -> Probe:
    """Read the store back as far as there is time, and compare every blob with the digest that names it."""
    from tenon.errors import TenonError
    from tenon.store import Store

    if not config.store.catalog and not (root / ".tenon").is_dir():
        return absent("there is no store here yet; `tenon run` makes one")
    until = time.monotonic() + CHECK_S
    reached: list[float] = [0.0, 0.0]

    def progress(done: float, total: float, _said: str) -> None:
        reached[:] = [done, total]
        if time.monotonic() > until:
            raise Enough

    try:
        with Store.open(root, config.store, config.limits.store, read_only=True) as opened:
            try:
                found = [one for one in opened.check(progress) if one.severity != "info"]
            except Enough:
                share = f"the first {gigabytes(int(reached[0]))} of {gigabytes(int(reached[1]))}"
                return well(f"{share} are whole; `tenon store check` reads the rest")
            size = opened.size_bytes()
    except TenonError as error:
        return bad(str(error), "see docs/findings, or restore the folder .tenon from a copy")
    if found:
        said = f"{len(found)} faults, first: {found[0].said} - at {found[0].place}"
        return bad(said, found[0].hint or "run `tenon store check` to see all of them")
    return well(f"{gigabytes(size)}, every blob is what its name says")


# ── network ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def port(_root: Path, config: Config) -> Probe:
    """Bind the address that `tenon serve` would, or see whether a service of tenon already answers there."""
    host, number = config.serve.host, config.serve.port
    place = f"{host}:{number}"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, number))
            listener.listen(1)
        return well(f"{place} is free")
    except OverflowError:
        return bad(f"{place} is no port", "set serve.port between 1024 and 65535 in tenon.toml")
    except OSError as error:
        if answers(host, number):
            return well(f"{place} is held by a running tenon service")
        other = f"set serve.port in tenon.toml, or TENON_SERVE__PORT={free_port(host, family)}"
        reason = error.strerror or str(error)
        return bad(f"{place} cannot be listened on: {reason}", f"end what listens there, or {other}")


def answers(host: str, number: int) -> bool:
    """Ask whether a tenon service is alive at an address."""
    try:
        with closing(http.client.HTTPConnection(host, number, timeout=1.0)) as asked:
            asked.request("GET", "/healthz")
            reply = asked.getresponse()
            body = reply.read(4096)
    except (OSError, http.client.HTTPException):
        return False
    with suppress(ValueError):
        return reply.status == 200 and isinstance(json.loads(body), dict)
    return False


def free_port(host: str, family: socket.AddressFamily) -> int:
    """Find a port that is free now."""
    with suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
    return 8322


# ── GPU ──────────────────────────────────────────────────────────────────────────────────────────────────────────────

KERNEL = (
    "import time, torch\n"
    "assert torch.cuda.is_available(), 'torch ' + torch.__version__ + ' sees no GPU'\n"
    "a = torch.randn(4096, 4096, device='cuda', dtype=torch.bfloat16)\n"
    "assert torch.allclose((a[:64] @ a[:, :64]).float().cpu(), a[:64].float().cpu() @ a[:, :64].float().cpu(),\n"
    "                      rtol=0.05, atol=2.0), 'a product on the GPU differs from the one on the processor'\n"
    "a @ a; torch.cuda.synchronize(); start = time.perf_counter(); count = 0\n"
    "while time.perf_counter() - start < 1.0:\n"
    "    for _ in range(8): a @ a\n"
    "    torch.cuda.synchronize(); count += 8\n"
    "rate = count * 2 * 4096**3 / (time.perf_counter() - start) / 1e12\n"
    "print(f'{torch.cuda.get_device_name()}: {rate:.0f} TFLOP/s in bfloat16 for a second, torch {torch.__version__}')\n"
)


def gpu(_root: Path, _config: Config) -> Probe:
    """Ask the driver for its GPUs, and run a kernel for a second where torch is installed."""
    driver = shutil.which("nvidia-smi")
    if driver is None:
        if list(Path("/dev").glob("nvidia[0-9]*")):
            return bad("a GPU is there, but no driver answers", "install NVIDIA's driver (nvidia-smi comes with it)")
        return absent("no NVIDIA driver; training runs on the processor")
    query = ["--query-gpu=name,driver_version,memory.total,temperature.gpu", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run([driver, *query], capture_output=True, text=True, timeout=CHILD_S, check=False)
    except (subprocess.TimeoutExpired, OSError) as error:
        return bad(f"nvidia-smi does not answer: {type(error).__name__}", "reload the driver, or restart the machine")
    if done.returncode != 0:
        lines = (done.stdout or done.stderr).strip().splitlines()
        return bad(lines[-1] if lines else f"nvidia-smi ended with {done.returncode}", "reload or reinstall the driver")
    said = "; ".join(card(line) for line in done.stdout.strip().splitlines())
    if not installed("torch"):
        return well(f"{said}; no kernel was run: pip install 'tenon[torch]'")
    fix = "install the build of torch for your driver's CUDA version, see pytorch.org"
    kernel = in_process(KERNEL, fix, GPU_S)
    return replace(kernel, said=f"{said}; {kernel.said}")


def card(line: str) -> str:
    """Word one line of nvidia-smi: name, driver, memory in MiB, degrees."""
    parts = [part.strip() for part in line.split(",")]
    if len(parts) != 4:
        return line.strip()
    name, version, size, degrees = parts
    room = gigabytes(int(size) * 2**20) if size.isdigit() else size
    return f"{name}, {room}, {degrees} °C, driver {version}"


# ── all of them ──────────────────────────────────────────────────────────────────────────────────────────────────────


def gigabytes(size_bytes: int) -> str:
    """Write bytes for a person: ``24.1 GB``, ``512 MB``."""
    return f"{size_bytes / 1e9:,.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:,.0f} MB"


Look = Callable[[Path, Config], Probe]

# Name -> probe, in the order they are run and shown: what everything else needs comes first.
LOOKS: Mapping[str, Look] = {
    "Python": python,
    "packages": packages,
    **{f"extra {name}": extra(name) for name in EXTRAS},
    "cores": processor,
    "memory": memory,
    "open files": open_files,
    "clock": clock,
    "temporary files": temporary,
    "disk": disk,
    "locking": locking,
    "store": store,
    "port": port,
    "Polars": polars,
    "kernel": kernel,
    "ONNX": onnx,
    "GPU": gpu,
}

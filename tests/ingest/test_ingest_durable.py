"""Killed anywhere and started again, ingest ends with the same bytes; what goes wrong outside is told in words."""

from __future__ import annotations

import fcntl
import hashlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from tenon.contract.column import Column, Source
from tenon.errors import InputError, MissingError, StoreError
from tenon.ingest import Job, ingest
from tenon.ingest.parquet import footer, join
from tenon.ingest.quarantine import replay, safe, show, summary
from tenon.limits import IngestLimits

from .conftest import Read, read_back

LIMITS = IngestLimits(chunk_bytes=20_000, row_bytes=4_096)
CODE = """
import sys
from pathlib import Path
from tenon.ingest import Job, ingest
from tenon.limits import IngestLimits
ingest(Job(paths=(Path(sys.argv[1]),), out=Path(sys.argv[2]), limits=IngestLimits(chunk_bytes=20_000, row_bytes=4_096)))
"""


def rows(count: int) -> bytes:
    lines = [b"id,day,size,word"]
    for n in range(count):
        line = b"%d,2024-02-%02d,%d.25,w%d" % (n, n % 28 + 1, n % 90, n % 7)
        lines.append(line.replace(b",", b";") if n % 50 == 0 else line + b",?,?" if n % 77 == 0 else line)
    return b"\n".join(lines) + b"\n"


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_killed_again_and_again_it_ends_with_the_same_bytes(quick_disk: Path) -> None:
    source, out = quick_disk / "x.csv", quick_disk / "out"
    source.write_bytes(rows(20_000))
    ingest(Job(paths=(source,), out=quick_disk / "whole", limits=LIMITS))
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", CODE, str(source), str(quick_disk / "timed")], check=True)
    took, killed = time.monotonic() - begun, 0
    for turn in range(4):
        process = subprocess.Popen([sys.executable, "-c", CODE, str(source), str(out)])
        try:
            process.wait(took * (0.5 + 0.12 * turn))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
    subprocess.run([sys.executable, "-c", CODE, str(source), str(out)], check=True)
    assert digests(out) == digests(quick_disk / "whole") == digests(quick_disk / "timed")
    assert not [path for path in out.iterdir() if path.is_dir()]


def test_finished_ranges_are_not_read_again(tmp_path: Path) -> None:
    source, out = tmp_path / "x.csv", tmp_path / "out"
    source.write_bytes(rows(5_000))
    whole = ingest(Job(paths=(source,), out=tmp_path / "whole", limits=LIMITS))

    def stop(done: float, total: float, said: str) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(Job(paths=(source,), out=out, limits=LIMITS), progress=stop)
    parts = {path: path.stat().st_mtime_ns for path in out.glob(".x.ingest/parts-*/*.json") if path.name != "plan.json"}
    assert len(parts) > 2
    seen: list[bool] = []

    def look(done: float, total: float, said: str) -> None:
        seen.append(all(path.stat().st_mtime_ns == changed for path, changed in parts.items()))

    ingest(Job(paths=(source,), out=out, limits=LIMITS), progress=look)
    assert seen and all(seen) and digests(out) == digests(whole.summary.parent)


def test_a_result_is_replaced_whole_and_old_companions_go(read: Read, tmp_path: Path) -> None:
    assert read("a,b\n" + "1,2\n" * 40 + "1,2,3\n4\n").result.quarantine
    done = read("a,b\n1,2\n")
    assert done.result.quarantine is None and not (tmp_path / "out" / "data.quarantine.parquet").exists()


def test_a_second_ingest_of_the_same_result_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a\n1\n")
    (tmp_path / "out" / ".x.ingest").mkdir(parents=True)
    with (tmp_path / "out" / ".x.ingest" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="expected to be the only one writing here, got another ingest"):
            ingest(Job(paths=(tmp_path / "x.csv",), out=tmp_path / "out"))


def test_a_file_that_changes_while_it_is_read_fails_the_job(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(rows(5_000))

    def grow(done: float, total: float, said: str) -> None:
        with path.open("ab") as stream:
            stream.write(b"1,2024-01-01,2,w\n")

    with pytest.raises(InputError, match="expected a file that rests, got one that changed while it was read"):
        ingest(Job(paths=(path,), out=tmp_path / "out", limits=LIMITS), progress=grow)
    assert not (tmp_path / "out" / "x.parquet").exists()


def test_a_file_that_shrinks_while_it_is_read_fails_the_job(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(rows(20_000))

    def cut(done: float, total: float, said: str) -> None:
        with path.open("r+b") as stream:
            stream.truncate(100)

    with pytest.raises(InputError, match=r"expected (the file as long as it was|a file that rests)"):
        ingest(Job(paths=(path,), out=tmp_path / "out", limits=LIMITS), progress=cut)


def test_a_full_disk_is_told_in_words_and_finished_parts_are_kept(tmp_path: Path) -> None:
    source, out = tmp_path / "x.csv", tmp_path / "out"
    source.write_bytes(rows(20_000))
    # A bound on the size of a file fails the join of the parts, as a full disk would.
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))\n"
    code += "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n" + CODE
    run = subprocess.run([sys.executable, "-c", code, str(source), str(out)], capture_output=True, text=True)
    assert run.returncode == 1 and "StoreError: expected to write the result, got" in run.stderr
    assert list(out.glob(".x.ingest/parts-*/*.json")) and not (out / "x.parquet").exists()
    assert ingest(Job(paths=(source,), out=out, limits=LIMITS)).rows > 19_000


@pytest.mark.parametrize("packed", [False, True])
def test_memory_stays_flat_whatever_the_size(tmp_path: Path, packed: bool) -> None:
    import gzip

    path = tmp_path / ("x.csv.gz" if packed else "x.csv")
    with gzip.open(path, "wb", 1) if packed else path.open("wb") as out:
        block = rows(50_000).partition(b"\n")[2]
        out.write(b"id,day,size,word\n")
        for _ in range(60):
            out.write(block)
    # The high water mark of this program alone: ru_maxrss would begin with that of the process that started it.
    code = (
        "import sys\nfrom pathlib import Path\nfrom tenon.ingest import Job, ingest\n"
        "done = ingest(Job(paths=(Path(sys.argv[1]),), out=Path(sys.argv[2])))\n"
        "status = Path('/proc/self/status').read_text('ascii', 'replace')\n"
        "print(done.bytes, status.split('VmHWM:')[1].split()[0])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "out")], capture_output=True, check=True
    )
    size, peak_kib = map(int, run.stdout.split())
    assert size > 60_000_000 and peak_kib < 512 * 1024


# ── joining Parquet ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_joined_parquet_is_read_as_the_parts_one_after_the_other(tmp_path: Path) -> None:
    frames = []
    for number, count in enumerate([3, 0, 20_000, 1]):
        frame = pl.DataFrame(
            {
                "n": pl.Series(range(count), dtype=pl.Int64),
                "t": pl.Series([f"w{n % 5}" if n % 3 else None for n in range(count)], dtype=pl.String),
                "d": pl.Series(range(count), dtype=pl.Int64).cast(pl.Datetime("us")),
                "b": pl.Series([n % 2 == 0 for n in range(count)], dtype=pl.Boolean),
            }
        )
        frame.write_parquet(tmp_path / f"{number}.parquet")
        frames.append(frame)
    assert join([tmp_path / f"{n}.parquet" for n in range(4)], tmp_path / "all.parquet") == 20_004
    assert pl.read_parquet(tmp_path / "all.parquet").equals(pl.concat(frames))
    found = pl.scan_parquet(tmp_path / "all.parquet").filter(pl.col("n") == 19_999).collect()
    assert found.height == 1 and footer(tmp_path / "all.parquet")[0][3][1] == 20_004


# ── quarantine ───────────────────────────────────────────────────────────────────────────────────────────────────────

TABLE = "id,day,v\n" + "".join(f"{n},2024-01-{n % 28 + 1:02d},{n}\n" for n in range(100))


def test_quarantine_is_summed_up_and_shown_without_obeying_it(read: Read) -> None:
    done = read(TABLE + "100,2024-01-01,\x1b[31mred\x07\n101,2024-01-01,<b>bold</b>\n102,2024-01-02,=1+1\n")
    assert done.result.quarantine
    (one,) = summary(done.result.quarantine)
    assert (one["reason"], one["column"], one["rows"], one["line"]) == ("type", "v", 3, 102)
    told = show(done.result.quarantine, limit=2)
    assert told[0]["raw"] == "100,2024-01-01,\\x1b[31mred\\x07\\n" and len(told) == 2
    assert safe(b"\xff\x00\x9b31m" + b"x" * 500, size=20).isprintable()


def test_only_quarantined_rows_are_read_again_after_a_rule_is_mended(read: Read, tmp_path: Path) -> None:
    done = read(TABLE + "100,2024-01-01,lots\n101,2024-01-01,few\n102,2024-01-02\n")
    before = digests(tmp_path / "out")["data.parquet"]
    (tmp_path / "data.csv").unlink()
    mended = Source("s", null=["lots"])
    again = replay(Job(paths=(), out=tmp_path / "out", name="data", source=mended))
    assert (again.rows, again.waiting) == (1, 2) and again.file
    assert pl.read_parquet(again.file).rows()[0][::2] == (100, None)
    assert pl.read_parquet(again.file).schema == done.frame.schema
    rest = pl.read_parquet(tmp_path / "out" / "data.quarantine.parquet")
    assert rest["raw"].to_list() == [b"101,2024-01-01,few\n", b"102,2024-01-02\n"]
    assert rest["offset"].to_list() == done.quarantine["offset"].to_list()[1:]
    assert digests(tmp_path / "out")["data.parquet"] == before
    last = replay(Job(paths=(), out=tmp_path / "out", name="data", source=Source("s", null=["few"]), policy="cell"))
    assert last.rows == 1 and pl.read_parquet(last.file or Path()).height == 2


def test_a_replay_without_a_quarantine_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="expected a quarantine file, got none"):
        replay(Job(paths=(), out=tmp_path, name="x"))


def test_declared_columns_keep_their_type_in_a_replay(read: Read, tmp_path: Path) -> None:
    source = Source("s", columns=[Column("v", "int", nullable=True)])
    read(TABLE + "100,2024-01-01,lots\n", source=source)
    again = replay(Job(paths=(), out=tmp_path / "out", name="data", source=source, policy="cell"))
    assert again.rows == 1 and again.file and pl.read_parquet(again.file).schema["v"] == pl.Int64
    assert (
        read_back(ingest(Job(paths=(tmp_path / "data.csv",), out=tmp_path / "out", source=source))).frame.height == 100
    )

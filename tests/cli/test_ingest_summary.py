"""What `tenon ingest` tells a person: the summary in any width, its counts, progress, and what goes wrong, in words."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import resource
import select
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tenon.cli.output import fitted, harmless, short, wide
from tenon.cli.summary import summary

from ..command import ENV, TENON
from ..waiting import eventually

COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def tenon(*args: str | Path, stdin: bytes = b"", **env: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*TENON, *map(str, args)], input=stdin, capture_output=True, env={**ENV, **env}, check=False, timeout=120
    )
    out, said = done.stdout.decode("utf-8"), done.stderr.decode("utf-8")
    assert "Traceback" not in out + said and "fault of tenon" not in said, said
    return subprocess.CompletedProcess(done.args, done.returncode, out, said)


def messy(path: Path, rows: int = 400) -> Path:
    lines = [f"{i};{i:03}-{'x' * 30};{1 + i % 28:02}.03.2024;{i},50" for i in range(rows)]
    lines[20] = lines[20].replace(";", ",", 2).replace(",50", ".50")
    lines[30] += ";"
    lines[40] = lines[40].replace("40,50", "several")
    lines[50] = " " + lines[50].replace("50;", "50 ;", 1)
    lines[55] = lines[55].replace("55;", "55\x00;", 1)
    lines[60] = "60;cut"
    lines[70] = lines[70].replace("70,50", "нет")
    path.write_text("\n".join(["id;note;day;price", *lines]) + "\n", "utf-8")
    return path


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("told")
    done = tenon("ingest", messy(folder / "mess.csv"), "--out", folder / "out", "--json")
    assert done.returncode == 0, done.stderr
    body: dict[str, Any] = json.loads(done.stdout)
    return body


# ── counts and examples ──────────────────────────────────────────────────────────────────────────────────────────────


def test_counts_agree_wherever_they_are_told(told: dict[str, Any]) -> None:
    glance = told["glance"]
    repairs, waiting = pl.read_parquet(told["repairs"]), pl.read_parquet(told["quarantine"])
    assert told["repaired"] == repairs["row"].n_unique() and glance["repairs"] == repairs.height
    assert sum(kind["count"] for kind in glance["repaired"]) == repairs.height > 0
    assert sum(kind["count"] for kind in glance["waiting"]) == told["quarantined"] == waiting.height > 0
    said = {found["code"]: found["said"] for found in told["findings"]}
    assert said["ingest/repaired"].startswith(f"{told['repaired']} rows were repaired, each repair recorded (")
    assert said["ingest/quarantined"].startswith(f"{told['quarantined']} rows wait in quarantine (")


def test_every_kind_of_repair_and_of_quarantine_has_an_example_from_the_source(told: dict[str, Any]) -> None:
    repaired = {kind["repair"]: kind for kind in told["glance"]["repaired"]}
    blanks = repaired["blanks"]
    assert (blanks["column"], blanks["line"], blanks["was"], blanks["became"]) == ("id", 52, " 50 ", "50")
    assert repaired["extra-delimiter"]["was"].endswith(";30,50;")
    assert repaired["extra-delimiter"]["became"].endswith(";30.5") and repaired["extra-delimiter"]["line"] == 32
    waiting = {(kind["reason"], kind["column"]): kind for kind in told["glance"]["waiting"]}
    assert "several" in waiting["type", "price"]["raw"] and waiting["type", "price"]["line"] == 42
    assert told["glance"]["columns"]["price"]["waiting"] == 1


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_summary_fits_its_width_and_says_it_all(told: dict[str, Any], width: int) -> None:
    lines = COLOUR.sub("", summary({**told, "written": ["mess.parquet"]}, width)).splitlines()
    assert max(map(wide, lines)) <= width, max(lines, key=wide)
    text = "\n".join(lines)
    assert "mess.csv: CSV, semicolons, utf-8" in text and "DD.MM.YYYY" in text and "',' before decimals" in text
    assert "' 50 ' → 50" in text and "In quarantine: 3 rows" in text
    assert width < 80 or "several" in text
    assert "bytes are accounted for" in text and "Wrote: mess.parquet" in text


def test_a_wide_table_shows_the_columns_with_something_to_tell_and_counts_the_rest(tmp_path: Path) -> None:
    rows = [",".join(str(i * k) for k in range(200)) for i in range(300)]
    rows[7] = ",".join(["7"] * 150 + ["seven"] + ["7"] * 49)
    file = tmp_path / "wide.csv"
    file.write_text("\n".join([",".join(f"c{k}" for k in range(200)), *rows]) + "\n", "utf-8")
    done = tenon("ingest", file, "--out", tmp_path, COLUMNS="80")
    lines = done.stdout.splitlines()
    assert "… and 176 columns more (176 int); --json has them all" in lines
    assert any(line.startswith("c150 ") for line in lines) and len(lines) < 50 and max(map(wide, lines)) <= 80


# ── harmless ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_could_drive_a_terminal_is_spelt_out_in_everything_shown(tmp_path: Path) -> None:
    rows = [f"=1+{i},<script>\x1b]0;x\x07{i}</script>,{i}" for i in range(60)]
    rows += ["=cmd|x,\x1b[2J,zz\x9b31m", "a,\u202eb\u200b,\x1b[5m7", "a,b,c,\x1b[2J,d"]
    (tmp_path / "evil\x1b[31m.csv").write_text("\n".join(["na\x1b[31mme,<b>x</b>,v", *rows]) + "\n", "utf-8")
    done = tenon("ingest", tmp_path / "evil\x1b[31m.csv", "--out", tmp_path, "--name", "evil")
    assert done.returncode == 0 and "In quarantine" in done.stdout, done.stderr
    file = tmp_path / "evil.quarantine.parquet"
    shown = done.stdout + done.stderr + "".join(tenon("quarantine", word, file).stdout for word in ("show", "summary"))
    for sign in "\x1b\x07\x9b\u202e\u200b":
        assert sign not in shown, repr(sign)
    assert "\\x1b" in shown and "=cmd|x" in shown


def test_formula_cells_are_written_as_the_source_spells_them(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text("a,b\n=1+1,+49 30\n@x,-5\n", "utf-8")
    done = tenon("ingest", tmp_path / "f.csv", "--text", "--csv", tmp_path / "clean.csv")
    assert done.returncode == 0 and (tmp_path / "clean.csv").read_text("utf-8") == "a,b\n=1+1,+49 30\n@x,-5\n"
    assert "clean.csv" in done.stdout


@pytest.mark.parametrize(("text", "room", "cut"), [("abc", 3, "abc"), ("abcd", 3, "ab…"), ("漢字漢字", 5, "漢字…")])
def test_a_text_is_cut_by_the_places_it_takes(text: str, room: int, cut: str) -> None:
    assert fitted(text, room) == cut and wide(cut) <= room
    assert harmless("\ud800\U000e0041") == "\\ud800\\U000e0041" and short(999_999) == "1 M"


# ── where it reads from and writes to ────────────────────────────────────────────────────────────────────────────────


def test_stdin_patterns_and_folders_are_read_and_named(tmp_path: Path) -> None:
    folder, out = tmp_path / "more", tmp_path / "out"
    (folder / "deep").mkdir(parents=True)
    for name in ("a1.csv", "a2.csv", "deep/a3.csv"):
        (folder / name).write_text("x,y\n1,2\n3,4\n", "utf-8")
    piped = tenon("ingest", "-", "--out", out, stdin=b"x,y\n1,2\n")
    assert piped.returncode == 0 and "standard input: CSV" in piped.stdout and (out / "stdin.parquet").is_file()
    assert "4 rows of 2 columns" in tenon("ingest", folder / "a*.csv", "--out", out).stdout
    assert "6 rows of 2 columns" in tenon("ingest", folder, "--out", out).stdout
    assert (out / "a1.parquet").is_file() and (out / "more.parquet").is_file()
    nothing = tenon("ingest", folder / "b*.csv", "--out", out)
    assert nothing.returncode == 1 and "expected files to read, got none" in nothing.stderr


def test_a_file_name_that_is_no_utf_8_is_read_all_the_same(tmp_path: Path) -> None:
    file = os.fsencode(tmp_path / "n") + b"\xff.csv"
    Path(os.fsdecode(file)).write_text("x,y\n1,2\n", "utf-8")
    done = tenon("ingest", os.fsdecode(file), "--out", tmp_path)
    assert done.returncode == 0 and "n\\xff.csv: CSV" in done.stdout and (tmp_path / "n_.parquet").is_file()


def test_what_cannot_be_read_or_written_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "d.csv"
    file.write_text("x,y\n1,2\n", "utf-8")
    through = tenon("ingest", file / "inside.csv", "--out", tmp_path / "o")
    assert through.returncode == 1 and "got nothing there" in through.stderr
    onto = tenon("ingest", file, "--out", file / "o")
    assert onto.returncode == 1 and "expected to write the result, got Not a directory" in onto.stderr
    assert onto.stdout == ""


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file whose reading fails")
def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    done = tenon("ingest", "/proc/self/mem", "--out", tmp_path)
    assert done.returncode == 1 and "expected a file that can be read, got Input/output error" in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look into every folder")
def test_a_folder_that_cannot_be_looked_into_is_said_and_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "in" / "shut").mkdir(parents=True)
    (tmp_path / "in" / "d.csv").write_text("x,y\n1,2\n", "utf-8")
    (tmp_path / "in" / "shut").chmod(0)
    done = tenon("ingest", tmp_path / "in", "--out", tmp_path)
    (tmp_path / "in" / "shut").chmod(0o700)
    assert done.returncode == 1 and "expected a folder that can be read, got Permission denied" in done.stderr


# ── interrupted, and no room ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four ranges, with enough broken rows to be at work on them for a while."""
    file = tmp_path_factory.mktemp("large") / "large.csv"
    line = "{0},{1},2024-03-01 10:00:00,some free text that is long enough to fill the row {0}"
    rows = [line.format(i, i * 7) for i in range(340_000)]
    for i in range(0, len(rows), 12):
        rows[i] = rows[i].replace(",", ";")
    file.write_text("\n".join(["id,amount,at,note", *rows]) + "\n", "utf-8")
    return file


def test_an_interrupted_ingest_says_so_and_goes_on_from_there(large: Path, tmp_path: Path) -> None:
    child = subprocess.Popen(
        [*TENON, "ingest", large, "--out", tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENV
    )
    eventually(lambda: any(tmp_path.glob(".large.ingest/parts-*/0*.json")), 60, every=0.005)
    child.send_signal(signal.SIGINT)
    out, said = child.communicate(timeout=60)
    assert child.returncode == 130 and out == b"", said
    assert (
        said.decode().lstrip() == "tenon: interrupted; what was finished is kept, and the next run goes on from there\n"
    )
    parts = {path: path.stat().st_mtime_ns for path in tmp_path.glob(".large.ingest/parts-*/0*.json")}
    assert parts and not (tmp_path / "large.parquet").exists()
    assert tenon("ingest", large, "--out", tmp_path).returncode == 0
    whole = tmp_path / "whole"
    assert tenon("ingest", large, "--out", whole).returncode == 0
    for name in ("large.parquet", "large.repairs.parquet", "large.summary.json"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()
    assert not (tmp_path / ".large.ingest").exists()


def test_no_room_for_the_result_is_said_and_finished_parts_are_kept(large: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [*TENON, "ingest", large, "--out", tmp_path],
        capture_output=True,
        text=True,
        env=ENV,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)),
    )
    assert done.returncode == 1 and done.stdout == "", done.stderr
    assert done.stderr.startswith("tenon: expected to write the result, got File too large"), done.stderr
    assert tenon("ingest", large, "--out", tmp_path).returncode == 0


def test_a_full_disk_is_said_and_the_next_start_goes_on(large: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=500k", "tenon", tmp_path]).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    try:
        done = tenon("ingest", large, "--out", tmp_path)
        assert done.returncode == 1 and "got a full disk" in done.stderr and "make room" in done.stderr, done.stderr
        subprocess.run(["mount", "-o", "remount,size=200m", tmp_path], check=True)
        assert tenon("ingest", large, "--out", tmp_path).returncode == 0
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


# ── progress ─────────────────────────────────────────────────────────────────────────────────────────────────────────

DRAW = """
import time
from tenon.cli.output import Output
output = Output()
with output:
    output._started -= 5
    for step in range(1, 30):
        output.counted(step * 1000)
        output.progress(step * 1e6, 30e6, "reading d.csv")
        time.sleep(0.02)
output.emit({}, "done")
"""


def watched(command: list[str], columns: int = 80, **env: str) -> bytes:
    """Run a command on a terminal of its own and return all that was written to it."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    clean = {name: value for name, value in ENV.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
    child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env={**clean, **env})
    os.close(theirs)
    out = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            block = os.read(ours, 65536)
        except OSError:
            break
        if not block:
            break
        out += block
    os.close(ours)
    assert child.wait(timeout=60) == 0, out
    return out


def test_progress_is_one_line_with_rates_and_time_left_and_gone_at_the_end() -> None:
    out = watched([sys.executable, "-c", DRAW]).decode()
    drawn, after = out.rsplit("\r\x1b[K", 1)
    frames = [frame.removesuffix("\x1b[K") for frame in drawn.split("\r") if frame]
    assert after.strip() == "done" and "\n" not in drawn and 3 <= len(frames) <= 10
    assert re.fullmatch(r"reading d\.csv  [█░]{20} +\d+ %  \d+ MB/s  [\d.]+ k rows/s  [\d.]+ s left", frames[-1])
    assert all(wide(frame) < 80 for frame in frames)


def test_nothing_is_drawn_where_stderr_is_no_terminal() -> None:
    done = subprocess.run([sys.executable, "-c", DRAW], capture_output=True, text=True, env=ENV, check=True)
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_colours_are_for_terminals_and_can_be_turned_off(tmp_path: Path) -> None:
    file = messy(tmp_path / "mess.csv")
    command = [*TENON, "ingest", str(file), "--out", str(tmp_path)]
    assert b"\x1b[33m" in watched(command)
    assert b"\x1b[" not in watched(command, NO_COLOR="1")
    assert "\x1b" not in tenon(*command[3:], NO_COLOR="").stdout

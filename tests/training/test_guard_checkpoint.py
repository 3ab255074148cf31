"""A checkpoint is whole or not there; the last good one survives a worse one, a full disk, damage and a kill."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tenon.errors import CorruptError, InputError, MissingError, StoreError, UsageError
from tenon.training.checkpoint import STATE, TENSORS, Checkpoints, Keep

torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed")
pytest.importorskip("safetensors", reason="the extra 'torch' is not installed")


def tensors(step: int) -> dict[str, Any]:
    return {"weight": torch.full((3, 4), float(step)), "half": torch.ones(2, dtype=torch.bfloat16) * step}


def filled(folder: Path, *steps: int, keep: Keep = Keep(last=10)) -> Checkpoints:
    kept = Checkpoints(folder, keep=keep)
    for step in steps:
        kept.save(step, tensors(step), {"lr": 0.1, "step": step})
    return kept


# ── round trip and policy ────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_saved_comes_back_as_it_was(tmp_path: Path) -> None:
    kept = filled(tmp_path, 3, 7)
    loaded = kept.load()
    assert loaded is not None and loaded.step == 7 and loaded.state == {"lr": 0.1, "step": 7}
    assert all(torch.equal(loaded.tensors[name], one) for name, one in tensors(7).items())
    assert loaded.tensors["half"].dtype == torch.bfloat16
    earlier = kept.load(3)
    assert earlier is not None and float(earlier.tensors["weight"][0, 0]) == 3.0
    assert Checkpoints(tmp_path / "none").load() is None


def test_views_and_transposed_tensors_are_written_whole(tmp_path: Path) -> None:
    kept, flat = Checkpoints(tmp_path), torch.arange(24.0)
    given = {"a": flat[:12].reshape(3, 4).T, "b": flat[12:], "c": flat[:12]}
    kept.save(0, given, {})
    loaded = kept.load()
    assert loaded is not None and all(torch.equal(loaded.tensors[name], one) for name, one in given.items())


def test_the_newest_the_best_and_every_nth_are_kept(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, keep=Keep(last=2, best=1, every=500))
    for step, loss in ((100, 3.0), (200, 1.0), (500, 2.0), (600, 2.5), (700, 2.4), (800, 2.2)):
        kept.save(step, tensors(step), {}, loss=loss)
    assert kept.steps() == [200, 500, 700, 800]
    with pytest.raises(UsageError, match="last of 1 or more"):
        Keep(last=0)


def test_a_suspect_one_displaces_no_good_one_and_is_not_loaded_unasked(tmp_path: Path) -> None:
    kept = filled(tmp_path, 1, keep=Keep(last=1, best=0))
    for step in (2, 3):
        kept.save(step, tensors(step), {}, suspect=True)
    kept.save(4, tensors(4), {}, loss=float("nan"))
    loaded = kept.load()
    assert loaded is not None and loaded.step == 1
    assert sorted(one.name for one in tmp_path.glob("s*")) == ["step-0000000001", "suspect-0000000004"]


# ── faults ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def damage(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        byte = opened.read(1)
        opened.seek(-1, os.SEEK_CUR)
        opened.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("fault", ["tensors", "state", "cut", "missing", "empty"])
def test_a_damaged_one_falls_back_to_the_one_before_in_words(tmp_path: Path, fault: str) -> None:
    kept = filled(tmp_path, 10, 20)
    place = kept.path(20)
    if fault in ("tensors", "state"):
        damage(place / (TENSORS if fault == "tensors" else STATE))
    elif fault == "cut":
        os.truncate(place / TENSORS, 50)
    elif fault == "missing":
        (place / TENSORS).unlink()
    else:
        (place / STATE).write_text("")
    loaded = kept.load()
    assert loaded is not None and loaded.step == 10
    assert [one.code for one in kept.findings] == ["training/checkpoint-damaged"]
    assert kept.findings[0].said.startswith("The checkpoint of step 20 is damaged and was passed over: expected ")
    assert kept.steps() == [10] and (tmp_path / "damaged-0000000020").is_dir()


def test_when_all_are_damaged_it_says_so_and_does_not_begin_anew(tmp_path: Path) -> None:
    kept = filled(tmp_path, 1, 2)
    for step in (1, 2):
        damage(kept.path(step) / TENSORS)
    with pytest.raises(CorruptError, match="expected one whole checkpoint, got 2 damaged"):
        kept.load()
    with pytest.raises(MissingError, match="expected the checkpoint of step 9, got none"):
        kept.load(9)


def test_a_full_disk_is_told_before_anything_is_written_and_spares_the_best_and_the_newest(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, keep=Keep(last=5, best=1))
    for step, loss in ((1, 2.0), (2, 1.0), (3, 3.0), (4, 4.0)):
        kept.save(step, tensors(step), {}, loss=loss)
    huge = torch.zeros(1).expand(10**15)  # claims petabytes and holds four bytes
    with pytest.raises(
        StoreError, match=r"expected room for a checkpoint, got a full disk.*newest whole checkpoint is step 4"
    ):
        kept.save(5, {"huge": huge}, {})
    assert kept.steps() == [2, 4]
    assert not list(tmp_path.glob(".writing*"))


def test_a_write_that_fails_half_way_leaves_what_was_there(tmp_path: Path) -> None:
    """A bound on the size of files refuses the write in its middle, as a disk that fills up meanwhile would."""
    kept = filled(tmp_path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(
            StoreError, match=r"expected room for a checkpoint, got .*the newest whole checkpoint is step 1"
        ):
            kept.save(2, {"large": torch.ones(1_000_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    loaded = kept.load()
    assert loaded is not None and loaded.step == 1
    assert not list(tmp_path.glob(".writing*"))


def test_without_the_package_it_says_what_to_install_and_not_that_the_disk_is_full(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['safetensors'] = None\n"
        "from tenon.training import Checkpoints\n"
        "from pathlib import Path\n"
        "Checkpoints(Path(sys.argv[1])).save(1, {}, {})\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "MissingError: expected the package 'safetensors' to write checkpoints" in done.stderr
    assert "room for a checkpoint" not in done.stderr


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    first, second = filled(tmp_path, 1), Checkpoints(tmp_path)
    with pytest.raises(StoreError, match="expected one writer, got another one"):
        second.save(2, tensors(2), {})
    first.close()
    second.save(2, tensors(2), {})


def test_the_lock_ends_with_its_process_though_a_forked_worker_lives_on(tmp_path: Path) -> None:
    kept = filled(tmp_path, 1)
    heard, say = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.write(say, b"!")
        time.sleep(60)
        os._exit(0)
    try:
        assert os.read(heard, 1) == b"!"
        kept.close()
        filled(tmp_path, 2).close()
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
        os.close(heard)
        os.close(say)


def test_a_checkpoint_of_a_later_release_is_refused_in_words(tmp_path: Path) -> None:
    import hashlib
    import json

    kept = filled(tmp_path, 1)
    sealed = json.loads((kept.path(1) / STATE).read_text())
    sealed["body"]["version"] = 99
    sealed["sha256"] = hashlib.sha256(json.dumps(sealed["body"]).encode()).hexdigest()
    (kept.path(1) / STATE).write_text(json.dumps(sealed))
    with pytest.raises(InputError, match="expected a checkpoint of version 2, got 99"):
        kept.load()


def test_what_a_killed_writer_left_is_cleared_and_a_replaced_step_is_put_back(tmp_path: Path) -> None:
    kept = filled(tmp_path, 1, 2)
    kept.close()
    shutil.copytree(kept.path(1), tmp_path / ".writing-123")
    kept.path(2).rename(tmp_path / ".old-step-0000000002")
    again = Checkpoints(tmp_path)
    again.claim()
    assert again.steps() == [1, 2] and not list(tmp_path.glob(".writing*"))


# One process forks four writers, so that PyTorch is imported once, and kills each at another moment.
WRITER = """
import os, signal, sys, time, torch
from pathlib import Path
from tenon.training.checkpoint import Checkpoints, Keep

def write(folder):
    kept = Checkpoints(folder, keep=Keep(last=2, best=0))
    for step in range(1_000_000):
        kept.save(step, {"a": torch.full((50_000,), float(step))}, {"step": step})

for i in range(4):
    folder = Path(sys.argv[1], str(i))
    child = os.fork()
    if child == 0:
        write(folder)
    while not list(folder.glob("step-*")):
        time.sleep(0.001)
    time.sleep(0.02 + 0.037 * i)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def test_killed_at_any_instant_what_is_there_is_whole(quick_disk: Path) -> None:
    subprocess.run([sys.executable, "-c", WRITER, str(quick_disk)], check=True)
    for i in range(4):
        kept = Checkpoints(quick_disk / str(i))
        kept.claim()
        loaded = kept.load()
        assert loaded is not None and kept.findings == []
        assert bool((loaded.tensors["a"] == loaded.state["step"]).all())
        kept.close()


def test_a_folder_that_somebody_deletes_or_adds_to_does_not_end_the_run(tmp_path: Path) -> None:
    kept = filled(tmp_path / "kept", 1)
    for name in ("step-²", "step-5 copy", "step-"):
        (tmp_path / "kept" / name).mkdir()
    assert kept.steps() == [1]
    shutil.rmtree(tmp_path / "kept")
    kept.save(2, tensors(2), {})
    assert kept.steps() == [2]
    with pytest.raises(StoreError, match=r"expected one writer, got another one .* or end or close\(\) what holds it"):
        filled(tmp_path / "kept", 3)

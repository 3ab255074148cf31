"""`tenon train SCRIPT` begins a script that states its step only when that is sure to fit, and learns what it took."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tenon.store import Store
from tenon.training.memory import Question, admitted, find, margin, stated

pytest.importorskip("torch", reason="the extra 'torch' is not installed")

# Wide inside and narrow outside, so that a step that takes gigabytes on a GPU reads a batch of a few megabytes here.
NET = "nn.Sequential(nn.Linear(4, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1))"
BLOCKS = "nn.Sequential(nn.Linear(4, 2048), *[nn.Sequential(nn.Linear(2048, 2048), nn.ReLU()) for _ in range(25)])"
STEP = f"""
import torch
from pathlib import Path
from torch import nn

def model():
    return {NET}

def optimizer(model):
    return torch.optim.AdamW(model.parameters())

def batch(size):
    return torch.ones(size, 4)

def loss(model, batch):
    return model(batch).square().mean()

if __name__ == "__main__":
    # This machine has no GPU: the script says what PyTorch would say of one after its steps.
    torch.cuda.is_available, torch.cuda.max_memory_reserved = lambda: True, lambda: 1_234_567_890
    print("trained by", __import__("beside").NAME)
"""


def written(folder: Path, text: str = STEP) -> Path:
    (folder / "beside.py").write_text("NAME = 'its neighbour'\n")
    file = folder / "train.py"
    file.write_text(text)
    return file


def train(file: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tenon", "train", str(file), *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=file.parent)


def test_a_script_that_cannot_fit_is_refused_with_its_plan_and_not_begun(tmp_path: Path) -> None:
    refused = train(written(tmp_path), "--gpu", "t4-16gb", "--batch", "400000", "--json")
    assert refused.returncode == 1 and "trained" not in refused.stdout + refused.stderr
    told = json.loads(refused.stdout)
    assert (told["attempts"], told["findings"][0]["code"]) == (0, "training/does-not-fit")
    assert "micro-batches with accumulation" in told["fit"]["plan"]["said"]
    assert not (tmp_path / ".tenon").exists()


def test_one_that_fits_is_begun_and_what_it_reserved_says_how_far_to_trust_the_next_prediction(tmp_path: Path) -> None:
    file = written(tmp_path, STEP.replace("batch(size)", "batch(size=64)"))
    done = train(file, "--gpu", "t4-16gb")
    assert done.returncode == 0, done.stderr
    assert "trained by its neighbour" in done.stdout and "· fits: " in done.stderr
    with Store.open(tmp_path, read_only=True) as store:
        (kept,) = store.find("fit-peak", device="t4-16gb")
        assert kept["measured_bytes"] == 1_234_567_890 and kept["about"]["batch"] == 64
        assert margin(store, "t4-16gb").runs == 1


def test_without_a_gpu_and_without_a_name_nothing_is_asked(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = train(written(tmp_path), "--batch", "400000000")
    assert done.returncode == 0 and "trained by its neighbour" in done.stdout and done.stderr == ""


def test_what_cannot_be_asked_is_said(tmp_path: Path) -> None:
    file = written(tmp_path)
    lacking = train(file, "--gpu", "t4-16gb")
    assert lacking.returncode == 2 and "expected a batch to ask about, got none - at" in lacking.stderr
    file.write_text("print('trained')")
    for flags in (["--gpu", "t4-16gb"], ["--batch", "8"]):
        other = train(file, *flags)
        assert other.returncode == 2 and "expected a script that states its step" in other.stderr
        assert "trained" not in other.stdout


def test_a_step_is_stated_by_four_functions_of_the_files_own_or_of_another(tmp_path: Path) -> None:
    file = written(tmp_path)
    assert stated(file) == 0
    file.write_text(STEP.replace("batch(size)", "batch(size: int = 32)"))
    assert stated(file) == 32
    file.write_text("from step import batch, loss, model, optimizer as optimizer\n")
    assert stated(file) == 0
    for text in ("def model(): ...", "def model(: nonsense", "import step"):
        file.write_text(text)
        assert stated(file) is None


def test_several_gpus_share_the_batch_and_may_share_the_model(tmp_path: Path) -> None:
    file = written(tmp_path, STEP.replace(f"return {NET}", f"return {BLOCKS}"))
    whole = Question(path=file, device=find("t4", total_gib=5), batch=64)
    each, way = admitted(whole, 8)  # an eighth of the rows each, one more copy of the gradients, and NCCL
    assert each and way == "" and each.question.batch == 8
    assert each.question.used_bytes == 1024**3 + each.step.counts["parameter_bytes"]
    # The whole model with its copy does not fit, in parts it does: two examples are too few for four GPUs, so one each.
    refused, way = admitted(replace(whole, device=find("t4", total_gib=2.3), batch=2), 8)
    assert not refused and way == "FSDP over 4 GPUs with a batch of 4"

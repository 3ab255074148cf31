"""`tenon train PROJECT` holds a trainer of one's own to the GPU it is asked about, and refuses what means nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tenon.flow import begin
from tenon.store import Store

from ..command import tenon

# Wide inside and narrow outside, so that a step that takes gigabytes on a GPU reads a batch of a few megabytes here.
TRAINER = """
import torch
from torch import nn

from tenon.training import Fitted


def model(columns=4, width=4096):
    return nn.Sequential(nn.Linear(columns, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))


def optimizer(model):
    return torch.optim.AdamW(model.parameters())


def batch(size):
    return torch.ones(size, 4), torch.ones(size, 1)


def loss(model, batch):
    return nn.functional.binary_cross_entropy_with_logits(model(batch[0]), batch[1])


def fit(data, run):
    matrix = data.matrix("onehot")
    rows = torch.from_numpy(matrix.train), torch.tensor(data.train.y, dtype=torch.float32)[:, None]
    net = model(rows[0].shape[1], 8)
    steps = optimizer(net)
    run.guard.watch(net, steps)
    for step in range(20):
        steps.zero_grad()
        found = loss(net, rows)
        found.backward()
        if not run.guard.step(step, loss=found):
            break
        steps.step()
    whole = nn.Sequential(net, nn.Sigmoid())
    return Fitted(model=whole, encoding=matrix.encoding, task=data.task, trainer='fit')
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    begin.init(tmp_path / "shop")
    return tmp_path / "shop"


@pytest.fixture
def own(shop: Path) -> Path:
    """The same project with a PyTorch trainer of its own, whose file states its step."""
    pytest.importorskip("torch", reason="the extra 'torch' is not installed")
    (shop / "mine.py").write_text(TRAINER, "utf-8")
    file = shop / "project.py"
    text = file.read_text("utf-8").replace('train="logistic"', "train=mine.fit")
    file.write_text(text.replace("from tenon import", "import mine\n\nfrom tenon import"), "utf-8")
    return shop


@pytest.mark.parametrize(
    ("words", "at"),
    [
        (["--nproc", "2"], "--nproc"),
        (["--silence", "3", "--restarts", "1"], "--restarts, --silence"),
        (["--engine", "ray"], "--engine"),
        (["--gpu", "t4-16gb", "--batch", "64"], "--gpu, --batch"),
    ],
)
def test_a_built_in_trainer_is_not_spread_and_its_memory_is_no_question(shop: Path, words: list[str], at: str) -> None:
    wrong = tenon("train", shop, *words)
    assert wrong.returncode == 2
    assert "expected a PyTorch trainer of your own, got the built-in 'logistic' of model 'slow'" in wrong.stderr
    assert f"- at {at}; leave out {at}\n" in wrong.stderr
    assert not (shop / ".tenon").exists()


def test_words_for_a_script_are_refused_by_a_project(shop: Path) -> None:
    wrong = tenon("train", shop, "--", "--lr", "1")
    assert wrong.returncode == 2
    assert "expected no words for a project, got '--lr 1' - at" in wrong.stderr and "into project.py" in wrong.stderr


def test_a_trainer_whose_step_does_not_fit_is_refused_with_its_plan_and_one_that_fits_trains(own: Path) -> None:
    refused = tenon("train", own, "--gpu", "t4-16gb", "--batch", "400000", "--json")
    told = json.loads(refused.stdout)
    assert (refused.returncode, told["findings"][0]["code"]) == (1, "training/does-not-fit")
    assert "micro-batches with accumulation" in told["fit"]["plan"]["said"]
    assert not (own / ".tenon").exists()
    done = tenon("train", own, "--gpu", "t4-16gb", "--batch", "64")
    assert done.returncode == 0, done.stderr
    assert "· fits: " in done.stderr
    with Store.open(own, read_only=True) as store:
        (run,) = store.find("run")
    assert (run["trainer"], run["status"]) == ("fit", "done")

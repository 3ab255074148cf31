"""`tenon train PROJECT --nproc 2`: processes that step as one train a function of the project, and all are costed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tenon.flow import begin
from tenon.store import Store
from tenon.training.track import curves

from ..command import tenon

TRAINER = """
import os
from pathlib import Path

from tenon.training import Fitted, Linear, Order, Resume

HERE = Path(__file__).parent


def fit(data, run, ranks):
    import torch
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    torch.manual_seed(0)
    matrix = data.matrix("onehot")
    x, y = torch.from_numpy(matrix.train), torch.tensor(data.train.y, dtype=torch.float32)[:, None]
    net = nn.Linear(x.shape[1], 1)
    model = DistributedDataParallel(net) if ranks.size > 1 else net
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    order = Order(len(x), 32, ranks=ranks)
    guard = run.guard.watch(model, optimizer)
    resume = Resume(HERE / "kept", every=4, guard=guard, model=model, optimizer=optimizer, data=order)
    batches, died = order.forever(), HERE / "died"
    for step in range(resume.restore(), 20):
        rows = next(batches)
        found = nn.functional.binary_cross_entropy_with_logits(model(x[rows]), y[rows])
        optimizer.zero_grad()
        (found * float("nan") if step == SPOILED and ranks.rank == 1 else found).backward()
        if not guard.step(step, loss=found):
            break
        optimizer.step()
        run.log(step, loss=found.item())
        with (HERE / f"seen-{ranks.rank}").open("a") as file:
            print(step, len(rows), file=file)
        if step == 10 and ranks.rank == 1 and not died.exists():
            died.touch()
            os.kill(os.getpid(), 9)
        resume.done(step, loss=found)
    score = Linear(weights=net.weight.detach().numpy()[0], bias=net.bias.item(), logit=True)
    return Fitted(model=score, encoding=matrix.encoding, task=data.task, trainer="fit")
"""


def shop(folder: Path, spoiled: int = -1, trainer: str = TRAINER) -> Path:
    """Make a small project with a trainer of its own, which dies once on its second rank."""
    pytest.importorskip("torch", reason="the extra 'torch' is not installed")
    begin.init(folder)
    rows = (folder / "raw" / "invoices.csv").read_text("utf-8").splitlines(keepends=True)
    (folder / "raw" / "invoices.csv").write_text("".join([rows[0], *rows[1::4]]), "utf-8")
    (folder / "mine.py").write_text(trainer.replace("SPOILED", str(spoiled)), "utf-8")
    file = folder / "project.py"
    text = file.read_text("utf-8").replace('train="logistic"', "train=mine.fit")
    file.write_text(text.replace("from tenon import", "import mine\n\nfrom tenon import"), "utf-8")
    return folder


def test_ranks_share_each_batch_and_one_that_dies_is_begun_again_from_the_last_checkpoint(tmp_path: Path) -> None:
    own = shop(tmp_path / "shop")
    done = tenon("train", own, "--nproc", "2", "--json")
    assert done.returncode == 0, done.stderr
    with Store.open(own, read_only=True) as store:
        (run,) = store.find("run")
        steps, losses = curves(store, run["id"])["loss"]
    seen = [[line.split() for line in (own / f"seen-{rank}").read_text().splitlines()] for rank in range(2)]
    assert all({int(step) for step, _ in one} == set(range(20)) for one in seen)
    assert {rows for one in seen for _, rows in one} == {"16"}  # of 32
    assert len(seen[1]) == 20 + 3  # three steps after the checkpoint of the eighth were taken twice
    assert (run["trainer"], run["status"], run["config"]["processes"]) == ("fit", "done", 2)
    befell = {one["code"]: one for one in run["findings"] if one["place"].startswith(f"{run['id']}/attempt")}
    assert set(befell) == {"training/rank-died", "training/restarted"}
    assert {one["severity"] for one in befell.values()} == {"warning"}  # the gate holds no death against a model
    assert "Rank 1 of 2 was killed by SIGKILL" in befell["training/rank-died"]["said"]
    assert list(steps) == list(range(20)) and len(losses) == 20  # of both attempts, none twice
    again = tenon("train", own, "--nproc", "2", "--json")
    stages = {one["name"]: one["done"] for one in json.loads(again.stdout)["stages"]}
    assert not any(stages.values())  # what has not changed is not trained again


def test_a_step_that_is_spoiled_on_one_rank_fails_the_training_in_the_words_of_its_guard(tmp_path: Path) -> None:
    own = shop(tmp_path / "shop", spoiled=3)
    failed = tenon("train", own, "--nproc", "2")
    assert failed.returncode == 1
    assert "expected a finite gradient norm, got one that is not on" in failed.stderr.splitlines()[-1]
    assert "is not begun again: its guard refused it" in failed.stderr
    with Store.open(own, read_only=True) as store:
        (run,) = store.find("run")
    assert (run["status"], run["error"]["type"]) == ("failed", "TrainingError")
    assert "training/loss-not-finite" in {one["code"] for one in run["findings"]}


def test_a_trainer_without_ranks_is_not_spread_and_none_goes_to_a_cluster(tmp_path: Path) -> None:
    alone = shop(tmp_path / "alone", trainer=TRAINER.replace("run, ranks)", "run)"))
    wrong = tenon("train", alone, "--nproc", "2")
    assert wrong.returncode == 2
    assert "expected a trainer that takes ranks, got the function 'fit' of model 'slow'" in wrong.stderr
    assert "def train(data, run, ranks)" in wrong.stderr
    wrong = tenon("train", alone, "--silence", "60", "--engine", "ray")
    assert wrong.returncode == 2
    assert "expected a project's trainer on this machine, got engine 'ray' - at --engine" in wrong.stderr
    assert not (alone / ".tenon").exists()

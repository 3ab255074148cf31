"""The guard works inside the loops of other libraries, each tried with the real one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tenon.errors import TrainingError, UsageError
from tenon.ledger import Budget
from tenon.training import Guard, Plan, Rules, adapters

NO_TORCH = "the extra 'torch' is not installed"


def minutes() -> Callable[[], float]:
    ticks: Iterator[int] = iter(range(1_000_000))
    return lambda: next(ticks) * 60.0


# ── Lightning ────────────────────────────────────────────────────────────────────────────────────────────────────────


def fit_lightning(guard: Guard, folder: Path, *, poison: int = -1, steps: int = 30) -> Any:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = pytest.importorskip("lightning.pytorch", reason="lightning is not installed, as is the extra 'torch'")

        class Net(library.LightningModule):  # type: ignore[misc, name-defined, unused-ignore]
            def __init__(self) -> None:
                super().__init__()
                self.body = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))

            def forward(self, x: Any) -> Any:
                return self.body(x)

            def training_step(self, batch: Any, index: int) -> Any:
                x = batch[0] * (math.nan if index == poison else 1.0)
                return (self(x) ** 2).mean()

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), lr=0.1)

        torch.manual_seed(0)
        rows = torch.utils.data.TensorDataset(torch.randn(steps * 8, 4))
        loader = torch.utils.data.DataLoader(rows, batch_size=8)
        trainer = library.Trainer(
            max_epochs=1,
            callbacks=[adapters.lightning(guard, checkpoint=folder / "kept.ckpt")],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=str(folder),
        )
        trainer.fit(Net(), loader)
        return trainer


def test_lightning_is_stopped_at_a_nan_before_its_optimiser_steps(tmp_path: Path) -> None:
    guard = Guard()
    with pytest.raises(TrainingError, match="already holds 32 values that are not finite") as told:
        fit_lightning(guard, tmp_path, poison=6)
    assert "at run/6" in str(told.value)
    assert not (tmp_path / "kept.ckpt").exists()


def test_lightning_ends_in_its_own_way_when_the_budget_is_spent(tmp_path: Path) -> None:
    guard = Guard(budget=Budget(hours=0.2), clock=minutes())
    trainer = fit_lightning(guard, tmp_path)
    assert 5 < trainer.global_step < 25
    assert guard.stopped is not None and guard.stopped.code == "training/budget-spent"
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    kept = torch.load(tmp_path / "kept.ckpt", weights_only=True)
    assert kept["global_step"] == trainer.global_step and kept["optimizer_states"]


def test_lightning_that_is_well_is_left_alone(tmp_path: Path) -> None:
    guard = Guard()
    assert fit_lightning(guard, tmp_path).global_step == 30
    assert guard.findings == [] and not (tmp_path / "kept.ckpt").exists()


# ── Hugging Face ─────────────────────────────────────────────────────────────────────────────────────────────────────


def fit_hugging_face(guard: Guard, folder: Path, *, poison: int = -1) -> Any:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = pytest.importorskip("transformers", reason="transformers is not installed, as is the extra 'torch'")
        pytest.importorskip("accelerate", reason="accelerate is not installed, as is the extra 'torch'")

        class Net(torch.nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
            def __init__(self) -> None:
                super().__init__()
                self.body, self.calls = torch.nn.Linear(4, 1), 0

            def forward(self, x: Any, labels: Any) -> Any:
                out = self.body(x)
                self.calls += 1
                scale = math.nan if self.calls > poison >= 0 else 1.0
                return {"loss": ((out - labels) ** 2).mean() * scale, "logits": out}

        class Rows(torch.utils.data.Dataset):  # type: ignore[misc, name-defined, unused-ignore]
            def __len__(self) -> int:
                return 160

            def __getitem__(self, i: int) -> dict[str, Any]:
                return {"x": torch.full((4,), i / 160), "labels": torch.tensor([i / 80])}

        arguments = library.TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=8,
            num_train_epochs=1,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            max_grad_norm=0.0,
        )
        trainer = library.Trainer(
            model=Net(), args=arguments, train_dataset=Rows(), callbacks=[adapters.hugging_face(guard)]
        )
        trainer.train()
        return trainer


def test_a_trainer_of_hugging_face_is_stopped_at_a_nan_before_its_optimiser_steps(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="expected a finite gradient norm, got nan - at run/5"):
        fit_hugging_face(Guard(), tmp_path, poison=5)
    assert list(tmp_path.glob("checkpoint-*")) == []


def test_a_trainer_of_hugging_face_ends_when_the_budget_is_spent_and_is_left_alone_when_well(tmp_path: Path) -> None:
    guard = Guard(budget=Budget(hours=0.2), clock=minutes())
    step = fit_hugging_face(guard, tmp_path).state.global_step
    assert 2 < step < 20
    assert guard.stopped is not None and guard.stopped.code == "training/budget-spent"
    assert (tmp_path / f"checkpoint-{step}").is_dir(), "what may be kept is kept, in the Trainer's own way"
    well = Guard()
    assert fit_hugging_face(well, tmp_path).state.global_step == 20
    assert well.findings == [] and len(well.trend.recent()) == 20


# ── LightGBM ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def regression(shuffled: bool) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 5))
    return x, rng.normal(size=600) if shuffled else x[:, 0] * 2 + rng.normal(0, 0.1, 600)


def boost(guard: Guard, *, rounds: int = 400, shuffled: bool = False, held_out: str = "valid") -> Any:
    library = pytest.importorskip("lightgbm", reason="lightgbm is not installed")
    x, y = regression(shuffled)
    train = library.Dataset(x[:400], y[:400])
    valid = library.Dataset(x[400:], y[400:], reference=train)
    return library.train(
        {"objective": "regression", "metric": "l2", "verbose": -1, "num_threads": 1, "num_leaves": 7, "seed": 0},
        train,
        num_boost_round=rounds,
        valid_sets=[train, valid],
        valid_names=["train", "valid"],
        callbacks=[adapters.lightgbm(guard, held_out=held_out)],
    )


def test_lightgbm_that_learns_nothing_is_stopped_with_the_trees_so_far() -> None:
    y = regression(shuffled=True)[1]
    guard = Guard(plan=Plan(steps=400, constant=float(np.mean((y[400:] - y[:400].mean()) ** 2))))
    model = boost(guard, shuffled=True)
    assert guard.stopped is not None and guard.stopped.code == "training/hopeless"
    assert 100 <= model.num_trees() <= 160


def test_lightgbm_that_learns_is_left_alone_until_its_budget_is_spent() -> None:
    assert boost(Guard(plan=Plan(steps=400, constant=4.0), rules=Rules(flat=False))).num_trees() == 400
    guard = Guard(budget=Budget(hours=1), clock=minutes())
    assert 10 < boost(guard).num_trees() < 100
    with pytest.raises(UsageError, match="expected a set that is evaluated, got 'test'"):
        boost(Guard(), held_out="test")


# ── scikit-learn ─────────────────────────────────────────────────────────────────────────────────────────────────────


def parts(count: int) -> Iterator[tuple[Any, Any]]:
    rng = np.random.default_rng(0)
    for _ in range(count):
        x = rng.normal(size=(32, 3))
        yield x, (x[:, 0] > 0).astype(int)


def log_loss(model: Any, x: Any, y: Any) -> float:
    p = np.clip(model.predict_proba(x)[np.arange(len(y)), y], 1e-9, 1)
    return -float(np.mean(np.log(p)))


def test_partial_fit_is_guarded_part_by_part() -> None:
    linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    model, guard = linear.SGDClassifier(loss="log_loss", random_state=0), Guard()
    steps = list(adapters.partial_fit(model, parts(50), guard, loss=log_loss, classes=[0, 1]))
    assert steps == list(range(50)) and guard.findings == []
    short = Guard(budget=Budget(hours=0.5), clock=minutes())
    steps = list(adapters.partial_fit(model, parts(200), short, loss=log_loss))
    assert 10 < len(steps) < 100
    with pytest.raises(UsageError, match="expected a model with partial_fit, got object"):
        list(adapters.partial_fit(object(), parts(1), guard, loss=log_loss))

"""The guard works inside the loops of other libraries, each tried with the real one."""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tenon.errors import TrainingError, UsageError
from tenon.ledger import Budget
from tenon.store import Store
from tenon.training import Guard, Plan, Rules, Run, adapters, track

NO_TORCH = "the extra 'torch' is not installed"


def minutes() -> Callable[[], float]:
    ticks: Iterator[int] = iter(range(1_000_000))
    return lambda: next(ticks) * 60.0


def found_in(store: Store, run: str) -> list[str]:
    return [one["code"] for record in track.runs(store) if record["id"] == run for one in record["findings"]]


# ── Lightning ────────────────────────────────────────────────────────────────────────────────────────────────────────


def fit_lightning(
    guard: Guard,
    folder: Path,
    *,
    poison: int = -1,
    steps: int = 30,
    half: bool = False,
    resume: bool = False,
    inner: bool = False,
    **more: Any,
) -> Any:
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
                return ((self.body if inner else self)(x) ** 2).mean()

            def validation_step(self, batch: Any, index: int) -> None:
                self.log("val_loss", (self(batch[0]) ** 2).mean())

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), lr=0.1)

        torch.manual_seed(0)
        rows = torch.utils.data.TensorDataset(torch.randn(steps * 8, 4))
        loader = torch.utils.data.DataLoader(rows, batch_size=8)
        if half:  # as Lightning scales losses on a GPU
            scaler = torch.amp.GradScaler("cpu", init_scale=2.0**6, growth_interval=8)
            plugins = importlib.import_module("lightning.pytorch.plugins")
            more["plugins"] = [plugins.MixedPrecision("16-mixed", "cpu", scaler=scaler)]
        trainer = library.Trainer(
            max_epochs=1,
            callbacks=[adapters.lightning(guard, checkpoint=folder / "kept.ckpt")],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=str(folder),
            **more,
        )
        path = {"ckpt_path": folder / "kept.ckpt"} if resume else {}
        trainer.fit(Net(), loader, val_dataloaders=loader, **path)
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


def test_lightning_names_the_module_of_a_step_that_calls_no_forward_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="'body''s input 0 already holds 32 values that are not finite"):
        fit_lightning(Guard(), tmp_path, poison=6, inner=True)


def test_a_validation_by_itself_is_nothing_to_the_guard(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    guard = Guard()
    trainer = fit_lightning(guard, tmp_path)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.full((8, 4), math.nan)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (found,) = trainer.validate(trainer.lightning_module, loader, verbose=False)
    assert math.isnan(found["val_loss"]) and guard.stopped is None


def test_lightning_goes_on_from_the_checkpoint_it_was_stopped_with(tmp_path: Path, store: Store) -> None:
    with Run.start(store, "a" * 12, "net") as run:
        guard = Guard(run=run, budget=Budget(hours=0.2), clock=minutes())
        stopped = fit_lightning(guard, tmp_path).global_step
    with Run.start(store, "a" * 12, "net") as run:
        again = fit_lightning(Guard(run=run), tmp_path, resume=True)
    assert again.global_step > stopped > 0
    assert track.curves(store, run.id)["loss"][0].tolist() == list(range(again.global_step)), "of both attempts"


def test_lightning_accumulates_scales_its_loss_and_the_guard_sees_the_loss_itself(tmp_path: Path, store: Store) -> None:
    with Run.start(store, "a" * 12, "net") as run:
        guard = Guard(run=run, plan=Plan(steps=15, constant=1.0))
        trainer = fit_lightning(guard, tmp_path, half=True, steps=120, accumulate_grad_batches=2)
    assert trainer.global_step == 60 and trainer.scaler.get_scale() >= 2.0**10, "it grew under way"
    assert guard.stopped is None and [one.code for one in guard.findings] == []
    curves = track.curves(store, "a" * 12)
    assert max(curves["loss"][1]) < 3 and len(curves["loss"][1]) == 60
    assert len(curves["val_loss"][1]) == 1 and curves["val_loss"][1][0] < curves["loss"][1][0]
    with pytest.raises(TrainingError, match="in row 0, 1, 2, 3, 4 and 3 more of the batch"):
        fit_lightning(Guard(), tmp_path, half=True, accumulate_grad_batches=2, poison=7)


# ── Hugging Face ─────────────────────────────────────────────────────────────────────────────────────────────────────


def fit_hugging_face(guard: Guard, folder: Path, *, poison: int = -1, resume: bool = False, **more: Any) -> Any:
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

        torch.manual_seed(0)
        given: dict[str, Any] = {"max_grad_norm": 0.0, "save_strategy": "no", **more}
        arguments = library.TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=8,
            num_train_epochs=1,
            logging_steps=1,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            **given,
        )
        trainer = library.Trainer(
            model=Net(),
            args=arguments,
            train_dataset=Rows(),
            eval_dataset=Rows(),
            callbacks=[adapters.hugging_face(guard)],
        )
        trainer.train(resume_from_checkpoint=resume or None)
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


def test_an_evaluation_by_itself_is_nothing_to_the_guard(tmp_path: Path) -> None:
    guard = Guard()
    trainer = fit_hugging_face(guard, tmp_path)
    trainer.model.body.bias.data.fill_(math.nan)
    assert math.isnan(trainer.evaluate()["eval_loss"]) and guard.stopped is None


def test_a_stopped_trainer_of_hugging_face_goes_on_to_the_same_weights(tmp_path: Path, store: Store) -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    whole = fit_hugging_face(Guard(), tmp_path / "whole")
    with Run.start(store, "b" * 12, "net") as run:
        fit_hugging_face(Guard(run=run, budget=Budget(hours=0.2), clock=minutes()), tmp_path / "parts")
    with Run.start(store, "b" * 12, "net") as run:
        again = fit_hugging_face(Guard(run=run), tmp_path / "parts", resume=True)
    assert track.curves(store, run.id)["loss"][0].tolist() == list(range(1, 21)), "of both attempts"
    assert again.state.global_step == 20
    assert torch.equal(again.model.body.weight, whole.model.body.weight)


def test_a_trainer_of_hugging_face_accumulates_in_bf16_evaluates_and_logs_under_a_guard(
    tmp_path: Path, store: Store
) -> None:
    with Run.start(store, "b" * 12, "net") as run:
        guard = Guard(run=run, plan=Plan(steps=10, constant=5.0))
        more: dict[str, Any] = {
            "gradient_accumulation_steps": 2,
            "bf16": True,
            "max_grad_norm": 1.0,
            "eval_strategy": "epoch",
        }
        trainer = fit_hugging_face(guard, tmp_path, **more)
    assert trainer.state.global_step == 10 and guard.findings == []
    curves = track.curves(store, "b" * 12)
    assert len(curves["loss"][1]) == 10 and len(curves["eval_loss"][1]) == 1 and "grad_norm" in curves
    with pytest.raises(TrainingError, match="expected a finite gradient norm, got nan - at run/2"):
        fit_hugging_face(Guard(), tmp_path, poison=5, **more)


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
    library = pytest.importorskip("lightgbm", reason="lightgbm is not installed")
    silent = adapters.lightgbm(Guard(), held_out="valid")
    with pytest.raises(
        UsageError, match=r"got 'valid' - at adapters\.lightgbm; give valid_sets, valid_names and a metric"
    ):
        library.train({"verbose": -1}, library.Dataset(*regression(False)), 3, callbacks=[silent])


def test_lightgbm_is_refused_at_a_metric_that_is_no_number_and_what_it_tells_is_logged(store: Store) -> None:
    library = pytest.importorskip("lightgbm", reason="lightgbm is not installed")
    x, y = regression(shuffled=False)

    def spoiled(_: Any, data: Any) -> tuple[str, float, bool]:
        calls.append(1)
        return "mine", math.nan if len(calls) == 6 else 1.0 / len(calls), False

    def fitted(guard: Guard, metric: str, **more: Any) -> Any:
        model = library.LGBMRegressor(n_estimators=30, verbose=-1, n_jobs=1, num_leaves=7, metric=metric)
        return model.fit(x, y, eval_X=(x,), eval_y=(y,), callbacks=[adapters.lightgbm(guard)], **more)

    calls: list[int] = []
    with pytest.raises(TrainingError, match=r"expected a finite loss, got nan - at run/5"):
        fitted(Guard(), "None", eval_metric=lambda a, b: spoiled(a, b))
    with Run.start(store, "c" * 12, "trees") as run:
        guard = Guard(run=run, budget=Budget(hours=0.2), clock=minutes())
        trees = fitted(guard, "l2").n_estimators_
    assert 5 < trees < 30 and guard.stopped is not None and guard.stopped.code == "training/budget-spent"
    assert found_in(store, "c" * 12) == ["training/budget-spent"]
    ((steps, losses),) = track.curves(store, "c" * 12).values()
    assert len(steps) == trees and losses[-1] < losses[0]


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


def test_partial_fit_is_refused_at_a_nan_and_stopped_when_it_learns_nothing(store: Store) -> None:
    linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")

    def fitted(guard: Guard, loss: Any) -> Iterator[int]:
        model = linear.SGDClassifier(loss="log_loss", random_state=0)
        yield from adapters.partial_fit(model, parts(400), guard, loss=loss, classes=[0, 1])

    with Run.start(store, "d" * 12, "linear") as run, pytest.raises(TrainingError, match=r"got nan - at d+/1;"):
        list(fitted(Guard(run=run), lambda model, x, y: math.nan))
    assert found_in(store, "d" * 12) == ["training/loss-not-finite"]
    with Run.start(store, "e" * 12, "linear") as run:
        guard = Guard(run=run, plan=Plan(steps=400, constant=math.log(2)))
        for step in fitted(guard, log_loss):
            loss, *mixed = math.log(2) + 0.001 * np.random.default_rng(step).standard_normal(17)
            if step % 20 == 19 and not guard.evaluated(step, loss, mixed=mixed):
                break
    assert guard.stopped is not None and guard.stopped.code == "training/hopeless"
    assert len(track.curves(store, "e" * 12)["loss"][0]) == step == 119

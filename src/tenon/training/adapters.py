"""The guard inside other people's loops: Lightning, Hugging Face Trainer, LightGBM, scikit-learn's partial_fit.

Each adapter is a function that takes a guard and returns what the library calls a callback. The libraries ask for a
class of theirs to be inherited from, so those classes are made inside the functions: nothing is imported before it is
used, and no class of tenon's inherits. All of them ask the guard before the optimiser steps, and turn its answers into
the library's own way of stopping: False ends the training and keeps the model; what is not to be kept is raised as
TrainingError through the library, which passes it on.

LightGBM and scikit-learn have no optimiser step to come before: the guard is asked after each tree or each part, and
what it refuses has already been added. A guard with a run logs there what the library tells: losses, and what was held
out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tenon.errors import MissingError, UsageError, missing_extra, sentence
from tenon.training.guard import Guard


def lightning(guard: Guard, *, checkpoint: Path | str | None = None) -> Any:
    """Return a Lightning callback: the loss and gradients of every step, before the optimiser; validation losses too.

    A validation metric named `val_loss` goes to `guard.evaluated`. A run that is told to stop and may be kept writes
    Lightning's own checkpoint to `checkpoint`, from which `fit(ckpt_path=...)` goes on.
    """
    library: Any = None
    for name in ("lightning.pytorch", "pytorch_lightning"):
        library = library or _module(name)
    if library is None:
        raise _absent("lightning", "guard a Lightning trainer")

    class TenonGuard(library.Callback):  # type: ignore[misc, name-defined, unused-ignore]
        """Asks the guard at each optimiser step of a Lightning trainer."""

        def __init__(self) -> None:
            super().__init__()
            self.loss: Any = None

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            optimizers = trainer.optimizers
            guard.watch(pl_module, optimizers[0] if optimizers else None, scaler=getattr(trainer, "scaler", None))

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            _resumed(guard, trainer.global_step)

        def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
            # With a loss scaler it comes scaled, by a scale that jumps by itself.
            scale = trainer.scaler.get_scale() if getattr(trainer, "scaler", None) is not None else 1.0
            self.loss = loss.detach() * (trainer.accumulate_grad_batches / scale)

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            step = trainer.global_step
            if not guard.step(step, loss=self.loss):
                trainer.should_stop = True
            _log(guard, step, loss=self.loss)

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if guard.ending or guard.stopped is not None:
                trainer.should_stop = True
                if checkpoint is not None and not guard.suspect:
                    trainer.save_checkpoint(checkpoint)

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            value = trainer.callback_metrics.get("val_loss")
            fitting = trainer.state.fn == "fit" and not trainer.sanity_checking  # and no `validate` by itself
            if value is None or not fitting or guard.stopped is not None:
                return
            if not guard.evaluated(trainer.global_step, value):
                trainer.should_stop = True
            _log(guard, trainer.global_step, val_loss=value)

        def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
            guard.close()

    return TenonGuard()


def hugging_face(guard: Guard) -> Any:
    """Return a callback for Hugging Face's Trainer: gradients before every optimiser step, losses as they are logged.

    The Trainer tells its callbacks the loss only when it logs it; `logging_steps=1` shows the guard every step's.
    Evaluation losses go to `guard.evaluated`. A run that is told to stop and may be kept is saved by the Trainer,
    and goes on with `resume_from_checkpoint`.
    """
    library = _module("transformers")
    if library is None:
        raise _absent("transformers", "guard a Hugging Face Trainer")

    class TenonGuard(library.TrainerCallback):  # type: ignore[misc, name-defined, unused-ignore]
        """Asks the guard at each optimiser step of a Trainer, and with each loss it logs."""

        training = False  # and not in an `evaluate` by itself

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            self.training = True
            given = kwargs.get("optimizer")  # Accelerate's wrapper around the optimiser, with the scaler of fp16
            guard.watch(model, getattr(given, "optimizer", given), scaler=getattr(given, "scaler", None))
            if state.global_step:
                _resumed(guard, state.global_step + 1)  # it tells of a step once it is done

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if guard.stopped is None and not guard.step(state.global_step):
                control.should_training_stop = True

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            logs = logs or {}
            if not self.training:
                return
            _log(guard, state.global_step, **{name: one for name, one in logs.items() if isinstance(one, (int, float))})
            if guard.stopped is not None:
                return
            if "loss" in logs and not guard.told(state.global_step, logs["loss"]):
                control.should_training_stop = True
            if "eval_loss" in logs and guard.stopped is None:
                control.should_training_stop |= not guard.evaluated(state.global_step, logs["eval_loss"])

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if guard.ending or guard.stopped is not None:
                control.should_training_stop = True
                control.should_save = not guard.suspect

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.training = False
            guard.close()

    return TenonGuard()


def lightgbm(guard: Guard, *, held_out: str = "") -> Callable[[Any], None]:
    """Return a LightGBM callback: the first metric of the first set is the loss; that of `held_out` is evaluated.

    A stop ends the boosting as early stopping does, with the trees so far. Metrics of which more is better are
    negated before they are shown.
    """
    library = _module("lightgbm")
    if library is None:
        raise missing_extra("lightgbm", "train", "guard its training")

    def asked(env: Any) -> None:
        results = env.evaluation_result_list or []
        losses = {str(one[0]): -float(one[2]) if one[3] else float(one[2]) for one in reversed(results)}
        if held_out and held_out not in losses:
            hint = (
                f"the sets are {', '.join(sorted(losses))}" if losses else "give valid_sets, valid_names and a metric"
            )
            raise UsageError(sentence("a set that is evaluated", f"'{held_out}'", at="adapters.lightgbm", hint=hint))
        first = next((name for name, *_ in results if name != held_out), None)
        _log(guard, env.iteration, **{f"{one[0]}_{one[1]}": float(one[2]) for one in results})
        go_on = guard.step(env.iteration, loss=losses[first] if first is not None else None)
        if go_on and held_out in losses:
            go_on = guard.evaluated(env.iteration, losses[held_out])
        if not go_on:
            raise library.callback.EarlyStopException(env.iteration, results)

    return asked


def partial_fit(
    model: Any,
    parts: Iterable[tuple[Any, Any]],
    guard: Guard,
    *,
    loss: Callable[[Any, Any, Any], float],
    **options: Any,
) -> Iterator[int]:
    """Fit a scikit-learn model part by part under a guard; gives the step after each part that was fitted.

    ``loss(model, x, y)`` is measured on each part before it is fitted, so that it is a loss on rows not yet seen.
    `options` go to the model's first `partial_fit` (`classes=`). The loop that takes the steps may tell
    `guard.evaluated` and leave when it says so.
    """
    if not hasattr(model, "partial_fit"):
        raise UsageError(sentence("a model with partial_fit", type(model).__name__, at="adapters.partial_fit"))
    for step, (x, y) in enumerate(parts):
        if step:
            found = float(loss(model, x, y))
            _log(guard, step, loss=found)
            if not guard.step(step, loss=found):
                return
        model.partial_fit(x, y, **(options if not step else {}))
        yield step


def _log(guard: Guard, step: int, **values: Any) -> None:
    """Log what a library told, in the guard's run when there is one."""
    if guard.run is not None:
        guard.run.log(step, **values)


def _resumed(guard: Guard, step: int) -> None:
    """Have the guard's run keep what it logged before it was begun again at this step."""
    if hasattr(guard.run, "resumed"):
        guard.run.resumed(step)


def _module(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError:
        return None


def _absent(package: str, purpose: str) -> MissingError:
    return MissingError(
        sentence(f"the package '{package}' to {purpose}", "an environment without it", hint=f"pip install {package}")
    )

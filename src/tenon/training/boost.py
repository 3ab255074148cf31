"""The built-in LightGBM trainer: sane defaults, early stopping on validation, the same trees for the same seed.

It learns from the float32 matrix of the ordinal encoding (see `tenon.encoding` for why not LightGBM's own categories).
The loss on the validation part after each tree is logged to the run; the guard is asked after each tree, so a budget
stops it with the best trees so far. `deterministic` and `force_row_wise` make sums independent of threads (LightGBM,
"Parameters"). Defaults were tried on the validation months of the flights example: 15 to 63 leaves, 100 or 500 rows in
a leaf and 30 to 100 % of the columns are within noise of each other (ROC AUC 0.762 to 0.764), so the middle is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tenon import engine
from tenon.errors import missing_extra
from tenon.training.data import Data
from tenon.training.fitted import Fitted
from tenon.training.option import Options

DEFAULTS: Mapping[str, Any] = {
    "learning_rate": 0.05,
    "num_leaves": 31,
    "min_data_in_leaf": 100,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 1.0,
}
SMALL_ROWS = 5_000  # below this a leaf may hold fewer rows


def lightgbm(data: Data, run: Any, options: Options) -> Fitted:
    """Boost trees until validation has not improved for `patience` trees, the guard stops, or `rounds` is reached."""
    try:
        import lightgbm as lgb
    except ImportError as error:
        raise missing_extra("lightgbm", "train", "train boosted trees") from error
    encoding = data.encoding("ordinal")
    encode = encoding.compile()
    parameters = settings(data, options)
    train = lgb.Dataset(encode(data.train.x.to_dict()), data.train.y, params=parameters)
    valid = lgb.Dataset(encode(data.valid.x.to_dict()), data.valid.y, reference=train, params=parameters)
    best = _Best()

    def watch(env: Any) -> None:
        loss = float(env.evaluation_result_list[0][2])
        step = env.iteration + 1
        run.log(step, valid_loss=loss)
        # The guard reads what was spent; whether the loss still falls is early stopping's to say, so it is not shown.
        if best.seen(step, loss) >= options.patience or not options.guard.step(step):
            raise lgb.callback.EarlyStopException(best.step - 1, env.evaluation_result_list)

    booster = lgb.train(
        parameters, train, num_boost_round=options.rounds, valid_sets=[valid], valid_names=["valid"], callbacks=[watch]
    )
    shares = booster.feature_importance("gain", iteration=best.step).tolist()
    total = sum(shares) or 1.0
    return Fitted(
        model=booster,
        encoding=encoding,
        task=data.task,
        trainer="lightgbm",
        rounds=best.step,
        gain={name: share / total for name, share in zip(encoding.names, shares, strict=True)},
        notes={**parameters, "rounds": best.step, "rounds_tried": best.last},
    )


def settings(data: Data, options: Options) -> dict[str, Any]:
    """Return LightGBM's parameters for this data and these options."""
    parameters = {
        "objective": "binary" if data.task == "binary" else "regression",
        "metric": "binary_logloss" if data.task == "binary" else "l2",
        **DEFAULTS,
        "seed": options.seed,
        "num_threads": options.threads or idle_cores(),
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }
    if len(data.train) < SMALL_ROWS:
        parameters["min_data_in_leaf"] = max(5, len(data.train) // 50)
    return parameters


def idle_cores() -> int:
    """Count the cores this process may use that stand idle now, at least one; takes a tenth of a second to look.

    LightGBM's threads wait for each other by spinning: on a machine that others keep busy, two can be ten times slower
    than one (measured: 55 s against 4 s). The trees are the same for any number.
    """
    import psutil

    every = psutil.cpu_count() or 1
    busy = psutil.cpu_percent(interval=0.1) / 100 * every
    return int(max(1, min(engine.cores(), round(every - busy))))


class _Best:
    """The best step so far, and how long ago it was."""

    __slots__ = ("last", "loss", "step")

    def __init__(self) -> None:
        self.step = self.last = 1
        self.loss = float("inf")

    def seen(self, step: int, loss: float) -> int:
        self.last = step
        if loss < self.loss:
            self.step, self.loss = step, loss
        return step - self.step

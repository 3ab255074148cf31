"""Scoring one row and many: tenon's Predictor beside LightGBM's own predict and a scikit-learn pipeline.

    python bench/predict.py [--record]

All start from the same raw columns (17 numbers, 3 categories) and answer with a forest of 200 trees. LightGBM cannot
read texts, so it is given tenon's encoding; how long it takes on a matrix that is ready is a row of its own. The
pipeline is scikit-learn's histogram gradient boosting behind an ordinal encoder. Answers are compared before they are
timed. One thread each. The last tables are the forms of that forest and of a network (three layers, 512 wide; needs
PyTorch), as `model.build_variants` measured and judged them on 6,000 test rows.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import measure
import numpy as np
import polars as pl

measure.needs("lightgbm", "onnx", "sklearn")  # the extra `train`

from sklearn.compose import ColumnTransformer  # noqa: E402
from sklearn.ensemble import HistGradientBoostingClassifier  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import OrdinalEncoder  # noqa: E402
from threadpoolctl import threadpool_limits  # noqa: E402

from tenon import Gate, model, training  # noqa: E402

ROWS = 60_000
TREES = 200
WIDTH = 512


def make_data() -> training.Data:
    """Rows with a truth that is neither linear nor easy."""
    rng = np.random.default_rng(0)
    numbers = {f"n{i}": rng.standard_normal(ROWS) for i in range(17)}
    texts = {
        f"c{i}": np.array([f"level {j}" for j in range(size)])[rng.integers(0, size, ROWS)]
        for i, size in enumerate((3, 16, 100))
    }
    score = numbers["n0"] ** 2 + numbers["n1"] * numbers["n2"] + (texts["c1"] == "level 3") - 1.5
    y = (rng.random(ROWS) < 1 / (1 + np.exp(-score))).astype(np.float64)
    x = pl.DataFrame({**numbers, **texts})
    cut = (0, int(ROWS * 0.8), int(ROWS * 0.9), ROWS)
    train, valid, test = (training.Part(x[a:b], y[a:b]) for a, b in pairwise(cut))
    kinds = dict.fromkeys(numbers, "number") | dict.fromkeys(texts, "category")
    return training.Data(train=train, valid=valid, test=test, names=tuple(kinds), kinds=kinds)


class Unlogged:
    """Stands in for a run: training is not what is measured."""

    def log(self, step: int, **metrics: float) -> None:
        """Forget it."""


def train(data: training.Data) -> training.Fitted:
    """Train exactly TREES trees."""
    options = training.Options(guard=training.Guard(), rounds=TREES, patience=TREES)
    return training.TRAINERS["lightgbm"](data, Unlogged(), options)


def peer(data: training.Data) -> Any:
    """Fit scikit-learn's own boosting on the same raw columns."""
    texts = [i for i, name in enumerate(data.names) if data.kinds[name] == "category"]
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    columns = ColumnTransformer([("texts", encoder, texts)], remainder="passthrough")
    pipeline = make_pipeline(columns, HistGradientBoostingClassifier(max_iter=TREES, early_stopping=False))
    return pipeline.fit(data.train.x.to_numpy(), data.train.y)


def network(data: training.Data) -> training.Fitted:
    """Train a network of three layers for two rounds over the rows."""
    import torch

    torch.manual_seed(0)
    matrix = data.matrix("onehot")
    sizes = [matrix.encoding.width, WIDTH, WIDTH, WIDTH]
    layers = [part for pair in pairwise(sizes) for part in (torch.nn.Linear(*pair), torch.nn.ReLU())]
    module = torch.nn.Sequential(*layers, torch.nn.Linear(WIDTH, 1), torch.nn.Sigmoid())
    optimiser = torch.optim.Adam(module.parameters(), lr=0.001)
    x, y = torch.from_numpy(matrix.train), torch.from_numpy(data.train.y).float()[:, None]
    for order in (torch.randperm(len(x)) for _ in range(2)):
        for part in order.split(256):
            loss = torch.nn.functional.binary_cross_entropy(module(x[part]), y[part])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return training.Fitted(model=module, encoding=matrix.encoding, task="binary", trainer="network", threshold=0.5)


def forms(what: str, compiled: model.Compiled, data: training.Data) -> str:
    """Write the forms of a model, what they take and what they change."""
    built = model.build_variants(compiled, data.test.x, data.test.y, Gate(), usd_per_core_hour=0.04)
    rows = [
        [
            f"**{one.name}**" if one.chosen else one.name,
            f"{one.size_bytes:,}",
            f"{one.p50_ms * 1e3:.1f}",
            f"{one.rows_per_s:,.0f}",
            f"{one.usd_per_1000:.1e}",
            one.flips,
            f"{one.gain['value']:+.1e} (-{one.allowed_loss:.1e} allowed)" if one.gain else "",
            one.said,
        ]
        for one in built.variants
    ]
    header = ["form", "bytes", "one row, µs", "rows/s, batches of 256", "$ for 1,000", "flips", built.metric, "said"]
    return measure.rows(f"Forms of {what}, {built.rows:,} test rows", header, rows)


def main() -> None:
    """Print the tables."""
    measure.options(__doc__).parse_args()
    data = make_data()
    fitted = train(data)
    compiled = model.compile(fitted, data)
    predictor = model.Predictor.load(compiled.onnx, compiled.manifest)
    proof = model.parity(fitted, compiled, data.test.x, data.test.y)
    booster, encode, trees = fitted.model, fitted.encoding.compile(), fitted.rounds
    pipeline = peer(data)

    tables = []
    for count, repeats, times in ((1, 30, 100), (100, 20, 20), (6_000, 5, 1)):
        frame = data.test.x.head(count)
        columns, array, matrix = frame.to_dict(as_series=False), frame.to_numpy(), encode(frame.to_dict())
        np.testing.assert_allclose(predictor.score(columns), booster.predict(matrix, num_iteration=trees), atol=1e-5)
        candidates = {
            "tenon": lambda c=columns: predictor.score(c),
            "LightGBM, tenon's encoding": lambda c=columns: booster.predict(
                encode(c), num_iteration=trees, num_threads=1
            ),
            "LightGBM, matrix ready": lambda m=matrix: booster.predict(m, num_iteration=trees, num_threads=1),
            "scikit-learn pipeline": lambda a=array: pipeline.predict_proba(a)[:, 1],
        }
        repeated = {name: lambda body=body, n=times: [body() for _ in range(n)] for name, body in candidates.items()}
        with threadpool_limits(1):
            seconds = measure.turns(repeated, repeats=repeats)
        each = {name: [value / times for value in values] for name, values in seconds.items()}
        tables.append(measure.table(f"Scoring {count:,} row{'s' if count > 1 else ''}", each, work=count, unit="rows"))
    quick = model.latency(predictor, data.test.x)
    alone = f"One row at a time: p50 {quick.p50_ms:.3f} ms, p99 {quick.p99_ms:.3f} ms"
    said = f"{alone}; {proof.said}; {compiled.size_bytes:,} bytes."
    tables.append(forms(f"a forest of {TREES} trees", compiled, data))
    if measure.has("torch") and measure.has("onnxscript"):
        tables.append(forms(f"a network 3 x {WIDTH}", model.compile(network(data), data), data))
    measure.show("## Scoring", *tables, said, measure.machine("lightgbm", "scikit-learn", "onnxruntime", "numpy"))


if __name__ == "__main__":
    main()

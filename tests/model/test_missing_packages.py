"""Without the optional packages, what needs them says how to get them, and the baselines still train."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
for name in ("lightgbm", "onnx", "onnxmltools", "skl2onnx", "sklearn", "threadpoolctl", "torch"):
    sys.modules[name] = None  # what an environment without the extras answers to an import

import numpy as np
import polars as pl
from tenon import model, training
from tenon.errors import MissingError

rng = np.random.default_rng(0)
x, y = pl.DataFrame({"n": rng.normal(0, 1, 300)}), (rng.random(300) < 0.5) * 1.0
part = training.Part(x, y)
data = training.Data(train=part, valid=part, test=part, names=("n",), kinds={"n": "number"})

class Unlogged:
    guard = None
    def log(self, step, **metrics): pass
    def finding(self, finding): pass

outcome = training.experiment(data, "logistic", Unlogged())
print(outcome.baseline)
for work in (lambda: training.experiment(data, "lightgbm", Unlogged()), lambda: model.compile(outcome.fitted, data)):
    try:
        work()
    except MissingError as error:
        print(error)
"""


def test_without_the_extra_baselines_train_and_the_rest_names_what_to_install() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    baseline, lightgbm, onnx = done.stdout.splitlines()
    assert baseline == "constant"
    assert "expected the package 'lightgbm' to train boosted trees" in lightgbm
    assert "expected the package 'onnx' to compile a model" in onnx
    assert lightgbm.endswith("pip install 'tenon[train]'")

"""Without PyTorch the prediction says how to get it, and importing its words costs nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from pathlib import Path
sys.modules["torch"] = None  # what an environment without the extra answers to an import
from tenon.errors import MissingError
from tenon.training.memory import Question, find, fit_step
try:
    fit_step(Question(path=Path(sys.argv[1]), device=find("h100"), batch=1))
except MissingError as error:
    print(error)
"""


def test_without_torch_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("", "utf-8")
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "expected the package 'torch' to predict the memory of a training step" in done.stdout
    assert "pip install 'tenon[torch]'" in done.stdout

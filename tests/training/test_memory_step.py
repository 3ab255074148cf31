"""A training step is predicted without a GPU: exact traces, careful verdicts, plans that fit, faults in words."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tenon.errors import InputError, TrainingError
from tenon.limits import Answer, FitLimits

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="extra 'torch' is not installed: PyTorch comes with it"
)

MIB = 1024**2
GPT = """
import torch
from torch import nn
from torch.nn import functional

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(64), nn.Linear(64, 192), nn.Linear(64, 64)
        self.mix = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))

    def forward(self, x):
        rows, length, width = x.shape
        q, k, v = (part.view(rows, length, 4, 16).transpose(1, 2) for part in self.qkv(self.norm(x)).split(64, 2))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, length, width))
        return x + self.mix(x)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(1_000, 64)
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.head = nn.Linear(64, 1_000, bias=False)

    def forward(self, words):
        x = self.embed(words)
        for block in self.blocks:
            x = block(x)
        return self.head(x)

def model():
    return Net().to("cuda")

def optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)

def batch(size):
    words = torch.randint(0, 1_000, (size, 64), device="cuda")
    return words, words.cuda()

def loss(model, batch):
    with torch.autocast("cuda", dtype=torch.bfloat16):
        said = model(batch[0])
        value = functional.cross_entropy(said.view(-1, 1_000), batch[1].view(-1))
    print("loss", value.item())
    return value
"""


def written(folder: Path, text: str) -> Path:
    (folder / "train.py").write_text(text, "utf-8")
    return folder


def asked(folder: Path, *, gpu: str = "h100-80gb", batch: int = 8, total_gib: float | None = None, **rest: Any) -> Any:
    from tenon.training.memory import Question, find, fit_step

    plan = rest.pop("plan", True)
    question = Question(path=folder, device=find(gpu, total_gib=total_gib), batch=batch, **rest)
    return fit_step(question, plan=plan)


@pytest.fixture(scope="module")
def fitting(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return asked(written(tmp_path_factory.mktemp("fits"), GPT), batch=32)


# ── the trace ────────────────────────────────────────────────────────────────────────────────────────────────────────


def highest(config: Any, *, fake: bool) -> int:
    from torch._subclasses.fake_tensor import FakeTensorMode

    from tenon.training.memory.device import find
    from tenon.training.memory.record import Recorder
    from tenon.training.memory.step import Change, Job, Parts, run

    recorder = Recorder(find("h100-80gb"), fake)
    mode = FakeTensorMode(allow_non_fake_inputs=True) if fake else None
    parts = Parts(path=Path(), **config)
    run(Job(parts=parts, change=Change(), batch=16, recorder=recorder, mode=mode))
    return recorder.trace().counted(without=("workspace",)).peak_bytes()


@pytest.mark.parametrize("again", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["AdamW", "SGD", "Adafactor"])
def test_a_fake_step_holds_to_the_byte_what_a_real_one_holds(kind: str, bf16: bool, again: bool) -> None:
    import torch
    from torch.utils.checkpoint import checkpoint

    def loss(model: Any, batch: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            x = batch[0]
            for layer in model:
                x = checkpoint(layer, x, use_reentrant=False) if again else layer(x)
            return torch.nn.functional.cross_entropy(x, batch[1])

    body = [torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU()) for _ in range(3)]
    config = {
        "model": lambda: torch.nn.Sequential(*(type(one)(torch.nn.Linear(64, 64), torch.nn.GELU()) for one in body)),
        "optimizer": lambda model: getattr(torch.optim, kind)(model.parameters(), lr=0.01),
        "batch": lambda size: (torch.randn(size, 64), torch.randint(0, 64, (size,))),
        "loss": loss,
    }
    assert highest(config, fake=True) == highest(config, fake=False)


def test_every_operator_that_autocast_treats_on_cuda_is_treated() -> None:
    import torch

    from tenon.training.memory import emulate

    def treated(key: str) -> set[str]:
        names = torch._C._dispatch_get_all_op_names()
        has = torch._C._dispatch_has_kernel_for_dispatch_key
        return {name.removeprefix("aten::") for name in names if name.startswith("aten::") and has(name, key)}

    ours = set(emulate.CAST)
    inner = {  # called by operators that are cast already, or kernels of CUDA alone
        "_convolution",
        "_scaled_dot_product_flash_attention",
        "_thnn_fused_gru_cell",
        "_thnn_fused_lstm_cell",
        "convolution",
        "cudnn_convolution",
        "cudnn_convolution_transpose",
    }
    assert treated("AutocastCUDA") - treated("AutocastCPU") - ours == inner
    assert ours <= treated("AutocastCUDA")


CASTS = """
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from tenon.training.memory import emulate, find
kept = emulate.install(find("h100-80gb"), fake=True)
with FakeTensorMode(), torch.autocast("cuda", dtype=torch.bfloat16):
    half, full = torch.ones(2, 4, 8, 8, dtype=torch.bfloat16), torch.ones(2, 4, 8, 8)
    said = {
        "matmul": full @ full,
        "softmax": half.softmax(-1),
        "layer_norm": functional.layer_norm(half, (8,)),
        "sum": half.sum(),
        "gelu": functional.gelu(half),
        "add": half + full,
        "cat": torch.cat([half, full]),
        "exp": half.exp(),
        "interpolate": functional.interpolate(half, scale_factor=2),
        "cross_entropy": functional.cross_entropy(half[:, :, 0, 0], torch.zeros(2, dtype=torch.long)),
        "attention": functional.scaled_dot_product_attention(full, full, full),
        "pool": functional.adaptive_avg_pool2d(half, 1),
    }
    print({name: str(tensor.dtype).removeprefix("torch.") for name, tensor in said.items()})
"""


def test_autocast_gives_the_types_that_cuda_gives() -> None:
    # From PyTorch's "CUDA Ops that can autocast" (docs/source/amp.md): what matmul, softmax, norms and losses return.
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", CASTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = dict(part.split(": ") for part in done.stdout.strip().strip("{}").replace("'", "").split(", "))
    half = {name for name, dtype in said.items() if dtype == "bfloat16"}
    assert half == {"matmul", "gelu", "attention", "pool"}


# ── the prediction ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_step_is_predicted_part_by_part_and_what_fits_is_said_to_fit(fitting: Any) -> None:
    found = fitting
    parameters = found.step.counts["parameters"]
    parts = found.step.peak.parts
    assert found.verdict == "fits"
    assert found.answer is Answer.OK
    assert found.findings == ()
    found.require()
    rounding = 512 * 100
    assert 4 * parameters <= parts["parameters"] <= 4 * parameters + rounding
    assert 8 * parameters <= parts["optimiser state"] <= 8 * parameters + 2 * rounding
    assert parts["workspace"] == 2 * 32 * 1024**2  # cuBLAS in two threads on Hopper
    assert found.step.peak.module in ("", "head")  # logits and their loss are the largest thing here
    assert sum(parts.values()) == found.step.peak.allocated_bytes <= found.step.peak.reserved_bytes
    assert found.step.seconds > 0
    assert any("taken for 1.0" in note for note in found.step.notes)
    assert json.loads(json.dumps(found.to_dict()))["verdict"] == "fits"


def test_a_model_that_is_built_on_the_meta_device_is_predicted_as_if_it_had_weights(
    tmp_path: Path, fitting: Any
) -> None:
    text = GPT.replace('    return Net().to("cuda")', "    with torch.device('meta'):\n        return Net()")
    assert text != GPT
    found = asked(written(tmp_path, text), batch=fitting.question.batch)
    assert found.step.peak == fitting.step.peak and found.step.extrapolated == ""


def test_what_does_not_fit_is_refused_with_the_cheapest_change_that_does(tmp_path: Path) -> None:
    folder = written(tmp_path, GPT)
    found = asked(folder, gpu="l4", batch=8_192, total_gib=9.0)
    assert not found
    assert found.verdict == "does not fit"
    assert found.plan is not None
    assert found.plan.said in found.reason
    fitting = [plan for plan in found.plans if plan.fits]
    assert {"activation checkpointing"} & {plan.said for plan in found.plans}
    assert found.plan.cost == min(plan.cost for plan in fitting if plan.keeps_result)
    assert all(plan.need_bytes <= found.question.usable_bytes for plan in fitting)
    with pytest.raises(TrainingError, match="expected a step that fits into"):
        found.require()
    assert [finding.code for finding in found.findings] == ["training/does-not-fit"]


def test_what_fits_only_without_its_margin_is_too_close_to_call_and_refused(fitting: Any) -> None:
    context, at = fitting.question.device.context_bytes, fitting.step.peak
    for more, verdict in ((10 * MIB, "too close to call"), (-at.reserve_bytes - MIB, "does not fit")):
        device = replace(fitting.question.device, total_bytes=context + at.reserved_bytes + more)
        close = replace(fitting, question=replace(fitting.question, device=device))
        assert close.verdict == verdict
        assert close.answer is Answer.NEVER
        assert ("too close to call" in close.reason) == (more > 0)


def test_a_step_whose_shapes_depend_on_values_is_extrapolated_and_says_so(tmp_path: Path, fitting: Any) -> None:
    text = GPT.replace("value = functional", "said = said[batch[1] >= 0]\n        value = functional")
    found, exact = asked(written(tmp_path, text), batch=32), fitting
    assert "DynamicOutputShape" in found.step.extrapolated
    assert found.margin.relative >= 0.2
    assert found.step.counts["parameters"] == exact.step.counts["parameters"]
    assert found.needed_bytes >= exact.step.peak.reserved_bytes
    assert found.step.peak.allocated_bytes == pytest.approx(exact.step.peak.allocated_bytes, rel=0.25)


def test_without_a_gpu_the_gate_of_a_script_stands_open(tmp_path: Path) -> None:
    import torch

    from tenon.store import Store
    from tenon.training.memory import gate, here, remember

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert here() is None
    assert gate(tmp_path / "none.py", 8) is None
    with Store.open(tmp_path) as store:
        assert remember(None, store) is None


# ── faults ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GPT.replace("def loss", "def lost"), "none named 'loss'"),
        (GPT.replace("return value", "return said"), "to return one number, got a tensor of shape"),
        ("raise RuntimeError('no data here')", "RuntimeError: no data here - at .*train.py:1"),
        (GPT.replace("x = self.embed(words)", "x = self.embed(words) @ words"), "RuntimeError: .* at .*train.py:"),
        (GPT.replace("return Net()", "import os; os._exit(3)"), "a process that ended with 3"),
        ("model = batch = loss = optimizer = print; import time; time.sleep(60)", "none after 1 s"),
    ],
    ids=[
        "a function missing",
        "no scalar",
        "a file that raises",
        "a model that raises",
        "a process that ends",
        "no end",
    ],
)
def test_a_fault_of_the_users_file_is_told_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    limits = FitLimits(step_s=1.0) if "sleep" in text else FitLimits()
    with pytest.raises(InputError, match=said):
        asked(written(tmp_path, text), limits=limits)


def test_a_folder_without_a_train_py_says_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a file train.py .* write train.py with model\(...\)"):
        asked(tmp_path)


def test_the_command_says_the_verdict_first_and_exits_one_when_it_does_not_fit(tmp_path: Path) -> None:
    folder = written(tmp_path, GPT)
    command = [sys.executable, "-m", "tenon", "fit", str(folder), "--gpu", "t4", "--batch", "8"]
    fits = subprocess.run(command, capture_output=True, text=True, check=False)
    assert fits.returncode == 0, fits.stderr
    assert fits.stdout.startswith("fits: ")
    small = subprocess.run(
        [*command, "--total-gib", "0.45", "--no-plan", "--json"], capture_output=True, text=True, check=False
    )
    assert small.returncode == 1
    assert json.loads(small.stdout)["verdict"] == "does not fit"

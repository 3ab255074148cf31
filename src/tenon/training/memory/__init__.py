"""Will a training step fit a GPU that is not here? Prediction from fake tensors, a plan, and what past runs teach.

`fit_step` (in `predict`) asks a `worker` process to run the user's `step` while a `record`er writes down every
allocation; the `trace` is replayed through the `allocator`; `plan` searches what would fit; `learned` is the margin
from measured runs; `launch` is the gate of a training script; `device` is the table of GPUs. `emulate` makes fake
tensors behave as on a GPU, in the worker alone.
"""

from __future__ import annotations

from tenon.training.memory.allocator import Allocator, Settings
from tenon.training.memory.device import DEVICES, Device, find
from tenon.training.memory.launch import admitted, asked, gate, here, remember, reserved, seen
from tenon.training.memory.learned import Margin, learn, margin
from tenon.training.memory.plan import Plan
from tenon.training.memory.predict import Question, Step, StepFit, fit_step
from tenon.training.memory.step import Change, stated
from tenon.training.memory.trace import Peak, Trace, peak

__all__ = [
    "DEVICES",
    "Allocator",
    "Change",
    "Device",
    "Margin",
    "Peak",
    "Plan",
    "Question",
    "Settings",
    "Step",
    "StepFit",
    "Trace",
    "admitted",
    "asked",
    "find",
    "fit_step",
    "gate",
    "here",
    "learn",
    "margin",
    "peak",
    "remember",
    "reserved",
    "seen",
    "stated",
]

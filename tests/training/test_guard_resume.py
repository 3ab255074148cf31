"""A run that is killed and resumed has the losses, bit for bit, of a run that never was."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenon import ledger
from tenon.config import Prices
from tenon.errors import CorruptError, InputError, UsageError
from tenon.ledger import Budget
from tenon.store import Store
from tenon.training import Guard, Rules
from tenon.training.checkpoint import STATE, Checkpoints, Keep
from tenon.training.order import Order
from tenon.training.plain import decode, encode
from tenon.training.ranks import Ranks
from tenon.training.resume import Resume
from tenon.training.track import Run, curves

torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed")
pytest.importorskip("safetensors", reason="the extra 'torch' is not installed")

# One process forks the runs, so that PyTorch is imported once; each is killed for real once it has done enough steps.
LOOP = """
import os, random, signal, sys, time
import numpy as np, torch
from pathlib import Path
from tenon.training import Guard, Rules
from tenon.training.checkpoint import Checkpoints, Keep
from tenon.training.order import Order
from tenon.training.resume import Resume
from tenon.training.track import Run
from tenon.store import Store

import torch._dynamo, torch.utils.data  # the first optimiser imports it: once, before there are children
nn = torch.nn
torch.set_num_threads(1)

def run(folder, out, steps, every, workers):
    torch.manual_seed(0); random.seed(0); np.random.seed(0)
    x = torch.randn(200, 8); y = x[:, :1] * 2
    order = Order(200, 16, seed=3)
    data = torch.utils.data.TensorDataset(x, y)
    loader = torch.utils.data.DataLoader(data, batch_sampler=order, num_workers=workers)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=steps + 1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=20)
    own = np.random.default_rng(5)
    tracked = Run.start(Store.open(Path(folder + "-store")), "r", "m")
    guard = Guard(run=tracked, rules=Rules(flat=False)).watch(model, optimizer, scaler=scaler)
    kept = Checkpoints(Path(folder), keep=Keep(last=2, best=1))
    resume = Resume(kept, every=every, guard=guard, model=model, own=own,
                    optimizer=optimizer, scheduler=scheduler, scaler=scaler, data=order)
    first = resume.restore()
    out = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    batches = order.forever(loader)
    for step in range(first, steps):
        a, b = next(batches)
        noise = own.normal() * 0.01 + np.random.normal() * 0.01 + random.random() * 0.01
        loss = ((model(a) - b + noise) ** 2).mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        guard.step(step, loss=loss)
        scaler.step(optimizer); scaler.update(); scheduler.step()
        os.write(out, f"{step:06} {loss.item().hex():>24}\\n".encode())
        tracked.log(step, loss=loss.item())
        resume.done(step, loss=loss)
    tracked.finish()

def fork(*words):
    child = os.fork()
    if child == 0:
        run(*words)
        os._exit(0)
    return child

def size(out):
    return os.path.getsize(out) if os.path.exists(out) else 0

root, steps, workers = sys.argv[1], 160, int(sys.argv[2])
assert os.waitpid(fork(root + "/a", root + "/whole.txt", steps, 10_000, 0), 0)[1] == 0
rng, out, killed, status = random.Random(workers), root + "/broken.txt", 0, None
while status is None:
    child, aim = fork(root + "/b", out, steps, 7, workers), size(out) + 32 * rng.randrange(10, 40)
    # Killed three times, unless it comes to its end sooner; then left alone.
    while status is None and (killed == 3 or size(out) < aim):
        time.sleep(0.001)
        ended, code = os.waitpid(child, os.WNOHANG)
        status = code if ended else None
    if status is None:
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        killed += 1
assert status == 0 and killed >= 1, (status, killed)
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_killed_at_random_steps_the_losses_go_on_bit_for_bit(quick_disk: Path, workers: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOOP, str(quick_disk), str(workers)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    expected = dict(lines(quick_disk / "whole.txt"))
    found = lines(quick_disk / "broken.txt")
    assert len(expected) == 160
    assert all(expected[step] == loss for step, loss in found)  # every step done again, too
    assert {step for step, _ in found} == set(range(160))
    assert len(found) > 160  # something was in fact done again
    with Store.open(quick_disk / "b-store", read_only=True) as store:
        steps, losses = curves(store, "r")["loss"]
    assert [(step, loss.hex()) for step, loss in zip(steps.tolist(), losses.tolist(), strict=True)] == [
        (step, expected[step]) for step in range(160)
    ]  # the curve of all attempts, without a hole, and no step twice


def lines(out: Path) -> list[tuple[int, str]]:
    return [(int(step), loss) for step, loss in (line.split() for line in out.read_text().splitlines())]


def parts() -> dict[str, Any]:
    torch.manual_seed(1)
    model = torch.nn.Linear(3, 1)
    return {"model": model, "optimizer": torch.optim.Adam(model.parameters(), lr=0.1)}


def test_a_checkpoint_is_written_when_due_by_steps_or_by_time(tmp_path: Path) -> None:
    now = [0.0]
    resume = Resume(tmp_path, every=5, seconds=100, clock=lambda: now[0], **parts())
    assert [step for step in range(12) if resume.done(step)] == [4, 9]
    now[0] = 101
    assert resume.done(12)
    assert resume.checkpoints.steps() == [9, 12]


def test_a_budget_that_is_spent_ends_in_a_checkpoint_of_a_whole_step(tmp_path: Path) -> None:
    """The step that spends the last of it is let finish and kept; the next is refused; a resume goes on after it."""

    def loop(folder: Path, budget: Budget, until: int) -> list[float]:
        ticks = iter(range(1_000_000))
        guard = Guard(budget=budget, rules=Rules(flat=False), clock=lambda: next(ticks) * 60.0)
        torch.manual_seed(7)
        given = parts()
        resume = Resume(folder, guard=guard, **given)
        losses = []
        for step in range(resume.restore(), until):
            loss = (given["model"](torch.rand(4, 3)) ** 2).mean()
            given["optimizer"].zero_grad()
            loss.backward()
            if not guard.step(step, loss=loss):
                break
            given["optimizer"].step()
            losses.append(loss.item())
            resume.done(step, loss=loss)
        resume.checkpoints.close()
        return losses

    whole = loop(tmp_path / "a", Budget(), 40)
    first = loop(tmp_path / "b", Budget(hours=0.2), 40)
    assert loop(tmp_path / "b", Budget(hours=0.2), 40) == []  # the budget is that of all attempts
    assert 0 < len(first) < 40
    assert Checkpoints(tmp_path / "b").steps() == [len(first) - 1]
    assert first + loop(tmp_path / "b", Budget(), 40) == whole


def test_what_was_used_before_a_checkpoint_counts_once_wherever_it_is_gone_on_from(tmp_path: Path) -> None:
    now = [0.0]

    def began() -> tuple[Guard, Resume]:
        guard = Guard(clock=lambda: now[0])
        return guard, Resume(tmp_path, guard=guard, **parts())

    guard, resume = began()
    now[0] = 30.0
    resume.save(4)
    now[0] = 50.0
    assert resume.restore() == 5 and guard.usage().wall_s == 50.0  # back in its own process, which has used all of it
    resume.checkpoints.close()
    guard, resume = began()
    assert resume.restore() == 5 and guard.usage().wall_s == 30.0
    now[0] = 60.0
    resume.save(9)
    resume.checkpoints.close()
    guard, resume = began()
    assert resume.restore() == 10 and guard.usage().wall_s == 40.0


def test_what_a_killed_attempt_used_is_charged_once_by_one_that_goes_on(tmp_path: Path) -> None:
    now = [0.0]

    def attempt(store: Store, step: int, seconds: float, *, killed: bool) -> float:
        """Go on, use so many seconds and keep a checkpoint; return the gigabytes held, unless the attempt is killed."""
        run = None if killed else Run.start(store, "r", "m", prices=Prices())
        now[0] = 0.0
        guard = Guard(clock=lambda: now[0], run=run)
        resume = Resume(tmp_path / "kept", guard=guard, **parts())
        resume.restore()
        now[0] = seconds
        resume.save(step)
        resume.checkpoints.close()
        return float(run.finish()["peak_bytes"]) / 1e9 if run is not None else 0.0

    def charged(store: Store) -> list[float]:
        """Return the gigabyte seconds that were charged for earlier attempts."""
        return [one.quantity for one in store.entries("r", "memory") if one.note == "earlier attempts"]

    with Store.open(tmp_path) as store:
        store.charge(ledger.memory("r", 1e6, Prices(), at=1.0))  # another run of this name, long ago
        attempt(store, 4, 30.0, killed=True)
        held = attempt(store, 9, 5.0, killed=False)
        assert charged(store) == [pytest.approx(30.0 * held)]
        attempt(store, 14, 20.0, killed=True)
        for step in (19, 24):  # and the last one finds nothing that is owed
            held = attempt(store, step, 0.0, killed=False)
            assert sum(charged(store)) == pytest.approx(55.0 * held, rel=0.1)


def test_a_suspect_state_is_kept_apart(tmp_path: Path) -> None:
    guard = Guard(rules=Rules(flat=False, diverged=False))
    resume = Resume(Checkpoints(tmp_path, keep=Keep(last=1)), guard=guard, **parts())
    rng = np.random.default_rng(0)
    for step in range(60):
        guard.step(step, loss=1.0 + 0.01 * rng.standard_normal())
    calm = guard.suspect
    resume.save(59)
    for step in range(60, 64):
        guard.step(step, loss=9.0)
    resume.save(63)
    assert (calm, guard.suspect) == (False, True)
    assert resume.checkpoints.steps() == [59]
    assert (tmp_path / "suspect-0000000063").is_dir()


def test_a_damaged_newest_one_is_passed_over_and_told_to_the_guard(tmp_path: Path) -> None:
    resume = Resume(tmp_path, every=5, **parts())
    for step in range(10):
        resume.done(step)
    (resume.checkpoints.path(9) / STATE).write_text("{")
    resume.checkpoints.close()
    guard = Guard()
    again = Resume(tmp_path, guard=guard, **parts())
    assert again.restore() == 5
    assert [one.code for one in guard.findings] == ["training/checkpoint-damaged"]


def test_another_setting_is_told_and_another_model_refused(tmp_path: Path) -> None:
    resume = Resume(tmp_path, **parts())
    resume.save(3)
    resume.checkpoints.close()
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        again = Resume(tmp_path, **parts())
        assert again.restore() == 4
    finally:
        torch.set_num_threads(threads)
    assert [one.code for one in again.findings] == ["training/resume-differs"]
    assert f"threads {threads} then, {threads + 1} now" in again.findings[0].said
    again.checkpoints.close()
    other = {**parts(), "model": torch.nn.Linear(5, 1)}
    with pytest.raises(InputError, match="expected a state that fits 'model'"):
        Resume(tmp_path, **other).restore()


def test_weights_of_another_type_than_the_run_began_with_are_told(tmp_path: Path) -> None:
    resume = Resume(tmp_path, **parts())
    resume.save(3)
    resume.checkpoints.close()
    double = torch.nn.Linear(3, 1).double()
    again = Resume(tmp_path, **{**parts(), "model": double})
    assert again.restore() == 4 and double.weight.dtype is torch.float64
    assert "weights float32 then, float64 now" in again.findings[0].said


def test_a_run_that_goes_back_goes_on_from_what_it_saved_since(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, keep=Keep(last=2, best=0))
    guard = Guard()
    resume = Resume(kept, guard=guard, **parts())
    for step in (9, 19, 29, 39):
        resume.save(step)
    assert resume.restore(29) == 30
    resume.save(31)
    assert (kept.steps(), sorted(one.name for one in tmp_path.glob("later-*"))) == ([29, 31], ["later-0000000039"])
    assert [one.code for one in guard.findings] == ["training/resume-differs"]
    assert "went back to step 31" in guard.findings[0].said and "(39)" in guard.findings[0].said
    assert Resume(kept, **parts()).restore() == 32
    Resume(kept, **parts()).save(3)  # a run that began anew keeps what it saves, too
    assert kept.steps() == [3] and len(list(tmp_path.glob("later-*"))) == 3


@pytest.mark.parametrize("step", [-1, 1.0, "3", None])
def test_a_step_under_which_no_checkpoint_would_be_found_is_refused(tmp_path: Path, step: Any) -> None:
    with pytest.raises(UsageError, match="expected a step that is a whole number of 0 or more"):
        Resume(tmp_path, **parts()).save(step)
    assert [one.name for one in tmp_path.iterdir()] == [".lock"]


def test_a_step_may_be_a_number_of_numpy(tmp_path: Path) -> None:
    resume = Resume(tmp_path, **parts())
    resume.save(np.int64(7))  # type: ignore[arg-type]
    assert resume.restore() == 8


def test_parts_that_are_missing_or_cannot_be_kept_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="got a int as 'model'"):
        Resume(tmp_path, model=3)
    resume = Resume(tmp_path, **parts())
    resume.save(0)
    resume.checkpoints.close()
    with pytest.raises(InputError, match="expected the parts model, optimizer, got model"):
        Resume(tmp_path, model=torch.nn.Linear(3, 1)).restore()


def test_another_optimiser_than_the_run_began_with_is_refused_in_words(tmp_path: Path) -> None:
    model = torch.nn.Linear(4, 1)

    def resume(kind: Any) -> Resume:
        return Resume(tmp_path, model=model, optimizer=kind(model.parameters(), lr=0.1))

    began = resume(torch.optim.AdamW)
    began.save(3)
    began.checkpoints.close()
    other = resume(torch.optim.SGD)
    with pytest.raises(InputError, match=r"expected the optimiser AdamW as 'optimizer', got SGD .* resume with AdamW"):
        other.restore()
    other.checkpoints.close()
    assert resume(torch.optim.AdamW).restore() == 4


def test_generators_of_all_three_libraries_go_on(tmp_path: Path) -> None:
    def generators() -> dict[str, Any]:
        return {"a": torch.Generator(), "b": np.random.default_rng(1), "c": random.Random(2)}

    def draw(g: dict[str, Any]) -> tuple[float, ...]:
        return float(torch.rand(1, generator=g["a"])), g["b"].normal(), g["c"].gauss(0, 1)

    first = generators()
    draw(first)
    resume = Resume(tmp_path, **first)
    resume.save(0)
    resume.checkpoints.close()
    second = generators()
    Resume(tmp_path, **second).restore()
    assert draw(first) == draw(second)


# ── the order of rows ────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 40), batch=st.integers(1, 12), taken=st.integers(0, 60))
def test_an_order_goes_on_from_any_position(rows: int, batch: int, taken: int) -> None:
    first, second = Order(rows, batch, seed=9), Order(rows, batch, seed=9)
    ahead = first.forever()
    for _ in range(taken):
        next(ahead)
    second.load_state_dict(first.state_dict())
    behind = second.forever()
    assert [next(ahead) for _ in range(10)] == [next(behind) for _ in range(10)]


def test_every_epoch_has_every_row_once_and_another_order() -> None:
    order = Order(50, 8, seed=1)
    epochs = [[row for batch in order.over() for row in batch] for _ in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert order.epoch == 3 and len(order) == 7


def test_ranks_share_each_batch_and_their_position_is_one_whatever_their_number() -> None:
    def shares(size: int) -> list[list[int]]:
        orders = [Order(50, 12, seed=1, ranks=Ranks(rank=rank, size=size)) for rank in range(size)]
        assert {len(order) for order in orders} == {4}  # a short last batch could not be shared equally
        parts = [list(order.over()) for order in orders]
        assert all(len(part) == 12 // size for rank in parts for part in rank)
        assert len({json.dumps(order.state_dict()) for order in orders}) == 1
        return [[row for part in together for row in part] for together in zip(*parts, strict=True)]

    assert shares(2) == shares(3) == shares(4)
    with pytest.raises(UsageError, match="expected a batch that ranks can share equally, got one of 12 for 5 ranks"):
        Order(50, 12, ranks=Ranks(size=5))


def test_a_position_before_a_short_batch_that_is_now_left_out_begins_the_next_epoch() -> None:
    order = Order(105, 10)
    batches = order.forever()
    for _ in range(10):
        next(batches)
    two = Order(105, 10, ranks=Ranks(rank=1, size=2))
    two.load_state_dict(order.state_dict())
    assert (two.epoch, two.position) == (1, 0)
    assert len(next(two.forever())) == 5


def test_a_position_in_other_data_is_refused() -> None:
    with pytest.raises(InputError, match="expected rows 10, got 11 - at Order; resume with the data"):
        Order(11, 2).load_state_dict(Order(10, 2).state_dict())
    with pytest.raises(InputError, match="expected shuffle True, got False - at Order"):
        Order(10, 2, shuffle=False).load_state_dict(Order(10, 2).state_dict())
    with pytest.raises(UsageError):
        Order(3, 4, drop_last=True)


# ── plain data ───────────────────────────────────────────────────────────────────────────────────────────────────────

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.dictionaries(st.sampled_from(["$tensor", "$dict", "a"]), inner)
    ),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return bool(a.hex() == b.hex())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@settings(max_examples=150, deadline=None)
@given(value=plain)
def test_plain_values_come_back_the_same(value: Any) -> None:
    import json

    tensors: dict[str, Any] = {}
    body = json.loads(json.dumps(encode(value, "v", tensors), allow_nan=False))
    assert same(decode(body, tensors), value)


def test_arrays_counters_and_tied_tensors_come_back() -> None:
    tied, tensors = torch.randn(3), {}  # type: ignore[var-annotated, unused-ignore]
    value = {
        "a": tied,
        "b": tied,
        "array": np.arange(6, dtype=np.uint32).reshape(2, 3),
        "scalar": np.float32(0.1),
        "empty": np.zeros((0, 2)),
        "milestones": Counter({30: 1, 60: 2}),
        "ordered": OrderedDict(z=1, a=2),
        "types": (torch.float16, torch.device("cpu"), {1, 2}, frozenset({3})),
        "not": -math.inf,
    }
    back = decode(encode(value, "v", tensors), tensors)
    assert torch.equal(back["a"], tied) and back["b"] is back["a"]
    assert np.array_equal(back["array"], value["array"]) and back["array"].dtype == np.uint32
    assert back["scalar"].dtype == np.float32 and back["empty"].shape == (0, 2)
    for name in ("milestones", "ordered", "types", "not"):
        assert same(back[name], value[name]) or back[name] == value[name]


def test_an_object_is_refused_with_its_path_and_an_unknown_word_too() -> None:
    with pytest.raises(InputError, match=r"got a object - at optimizer.state.0.hook; give its state_dict"):
        encode({"state": {0: {"hook": object()}}}, "optimizer", {})
    tensors = (torch.eye(2).to_sparse(), torch.zeros(2, device="meta"), torch.zeros(2, dtype=torch.complex128))
    for tensor in tensors:  # what safetensors has no words for
        with pytest.raises(InputError, match=r"expected dense tensors of a type .* - at model\.w"):
            encode({"w": tensor}, "model", {})
    for body in ({"$pickle": "x"}, {"$tensor": "gone"}):
        with pytest.raises(CorruptError):
            decode(body, {})


def test_weights_that_a_step_spoiled_after_its_loss_was_taken_take_the_place_of_no_good_checkpoint(
    tmp_path: Path,
) -> None:
    model = torch.nn.Linear(2, 2)
    resume = Resume(tmp_path, every=1, model=model)
    resume.done(0, loss=1.0)
    with torch.no_grad():
        model.weight[0, 1] = math.inf
    resume.done(1, loss=0.5)
    assert sorted(one.name for one in tmp_path.glob("s*-*")) == ["step-0000000000", "suspect-0000000001"]
    assert resume.restore() == 1 and bool(torch.isfinite(model.weight).all())


def test_a_compiled_model_and_the_model_alone_read_each_others_checkpoints(tmp_path: Path) -> None:
    model, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    resume = Resume(tmp_path, model=torch.compile(model, backend="eager"))
    resume.save(0)
    resume.checkpoints.close()
    assert Resume(tmp_path, model=other).restore() == 1
    assert torch.equal(other.weight, model.weight)

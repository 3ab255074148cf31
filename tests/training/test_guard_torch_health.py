"""What is not healthy about an optimisation is told once, with its numbers and a next step, and costs little."""

from __future__ import annotations

from typing import Any

import pytest

from tenon.training import Guard, Rules

torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed")
nn = torch.nn
ALWAYS = Rules(health=1e9, diverged=False, flat=False)  # look at every step


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def train(model: Any, lr: float, *, steps: int = 40, spike: int = -1, rules: Rules = ALWAYS, kind: Any = None) -> Guard:
    optimizer = (kind or torch.optim.SGD)(model.parameters(), lr=lr)
    guard = Guard(rules=rules).watch(model, optimizer)
    x = torch.randn(64, 8)
    y = x[:, :1] * 2 - x[:, 1:2]
    for step in range(steps):
        optimizer.zero_grad()
        loss = ((model(x) - y * (1e4 if step == spike else 1)) ** 2).mean()
        loss.backward()
        guard.step(step, loss=loss)
        if step != spike:
            optimizer.step()
    return guard


def net() -> Any:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))


def codes(guard: Guard) -> list[str]:
    return [one.code for one in guard.findings]


def test_a_healthy_run_is_told_nothing() -> None:
    guard = train(net(), 0.05, steps=300)
    assert codes(guard) == []
    assert all(1e-8 < ratio < 0.1 for ratio in guard._watch.health.ratios.values())


def test_a_step_that_rewrites_a_layer_is_told_with_the_layer() -> None:
    guard = train(net(), 0.3, kind=torch.optim.Adam)
    assert codes(guard) == ["training/update-too-large"]
    assert "Lower the learning rate about tenfold" in guard.findings[0].hint


def test_a_step_that_moves_nothing_is_told() -> None:
    assert codes(train(net(), 1e-12)) == ["training/update-too-small"]


def test_units_that_never_get_a_gradient_are_counted_by_layer() -> None:
    model = net()
    with torch.no_grad():
        model[2].bias[:12] = -100.0
    guard = train(model, 0.01)
    assert codes(guard) == ["training/dead-units"]
    assert guard.findings[0].said.startswith("12 of 16 units of '2.weight' had no gradient at any of 5 looks")


def test_a_gradient_that_does_not_reach_the_first_layer_is_told() -> None:
    layers = [layer for _ in range(12) for layer in (nn.Linear(8, 8), nn.Sigmoid())]
    guard = train(nn.Sequential(*layers, nn.Linear(8, 1)), 0.01)
    assert codes(guard)[0] == "training/gradient-vanishes"
    assert "'0.weight'" in guard.findings[0].said


def test_a_spike_of_the_gradient_is_told_with_where_to_clip() -> None:
    guard = train(net(), 0.01, steps=200, spike=150)
    assert codes(guard) == ["training/gradient-spike"]
    assert guard.findings[0].place == "run/150"
    assert guard.findings[0].hint.startswith("Clip gradients at about ")


def test_looking_takes_no_more_than_its_share_of_the_time() -> None:
    guard = train(net(), 0.01, steps=500, rules=Rules(health=0.002, diverged=False, flat=False))
    health = guard._watch.health
    assert 1 <= health._looks < 50

"""The margin of a prediction: careful without measurements, taught by them; and the table of devices."""

from __future__ import annotations

import pytest

from tenon.errors import InputError
from tenon.store import Store
from tenon.training.memory.device import DEVICES, GIB, find
from tenon.training.memory.launch import described
from tenon.training.memory.learned import DEFAULT, EXTRAPOLATED, FIXED_BYTES, LEAST, learn, margin


def taught(store: Store, *ratios: float) -> None:
    for ratio in ratios:
        learn(store, "h100-80gb", predicted_bytes=10**9, measured_bytes=int(10**9 * ratio), about=ratio)


def test_without_measurements_the_margin_is_the_default_and_wider_when_extrapolated(store: Store) -> None:
    for known in (None, store):
        assert margin(known, "h100-80gb").relative == DEFAULT
        assert margin(known, "h100-80gb", extrapolated=True).relative == EXTRAPOLATED
        assert margin(known, "h100-80gb").over(10**9) == int(1.08 * 10**9) + FIXED_BYTES
    assert "no run on this device is measured" in margin(store, "h100-80gb").said


def test_measured_runs_narrow_the_margin_and_one_bad_run_widens_it(store: Store) -> None:
    taught(store, 0.99, 1.0, 1.005, 0.998, 1.01)
    narrow = margin(store, "h100-80gb")
    assert LEAST <= narrow.relative < DEFAULT
    assert (narrow.runs, narrow.fixed_bytes) == (5, 0)
    taught(store, 1.2)
    assert margin(store, "h100-80gb").relative > 0.2


def test_few_runs_never_narrow_it_and_runs_on_another_device_do_not_count(store: Store) -> None:
    taught(store, 1.0, 1.0)
    assert margin(store, "h100-80gb").relative == DEFAULT
    assert margin(store, "l4-24gb").runs == 0


def test_a_measured_run_that_exceeded_its_prediction_would_now_be_inside_the_margin(store: Store) -> None:
    taught(store, 1.13)
    assert margin(store, "h100-80gb").over(10**9) >= 1.13 * 10**9


@pytest.mark.parametrize(
    ("asked", "found"), [("H100", "h100-80gb"), ("NVIDIA T4", "t4-16gb"), ("rtx 4090", "rtx-4090-24gb")]
)
def test_devices_are_found_by_what_people_call_them(asked: str, found: str) -> None:
    assert find(asked).name == found


def test_a_name_that_several_or_none_have_lists_them() -> None:
    with pytest.raises(InputError, match=r"one of 'a100-40gb', 'a100-80gb'$"):
        find("a100")
    with pytest.raises(InputError, match="did you mean 'h100-80gb'"):
        find("h1000-80gb")
    with pytest.raises(InputError, match=r"one of 'a100-40gb', .*, 'v100-32gb'"):
        find("abacus")


def test_every_device_is_plausible_and_its_capacity_can_be_set() -> None:
    for name, device in DEVICES.items():
        named = int(name.rsplit("-", 1)[1].removesuffix("gb"))
        assert 0.88 * named < device.total_bytes / GIB < named
        assert device.usable_bytes() < device.total_bytes
        assert device.seconds({"half": 1e12}, 1e6) <= device.seconds({"fp32": 1e12}, 1e6)
    assert find("l4", total_gib=10).total_bytes == 10 * GIB


@pytest.mark.parametrize(
    ("name", "gib", "capability", "found"),
    [
        ("NVIDIA H100 80GB HBM3", 79.1, (9, 0), "h100-80gb"),
        ("NVIDIA A100-SXM4-40GB", 39.4, (8, 0), "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", 79.2, (8, 0), "a100-80gb"),
        ("Tesla T4", 14.6, (7, 5), "t4-16gb"),
        ("Tesla V100-SXM2-32GB", 31.7, (7, 0), "v100-32gb"),
        ("NVIDIA GeForce RTX 4090", 23.6, (8, 9), "rtx-4090-24gb"),
        ("NVIDIA L40S", 44.4, (8, 9), "l40s-48gb"),
        ("NVIDIA RTX A6000", 47.5, (8, 6), "nvidia-rtx-a6000"),
    ],
)
def test_a_driver_names_a_device_of_the_table_with_its_own_capacity(
    name: str, gib: float, capability: tuple[int, int], found: str
) -> None:
    device = described(name, int(gib * GIB), capability)
    assert device.name == found
    assert device.total_bytes == int(gib * GIB)
    assert device.capability == capability

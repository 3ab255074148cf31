"""The ledger: prices multiply as anybody would by hand, sums are exact, budgets refuse in words, the meter measures."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenon import ledger
from tenon.config import Prices
from tenon.energy import Measured
from tenon.errors import BudgetError, UsageError
from tenon.ledger import Budget, Entry, Meter, Spent, Usage, summary, total
from tenon.limits import Answer

PRICES = Prices(
    usd_per_core_hour=0.04,
    usd_per_gb_memory_hour=0.005,
    usd_per_gpu_hour=2.5,
    usd_per_gb_month=0.023,
    usd_per_kwh=0.25,
    watts_per_core=10.0,
)
OWN_MACHINE = Prices(usd_per_core_hour=0.0, usd_per_kwh=0.25, watts_per_core=10.0)


# ── prices ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_price_is_a_product_done_by_hand() -> None:
    assert ledger.compute("r", 3600, PRICES, at=0).usd == pytest.approx(0.04)
    assert ledger.memory("r", 2 * 1800, PRICES, at=0).usd == pytest.approx(0.005)
    assert ledger.gpu("r", 7200, PRICES, at=0).usd == pytest.approx(5.0)
    assert ledger.storage("s", 2_000_000_000, PRICES, at=0).usd == pytest.approx(0.046)
    assert ledger.storage("s", 2_000_000_000, PRICES, at=0, months=0.5).quantity == pytest.approx(1.0)
    requests = ledger.requests("m", 10_000, 36, PRICES, at=0)
    assert (requests.quantity, requests.unit) == (10_000, "requests")
    assert requests.usd == pytest.approx(0.0004)


def test_power_is_paid_once() -> None:
    cloud = ledger.energy("r", 2.0, PRICES, at=0, note="estimate")
    assert (cloud.quantity, cloud.usd, cloud.note) == (2.0, 0.0, "estimate; power is in the core-hour price")
    own = ledger.energy("r", 2.0, OWN_MACHINE, at=0)
    assert (own.quantity, own.usd, own.note) == (2.0, 0.5, "")


def test_usage_becomes_entries_that_add_up() -> None:
    usage = Usage(wall_s=3600, cpu_s=7200, peak_bytes=4_000_000_000, gpus=1)
    entries = usage.entries("run-1", PRICES, at=5.0, note="train")
    assert {entry.kind: round(entry.usd, 9) for entry in entries} == {
        "compute": 0.08,
        "memory": 0.02,
        "energy": 0.0,
        "gpu": 2.5,
    }
    assert {entry.subject for entry in entries} == {"run-1"}
    spent = usage.spent(PRICES)
    assert spent.usd == pytest.approx(2.6)
    assert spent.hours == 1.0
    assert spent.kwh == pytest.approx(0.02 + 0.3), "two core hours at 10 W, one GPU hour at 300 W"
    assert [entry.kind for entry in Usage(wall_s=1, cpu_s=1, peak_bytes=1).entries("r", PRICES, at=0)] == [
        "compute",
        "memory",
        "energy",
    ]


def test_usage_of_several_processes_adds_up_and_counters_stand_for_the_others_too() -> None:
    own = Usage(wall_s=10.0, cpu_s=5.0, peak_bytes=100, gpus=1, measured=Measured(cpu_j=50.0, gpu_j=7.0))
    both = own.plus(Usage(wall_s=2.0, cpu_s=15.0, peak_bytes=11, gpus=3))
    assert (both.wall_s, both.cpu_s, both.peak_bytes, both.gpus) == (12.0, 20.0, 111, 4)
    assert both.measured.cpu_j == 200.0
    assert both.measured.gpu_j is None  # the other's GPUs were not counted: all are estimated
    assert own.plus(Usage(wall_s=0.0, cpu_s=0.0, peak_bytes=0)) == own


def test_an_entry_says_what_it_is_and_holds_only_numbers() -> None:
    with pytest.raises(UsageError, match=r"expected a kind of entry, got 'computing' - at r; did you mean 'compute'?"):
        Entry(kind="computing", subject="r", quantity=1.0, unit="s", usd=1.0, at=0.0)  # type: ignore[arg-type]
    for quantity, usd in ((math.nan, 1.0), (1.0, math.inf), (-1.0, 1.0)):
        with pytest.raises(UsageError, match="a quantity and a price that are numbers"):
            Entry(kind="compute", subject="r", quantity=quantity, unit="s", usd=usd, at=0.0)


def test_an_entry_goes_to_plain_data_and_back_and_skips_what_is_new() -> None:
    entry = ledger.compute("r", 10, PRICES, at=3.0, note="n")
    assert Entry.from_dict(entry.to_dict()) == entry
    assert Entry.from_dict({**entry.to_dict(), "of_a_later_release": 1}) == entry


# ── sums ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def entry(usd: float, *, kind: ledger.Kind = "compute", subject: str = "r", at: float = 0.0, unit: str = "s") -> Entry:
    return Entry(kind=kind, subject=subject, quantity=1.0, unit=unit, usd=usd, at=at)


@given(st.lists(st.floats(0, 1e6)))
def test_a_total_is_the_exact_sum_however_it_is_grouped(values: list[float]) -> None:
    entries = [entry(value, subject=str(i % 3)) for i, value in enumerate(values)]
    assert total(entries) == math.fsum(values)
    assert math.isclose(math.fsum(line.usd for line in summary(entries, by="subject")), math.fsum(values), abs_tol=1e-6)


QUANTITIES = st.lists(st.tuples(st.sampled_from(["compute", "memory", "gpu"]), st.floats(0.1, 1e6)), max_size=6)


@given(QUANTITIES, QUANTITIES)
def test_what_is_owed_is_what_has_not_been_charged_of_each_kind(due: list[Any], paid: list[Any]) -> None:
    def entries(given: list[Any]) -> list[Entry]:
        return [Entry(kind=kind, subject="r", quantity=n, unit="u", usd=2 * n, at=0.0) for kind, n in given]

    left = ledger.owed(entries(due), entries(paid))
    for kind in ("compute", "memory", "gpu"):
        more = sum(n for name, n in due if name == kind) - sum(n for name, n in paid if name == kind)
        found = [one for one in left if one.kind == kind]
        assert sum(one.quantity for one in found) == pytest.approx(max(more, 0.0), abs=1e-6)
        assert all(one.usd == pytest.approx(2 * one.quantity) for one in found)


def test_a_summary_puts_the_dearest_first_and_days_in_order() -> None:
    day = 86_400.0
    entries = [
        entry(1.0, kind="compute", at=40 * day),
        entry(2.0, kind="storage", at=0.0, unit="GB month"),
        entry(0.5, kind="compute", at=1.0, unit="core s"),
    ]
    by_kind = [line.to_dict() for line in summary(entries)]
    assert by_kind == [
        {"key": "storage", "usd": 2.0, "entries": 1, "quantity": 1.0, "unit": "GB month"},
        {"key": "compute", "usd": 1.5, "entries": 2, "quantity": None, "unit": ""},
    ]
    assert [(line.key, line.usd) for line in summary(entries, by="day")] == [("1970-01-01", 2.5), ("1970-02-10", 1.0)]
    assert [line.key for line in summary(entries, by="month")] == ["1970-01", "1970-02"]
    assert summary([]) == []
    with pytest.raises(UsageError, match=r"expected what to sum by, got 'kinds' - at ledger.summary; did you mean"):
        summary(entries, by="kinds")  # type: ignore[arg-type]


def test_rates_are_none_where_there_is_nothing_to_divide_by() -> None:
    assert ledger.per_thousand(3.0, 1500) == 2.0
    assert ledger.per_thousand(3.0, 0) is None
    assert ledger.per_month(1.0, 86_400.0) == pytest.approx(30.0)
    assert ledger.per_month(1.0, 0.0) is None


# ── budgets ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_budget_says_yes_up_to_its_limit_and_then_says_what_broke() -> None:
    budget = Budget(usd=2, hours=1.5, kwh=3)
    assert budget.admit(Spent(usd=2.0, hours=1.5, kwh=3.0))
    refused = budget.admit(Spent(usd=2.5), what="run late")
    assert (refused.answer, bool(refused)) == (Answer.NEVER, False)
    said = "expected run late to cost at most 2 USD, got 2.5 USD; raise Budget(usd=...) or make it smaller"
    assert refused.reason == said
    with pytest.raises(BudgetError, match=r"at most 1\.5 hours, got 2 hours; raise Budget\(hours="):
        budget.check(Spent(hours=2))
    with pytest.raises(BudgetError, match="at most 3 kWh, got 4 kWh"):
        budget.check(Spent(kwh=4))
    budget.check(Spent())


def test_no_budget_is_no_limit_and_what_is_no_number_is_over() -> None:
    assert Budget().admit(Spent(usd=1e12, hours=1e12))
    assert not Budget(usd=1).admit(Spent(usd=math.nan))
    assert Budget(usd=0).to_dict() == {"usd": 0, "hours": None, "kwh": None}
    assert not Budget(usd=0).admit(Spent(usd=0.01))


@pytest.mark.parametrize("value", [-1, math.nan, "2", True])
def test_a_budget_is_a_number(value: float) -> None:
    with pytest.raises(UsageError, match=r"expected a number of 0 or more, or None, got .* - at Budget\(usd=...\)"):
        Budget(usd=value)


# ── measuring ────────────────────────────────────────────────────────────────────────────────────────────────────────


def spin(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_processor_time_of_this_process_and_of_its_children_is_counted() -> None:
    code = "import time\nwhile time.process_time() < 0.3: pass"
    with Meter() as meter:
        spin(0.2)
        subprocess.run([sys.executable, "-c", code], check=True)
    usage = meter.usage()
    assert 0.45 <= usage.cpu_s < 1.5
    assert usage.wall_s >= 0.45
    assert meter.usage() == usage, "after the block it does not grow"


def test_a_child_that_still_runs_is_counted_while_it_runs() -> None:
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    with Meter() as meter:
        child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        assert child.pid in ledger.descendants()
        so_far = meter.usage().cpu_s
        child.communicate(b"\n")
    assert so_far >= 0.25
    assert so_far - 0.02 <= meter.usage().cpu_s < so_far + 1.0, "and not twice when it has ended"


def hold(megabytes: int, seconds: float) -> int:
    block = bytearray(megabytes * 1_000_000)
    for at in range(0, len(block), 4096):
        block[at] = 1
    time.sleep(seconds)
    return len(block)


def test_the_highest_memory_in_the_block_is_found() -> None:
    hold(150, 0)  # before the block, and given back: it does not count
    before = ledger.resident_bytes()
    with Meter() as meter:
        hold(60, 0.4)
    assert 45_000_000 < meter.usage().peak_bytes - before < 90_000_000
    with Meter() as quiet:
        pass
    assert quiet.usage().peak_bytes < before + 30_000_000


def test_memory_of_children_counts_with_ours() -> None:
    before = ledger.resident_bytes()
    with Meter() as meter:
        subprocess.run([sys.executable, "-c", "import time; x = b'x' * 80_000_000; time.sleep(1.0)"], check=True)
    assert meter.usage().peak_bytes - before > 75_000_000


def test_what_the_system_does_not_say_is_zero_and_never_an_error() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    assert ledger.resident_bytes(child.pid) == 0
    assert ledger.descendants(child.pid) == []
    assert ledger.resident_bytes() == ledger.resident_bytes(os.getpid()) or ledger.resident_bytes() > 0

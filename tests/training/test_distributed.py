"""Several processes train one model: refused together, resumed bit for bit, deaths and hangs told, no orphans."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tenon.errors import MissingError, UsageError
from tenon.training.collectives import Begun, compare
from tenon.training.launch import launch
from tenon.training.target import Target
from tenon.training.watchdog import Ended

from ..waiting import eventually

TORCH = pytest.importorskip("torch", reason="the extra 'torch' is not installed")
SCRIPT = Path(__file__).with_name("several_ranks.py")
STEPS = 40
# At which step what befalls which rank of which run, once.
FAULTS = {
    "ddp 1": {"16": "kill", "27": "hang"},
    "fsdp 0": {"11": "kill"},
    "fsdp 1": {"23": "hang"},
}


def started(function: str, nproc: int, folder: Path, *given: str, **patience: Any) -> Ended:
    target = Target.of(f"{SCRIPT}:{function}", given)
    return launch(target.command, nproc=nproc, folder=folder / f"watch-{function}-{nproc}", **patience)


def lines(file: Path) -> list[tuple[int, str]]:
    return [(int(step), loss) for step, loss in (line.split() for line in file.read_text().splitlines())]


# ── killed, hanging, resumed ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """Five attempts at two runs: DDP is killed, then hangs; FSDP is killed, then hangs; both come to their end."""
    folder = tmp_path_factory.mktemp("broken")
    given = (f"folder={folder}", f"steps={STEPS}", f"faults={json.dumps(FAULTS)}")
    return folder, started("exact", 2, folder, *given, silence_s=6.0, restarts=9)


def test_every_death_and_every_hang_is_told_and_the_run_comes_to_its_end(broken: tuple[Path, Ended]) -> None:
    _, ended = broken
    # On a crowded machine a step may take longer than the silence: that is a hang more, and nothing else changes.
    assert ended and ended.attempts >= 5
    died = [one for one in ended.findings if one.code == "training/rank-died"]
    assert "Rank 1 of 2 was killed by SIGKILL, as the kernel does when memory runs out, after step 15." in died[0].said
    assert "Rank 0 of 2 was killed by SIGKILL" in died[-1].said
    restarted = [one.said for one in ended.findings if one.code == "training/restarted"]
    assert len(restarted) == ended.attempts - 1
    assert restarted[0].endswith("begun again from its last checkpoint, 1 of at most 9.")
    hung = [one for one in ended.findings if "in load_rows (several_ranks.py:" in one.said]
    assert [one.code for one in hung] == ["training/hang"] * 2
    assert [one.numbers["rank"] for one in hung] == [1, 1]
    # Of DDP the stacks show only `backward` or a forward; the flight recorder knows the collective.
    assert "Rank 1 never reached gloo broadcast of" in hung[0].said
    assert "Rank 1 never reached gloo all_gather of" in hung[1].said


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_losses_go_on_bit_for_bit_and_no_more_than_since_the_checkpoint_is_done_again(
    broken: tuple[Path, Ended], mode: str
) -> None:
    folder, ended = broken
    for rank in range(2):
        expected = dict(lines(folder / f"{mode}-whole" / f"losses-{rank}"))
        found = lines(folder / f"{mode}-broken" / f"losses-{rank}")
        assert sorted(expected) == list(range(STEPS))
        assert all(expected[step] == loss for step, loss in found)
        assert {step for step, _ in found} == set(range(STEPS))
        # Each time it was begun again, at most the steps since the checkpoint were done again.
        assert 0 < len(found) - STEPS < (ended.attempts - 1) * 7
    losses = [(folder / f"{mode}-whole" / f"losses-{rank}").read_text() for rank in range(2)]
    assert losses[0] != losses[1]  # each rank has rows and random numbers of its own


@pytest.fixture(scope="module")
def moved(broken: tuple[Path, Ended]) -> tuple[Path, dict[str, Any]]:
    """What three ranks made of the checkpoints of two, and of some of their own."""
    folder, _ = broken
    ended = started("moved", 3, folder, f"folder={folder}", restarts=0, start_s=120.0)
    assert ended, ended.findings
    return folder, json.loads((folder / "moved-3.json").read_text())


def test_a_checkpoint_holds_shards_and_reads_on_another_number_of_ranks_and_in_another_layout(
    moved: tuple[Path, dict[str, Any]],
) -> None:
    folder, told = moved
    kept = sorted((folder / "fsdp-broken" / "checkpoints").glob("step-*"))[-1]
    files = {"state.json", "tensors.safetensors", "tensors-00001.safetensors"}
    assert {one.name for one in kept.iterdir()} == files
    for kept_as in ("ddp", "fsdp"):
        one, other = told[f"{kept_as} as ddp"], told[f"{kept_as} as fsdp"]
        assert one["step"] == other["step"] == 35
        assert one["weights"] == other["weights"] and one["moments"] == other["moments"]
        assert one["position"] == 35 % 8
        assert "ranks 2 then, 3 now" in one["said"][0]
    # The same, read by one process that knows nothing of ranks.
    assert alone(folder / "fsdp-broken") == told["fsdp as ddp"]["weights"]
    assert any(abs(value) > 0.01 for value in told["fsdp as ddp"]["moments"])


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_three_ranks_go_on_bit_for_bit_too_and_what_would_not_is_said(
    moved: tuple[Path, dict[str, Any]], mode: str
) -> None:
    folder, told = moved
    for rank in range(3):
        whole = dict(lines(folder / f"{mode}-3-whole" / f"losses-{rank}"))
        found = lines(folder / f"{mode}-3-broken" / f"losses-{rank}")
        assert len(found) == 30 + 3 and all(whole[step] == loss for step, loss in found)
    assert "DDP lays 'model' out anew after its first step, and 3 ranks then add gradients" in told["plain"][0]


def test_three_ranks_of_which_one_is_killed_are_begun_again_and_go_on_bit_for_bit(
    moved: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    ended = started("killed_once", 3, tmp_path, f"folder={tmp_path}", "steps=30", "at=17", restarts=1)
    assert ended and [one.code for one in ended.findings] == ["training/rank-died", "training/restarted"]
    assert "Rank 2 of 3 was killed by SIGKILL" in ended.findings[0].said
    went_on_exactly(moved[0] / "ddp-3-whole", tmp_path, ranks=3, steps=30)


def test_what_one_rank_cannot_write_or_read_is_refused_or_passed_over_by_all(
    moved: tuple[Path, dict[str, Any]],
) -> None:
    told = moved[1]["refused"]
    assert len(set(told["said"])) == 1
    assert "expected room for a checkpoint" in told["said"][0] and told["said"][0].endswith("(rank 2)")
    assert told["steps"] == [1, 2]  # and step 2 has a file that is damaged
    assert told["gone on"] == [2, 2, 2]  # from the one of step 1
    assert told["left"] == [".lock", "damaged-0000000002", "step-0000000001"]


def alone(folder: Path) -> dict[str, list[float]]:
    code = (
        "import json, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]);"
        "import several_ranks as one; from tenon.training import Resume; from tenon.training.ranks import Ranks;"
        "model, kept = one.parts(Ranks(), 'alone'); resume = Resume(Path(sys.argv[2]) / 'checkpoints', **kept);"
        "resume.restore(); print(json.dumps(one.weights(model)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(SCRIPT.parent), str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[float]] = json.loads(done.stdout)
    return found


def on_ray(function: str, folder: Path, *given: str, **patience: Any) -> tuple[Ended, list[str]]:
    """Run a function on two workers of a real cluster of this machine; return how it ended and what was told."""
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    pytest.importorskip("pyarrow", reason="the extra 'ray' is not installed")
    from tenon.training import cluster

    told: list[str] = []
    target = Target.of(f"{SCRIPT}:{function}", given)
    ended = cluster.run(target, nproc=2, folder=folder, tell=lambda finding: told.append(finding.code), **patience)
    return ended, told


def went_on_exactly(whole: Path, broken: Path, *, ranks: int = 2, steps: int = STEPS) -> None:
    """Check the losses of each rank against those of a run that nothing befell."""
    for rank in range(ranks):
        expected, found = dict(lines(whole / f"losses-{rank}")), lines(broken / f"losses-{rank}")
        assert all(expected[step] == loss for step, loss in found)
        assert {step for step, _ in found} == set(range(steps))
        assert len(found) - steps < 7  # from the last checkpoint: one is kept each seven steps


RAYS_OWN = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@RAYS_OWN
def test_ray_train_runs_the_same_function_to_the_same_bits_and_begins_again_when_a_worker_is_killed(
    broken: tuple[Path, Ended], tmp_path: Path
) -> None:
    ended, told = on_ray("killed_once", tmp_path / "ray", f"folder={tmp_path}", f"steps={STEPS}", "at=17", restarts=2)
    assert ended and ended.attempts == 2, [one.said for one in ended.findings]
    assert told == ["training/rank-died", "training/restarted"]
    assert re.match(r"Rank 1 of 2 ended: its process \d+ on \S+ died or was killed\.", ended.findings[0].said)
    went_on_exactly(broken[0] / "ddp-whole", tmp_path)


@RAYS_OWN
def test_a_hang_under_ray_is_seen_told_and_begun_again(broken: tuple[Path, Ended], tmp_path: Path) -> None:
    given = (f"folder={tmp_path}", f"steps={STEPS}", "at=17")
    ended, told = on_ray("hangs_once", tmp_path / "ray", *given, restarts=2, silence_s=12.0)
    assert ended and ended.attempts == 2, [one.said for one in ended.findings]
    assert told == ["training/hang", "training/restarted"]
    hung = ended.findings[0]
    assert "Rank 1 never reached gloo broadcast of" in hung.said and "in which rank 0 waits." in hung.said
    assert "Rank 1 stands after step 16 in load_rows (several_ranks.py:" in hung.said
    went_on_exactly(broken[0] / "ddp-whole", tmp_path)


@RAYS_OWN
def test_what_the_guard_refused_under_ray_is_not_begun_again(tmp_path: Path) -> None:
    ended, told = on_ray("spoiled", tmp_path / "ray", restarts=2)
    assert not ended and ended.attempts == 1
    assert told == ["training/gave-up"]
    assert "its guard refused it, and would refuse the same step again (" in ended.findings[0].said
    assert "expected a finite loss, got one that is not on rank 1 of 2" in ended.findings[0].said


# ── the guard's step ─────────────────────────────────────────────────────────────────────────────────────────────────


def seen_by_two(name: str, folder: Path) -> list[dict[str, Any]]:
    """Run a function of `several_ranks` on two ranks, and return what each wrote of what it saw."""
    ended = started(name, 2, folder, f"folder={folder}", restarts=0, start_s=120.0)
    assert ended, ended.findings
    return [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks saw of each fault."""
    return seen_by_two("guarded", tmp_path_factory.mktemp("guarded"))


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_nan_on_one_rank_refuses_the_step_on_all_and_is_blamed_where_it_was(
    guarded: list[dict[str, Any]], mode: str
) -> None:
    for fault, who in (("input", "the model's input 0 already holds 1 values"), ("loss", "the loss function itself")):
        seen = [one[f"{mode} {fault}"] for one in guarded]
        assert seen[0]["error"] == seen[1]["error"]
        assert seen[0]["error"].startswith(
            "TrainingError: expected a finite loss, got one that is not on rank 1 of 2 - at"
        )
        assert who in seen[0]["error"]
        assert [one["steps"] for one in seen] == [5, 5]
        assert all(value == value for weights in seen[0]["weights"].values() for value in weights)


def test_findings_come_once_and_only_the_first_rank_logs(guarded: list[dict[str, Any]]) -> None:
    first, second = (one["ddp news"] for one in guarded)
    assert [one["code"] for one in first["run"]] == ["training/data-starved"]
    assert first["run"][0]["said"] == "Rank 1: Slow rows."
    assert "run" not in second
    assert [one["code"] for one in guarded[0]["ddp loss"]["run"]] == ["training/loss-not-finite"]


def test_a_budget_counts_all_ranks_and_stops_them_at_the_same_step(guarded: list[dict[str, Any]]) -> None:
    first, second = (one["ddp budget"] for one in guarded)
    assert first["steps"] == second["steps"] < 40
    assert first["error"] == second["error"] == ""
    assert first["findings"][-1] == second["findings"][-1]
    assert first["findings"][-1][0] == "training/budget-spent"
    both, own = first["core_s"]
    assert both > own * 1.2


def test_a_checkpoint_due_by_time_is_due_by_the_first_ranks_clock(guarded: list[dict[str, Any]]) -> None:
    for one in guarded:
        assert one["ddp timed"]["error"] == ""
        assert set(one["ddp timed"]["saved"]) >= {38, 39}


def test_mixed_losses_of_ranks_are_those_of_all_rows_together(guarded: list[dict[str, Any]]) -> None:
    first, other = (one["ddp evaluated"]["mixed"] for one in guarded)
    assert first == pytest.approx([(3.5 + 5.0) / 2, math.sqrt(5 / 3 + 20 / 3) / 2])
    assert other == []  # the first rank judges


def test_a_held_out_loss_and_ranks_that_lost_step_are_refused_on_all(guarded: list[dict[str, Any]]) -> None:
    for one in guarded:
        assert "expected a finite held-out loss, got one that is not on rank 1" in one["ddp evaluated"]["error"]
        lost = one["ddp lost"]
        assert "expected all ranks at the same step, got rank 0 at step 5, rank 1 at step 6" in lost["error"]
        assert one["ddp none"]["steps"] == 40 and one["ddp none"]["findings"] == []


# ── where the time goes ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def paced(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks saw of a late rank, and of many gradients."""
    return seen_by_two("paced", tmp_path_factory.mktemp("paced"))


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_the_rank_that_the_others_wait_for_is_named(paced: list[dict[str, Any]], mode: str) -> None:
    told = [one for one in paced[0][mode]["findings"] if one["code"] == "training/straggler"]
    assert len(told) == 1
    assert told[0]["said"].startswith("Rank 1 of 2 is late: a step takes it ")
    assert told[0]["numbers"]["rank"] == 1
    assert told[0]["numbers"]["own_ms"] - told[0]["numbers"]["others_ms"] > 50  # of the 80 ms that it slept
    assert statistics.median(one["late"] for one in paced[0][mode]["shown"]) > 0.1
    assert not paced[1][mode]["shown"]


def test_a_step_that_mostly_exchanges_gradients_is_told(paced: list[dict[str, Any]]) -> None:
    told = [one for one in paced[0]["far"]["findings"] if one["code"] == "training/communication-bound"]
    assert len(told) == 1 and "of a step is spent exchanging between 2 ranks, beside computing." in told[0]["said"]
    assert statistics.median(one["communicating"] for one in paced[0]["far"]["shown"]) > 0.3


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_the_operations_of_all_ranks_are_counted_and_the_losses_stay_what_they_were(
    paced: list[dict[str, Any]], mode: str
) -> None:
    both = 2 * 12 * (2 * (8 * 15 + 15 * 5))  # the products of 12 rows on each rank
    assert [one[mode]["flops"] for one in paced] == [3 * both] * 2
    assert paced[0][mode]["shown"][-1]["flops_per_s"] > 0
    for one in paced:
        assert one[mode]["losses"] == one[f"{mode} bare"]["losses"]


# ── the launcher ─────────────────────────────────────────────────────────────────────────────────────────────────────


def script(tmp_path: Path, code: str) -> list[str]:
    (tmp_path / "script.py").write_text("import os, sys, time\n" + code)
    return [sys.executable, str(tmp_path / "script.py"), str(tmp_path)]


def test_what_failed_before_its_first_step_is_not_begun_again_and_its_last_words_are_told(tmp_path: Path) -> None:
    command = script(tmp_path, "if os.environ['RANK'] == '1':\n    raise ValueError('no such column')\ntime.sleep(60)")
    ended = launch(command, nproc=2, folder=tmp_path / "watch", restarts=3)
    assert (ended.code, ended.attempts) == (1, 1)
    assert [one.code for one in ended.findings] == ["training/rank-died", "training/gave-up"]
    died, given_up = ended.findings
    assert "Rank 1 of 2 ended with exit code 1, before a step. Its last words: ValueError: no such column" in died.said
    assert "begun 1 time, failed, and is not begun again: it failed before its first step" in given_up.said
    assert "Traceback" in (tmp_path / "watch" / "attempt-0" / "rank-1.stderr").read_text()


def test_restarts_are_bounded_and_a_refused_run_is_not_begun_again(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from tenon.training.watchdog import Beat; from tenon.training.ranks import Ranks\n"
        "beat = Beat.of(os.environ); beat(3)\n"
        "if sys.argv[2:]: Ranks(beat=beat).refused('NaN')\n"
        "Path(sys.argv[1], 'spent').write_text(os.environ['TENON_LAUNCH_SPENT'])\n"
        "sys.exit(7)"
    )
    command = script(tmp_path, code)
    ended = launch(command, nproc=2, folder=tmp_path / "watch", restarts=1)
    assert (ended.code, ended.attempts) == (7, 2)
    assert [one.code for one in ended.findings][-1] == "training/gave-up"
    assert "after step 3" in ended.findings[0].said
    wall_s, cpu_s = map(float, (tmp_path / "spent").read_text().split())
    assert wall_s > 0 and cpu_s >= 0  # what the first attempt used is told to the second
    ended = launch([*command, "refuse"], nproc=2, folder=tmp_path / "other", restarts=3)
    assert ended.attempts == 1
    assert "not begun again: its guard refused it, and would refuse the same step again (NaN)." in (
        ended.findings[-1].said
    )


def test_a_script_that_says_nothing_of_its_steps_is_not_taken_for_one_that_hangs(tmp_path: Path) -> None:
    command = script(tmp_path, "time.sleep(1.5)")
    ended = launch(command, nproc=2, folder=tmp_path / "watch", silence_s=0.1, start_s=0.2, restarts=0)
    assert ended and ended.findings == ()


def test_nothing_outlives_a_launcher_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import subprocess; from pathlib import Path\n"
        "child = subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
        "Path(sys.argv[1], f'{os.getpid()}.pid').write_text(f'{os.getpid()} {child.pid}'); time.sleep(1000)"
    )
    command = script(tmp_path, code)
    outer = (
        "import sys; from pathlib import Path; from tenon.training.launch import launch;"
        "launch(sys.argv[2:], nproc=2, folder=Path(sys.argv[1]) / 'watch')"
    )

    def written() -> list[int]:
        return [int(word) for one in tmp_path.glob("*.pid") for word in one.read_text().split()]

    launcher = subprocess.Popen([sys.executable, "-c", outer, str(tmp_path), *command])
    try:
        # two ranks, and a child of each in a session of its own
        assert eventually(lambda: len(written()) == 4, 30, every=0.05)
    finally:
        launcher.kill()
        launcher.wait()
    assert eventually(lambda: not any(living(pid) for pid in written()), 30, every=0.05)


def test_two_launches_at_once_meet_in_different_places_and_leave_nothing(tmp_path: Path) -> None:
    code = (
        "import socket; from pathlib import Path\n"
        "held = socket.socket(); held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n"
        "if os.environ['RANK'] == '0':\n    held.bind(('127.0.0.1', int(os.environ['MASTER_PORT']))); held.listen()\n"
        "time.sleep(1.0)\n"
        "Path(sys.argv[1], f'{os.getpid()}.met').write_text(os.environ['MASTER_PORT'] + os.environ['WORLD_SIZE'])"
    )
    command = script(tmp_path, code)
    found: list[Ended] = []
    threads = [
        threading.Thread(target=lambda i=i: found.append(launch(command, nproc=2, folder=tmp_path / f"watch-{i}")))
        for i in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found) and len(found) == 2
    assert len({one.read_text() for one in tmp_path.glob("*.met")}) == 2
    assert len(list(tmp_path.glob("*.met"))) == 4


def test_the_command_says_on_stdout_only_what_came_of_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tenon", "train"]
    file = script(
        tmp_path, "sys.stdout.write(f'mine {os.environ[\"RANK\"]} {sys.argv[1:]}\\n')\nsys.exit(int(sys.argv[1]))"
    )[1]
    done = subprocess.run(
        [*command, file, "--nproc", "2", "--json", "--", "0", "--lr"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, json.loads(done.stdout)) == (0, {"code": 0, "attempts": 1, "findings": []}), done.stderr
    assert "mine 0 ['0', '--lr']" in done.stderr and "mine 1 ['0', '--lr']" in done.stderr
    failed = subprocess.run([*command, file, "--nproc", "1", "--", "4"], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "mine 0 ['4']\n1 process, begun once, failed with code 4; see " in failed.stdout
    shutil.rmtree(failed.stdout.split("see ")[1].strip())
    for words in (["nothing", "--nproc", "2"], [str(tmp_path), "--nproc", "2"], [str(tmp_path), "more"]):
        wrong = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
        assert wrong.returncode == 2
        assert "expected a script or function to run on processes, or a project's folder" in wrong.stderr


def living(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    try:
        return "Z (zombie)" not in status.read_text()
    except OSError:
        return False


def test_a_target_is_a_script_or_a_function_with_what_it_is_given(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def fit(ranks, **given):\n    print(ranks.size, given)\n")
    assert Target.of(str(file), ["--lr", "1"]).command[1:] == [str(file), "--lr", "1"]
    named = Target.of(f"{file}:fit", ["steps=3", "name=abc", 'more={"a": [1]}']).named()
    assert named == {"steps": 3, "name": "abc", "more": {"a": [1]}}
    with pytest.raises(UsageError, match="expected name=value for a function, got '--lr' - at fit"):
        Target.of(f"{file}:fit", ["--lr"]).named()
    with pytest.raises(MissingError, match="expected a script, got no file"):
        Target.of(str(tmp_path / "none.py"))
    for nothing in ("nothing", ":fit", "", "mine.py:not a name"):
        with pytest.raises(UsageError, match=r"expected script\.py"):
            Target.of(nothing)
    done = subprocess.run(
        [*Target.of(f"{file}:fti").command], capture_output=True, text=True, check=False, env={**os.environ}
    )
    assert "did you mean 'fit'?" in done.stderr


def test_collectives_are_compared_by_number_within_each_group() -> None:
    def at(group: str, number: int) -> Begun:
        return Begun(group=group, number=number, name="nccl all_reduce", size="10 float")

    said, behind = compare({0: {"a": at("a", 7), "b": at("b", 2)}, 1: {"a": at("a", 6)}, 2: {"a": at("a", 7)}})
    assert said == "Rank 1 never reached nccl all_reduce of 10 float (number 7 of group 'a'), in which ranks 0, 2 wait."
    assert behind == [1]
    assert compare({0: {"a": at("a", 7)}, 1: {"a": at("a", 7)}}) == ("", [])
    assert compare({}) == ("", [])


def test_a_launch_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at launch"):
        launch([sys.executable], nproc=0, folder=tmp_path)
    assert not list(tmp_path.iterdir())

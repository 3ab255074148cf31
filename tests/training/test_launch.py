"""One command in several processes: what fails is told and begun again within bounds, and nothing outlives it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tenon.errors import MissingError, UsageError
from tenon.training.collectives import Begun, compare
from tenon.training.launch import launch
from tenon.training.target import Target
from tenon.training.watchdog import Ended

from ..waiting import eventually


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


def test_a_rank_that_left_the_others_without_an_error_is_named(tmp_path: Path) -> None:
    command = script(
        tmp_path, "if os.environ['RANK'] == '1':\n    sys.exit()\ntime.sleep(1)\nraise ValueError('no word from it')"
    )
    (died, _) = launch(command, nproc=2, folder=tmp_path / "watch", restarts=1).findings
    assert died.said.startswith("Rank 0 of 2 ended with exit code 1, before a step.")
    assert died.said.endswith("no word from it; rank 1 had ended well before")


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
    for words in (["nothing", "--nproc", "2"], ["nothing", "more"]):
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

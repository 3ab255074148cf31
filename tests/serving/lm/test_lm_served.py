"""A language model is served from its folder, from the store, and beside tabular models; without torch nothing else is
missed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tenon.errors import ConfigError, UsageError
from tenon.flow import language as kept
from tenon.limits import LanguageLimits
from tenon.serving import build_app, running
from tenon.serving.lm import open_language
from tenon.store import Store


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return json.loads(answer.read())


def ask(url: str, body: dict[str, Any]) -> Any:
    with urllib.request.urlopen(url, data=json.dumps(body).encode(), timeout=20) as answer:
        return json.loads(answer.read())


@contextmanager
def served(*arguments: str) -> Iterator[str]:
    """Run `tenon serve` and yield the URL it says; it must end well on SIGTERM."""
    command = [sys.executable, "-m", "tenon", "serve", *arguments]
    environ = {**os.environ, "TENON_SERVE__PORT": "0", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ)
    assert process.stderr is not None
    try:
        said = ""
        while not (found := re.search(r"http://[\d.:]+", said)):
            line = process.stderr.readline()
            assert line, said
            said += line
        yield found[0]
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
        assert process.returncode == 0
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_a_folder_is_served_by_one_command_and_a_stream_that_runs_when_it_is_told_to_stop_is_finished(
    tiny: Path,
) -> None:
    with served(str(tiny)) as url:
        assert get(f"{url}/v1/models")["data"][0]["id"] == "tiny"
        whole = ask(f"{url}/v1/completions", {"model": "tiny", "prompt": "the", "max_tokens": 3, "seed": 1})
        assert whole["usage"]["completion_tokens"] <= 3
        how = {"model": "tiny", "prompt": "the", "max_tokens": 150, "seed": 3, "stream": True}
        answer = urllib.request.urlopen(f"{url}/v1/completions", data=json.dumps(how).encode(), timeout=20)
        first = answer.readline()
        (listener,) = (p for p in psutil.Process().children() if "serve" in p.cmdline())
        listener.send_signal(signal.SIGTERM)
        rest = answer.read().decode()
        answer.close()
    assert first.startswith(b"data: {") and rest.rstrip().endswith("data: [DONE]")


def test_what_is_kept_in_a_store_is_kept_once_and_served_from_it(tiny: Path, tmp_path: Path) -> None:
    with Store.open(tmp_path / "models") as store:
        first = kept.keep(store, tiny, name="mine", run="abc")
        assert kept.keep(store, tiny, name="mine") == first
        assert (first["model"], first["number"], first["run"]) == ("mine", 1, "abc")
        (opened,) = kept.opened(store, [], LanguageLimits())
        assert (opened.name, opened.version) == ("mine", first["id"]) == (opened.name, open_language(tiny).version)
        with pytest.raises(UsageError, match="NAME=FOLDER"):
            kept.opened(store, ["mine="], LanguageLimits())
    with served(str(tmp_path / "models"), "--lm", f"other={tiny}") as url:
        assert {model["id"] for model in get(f"{url}/v1/models")["data"]} == {"mine", "other"}
    with Store.open(tmp_path / "models") as store:
        events = [(event["subject"], event["state"]) for event in store.events("serving")]
    assert sorted(events) == [("mine", "start"), ("mine", "stop"), ("other", "start"), ("other", "stop")]


def test_language_and_tabular_models_stand_side_by_side(tiny: Path, flights: SimpleNamespace) -> None:
    with running(build_app([flights.make_service()], languages=[open_language(tiny)])) as url:
        assert get(f"{url}/readyz")["models"].keys() == {"late", "tiny"}
        assert ask(f"{url}/predict/late", flights.ASK)["predictions"]
        assert ask(f"{url}/v1/embeddings", {"model": "tiny", "input": "a"})["data"]
        paths = get(f"{url}/openapi.json")["paths"]
        assert {"/predict/late", "/v1/completions"} <= paths.keys()
        with urllib.request.urlopen(f"{url}/docs", timeout=20) as page:
            assert "A language model" in page.read().decode()
    with pytest.raises(ConfigError, match="each model once"):
        build_app([flights.make_service()], languages=[open_language(tiny, name="late")])


@pytest.mark.parametrize("module", ["tenon.serving", "tenon.serving.lm.openai", "tenon.flow.language"])
def test_nothing_imports_torch_before_an_engine_starts(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'safetensors' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_torch_opening_a_language_model_says_what_to_install(tmp_path: Path) -> None:
    """In a process where torch cannot be found, as on a machine without it."""
    code = (
        "import sys, importlib.util\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'torch': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
        "from tenon.errors import MissingError\n"
        "from tenon.serving import build_app\n"
        "from tenon.serving.lm.network import torch_module\n"
        "build_app([])\n"
        "try:\n"
        "    torch_module()\n"
        "except MissingError as error:\n"
        '    assert "tenon[torch]" in str(error), error\n'
        "else:\n"
        "    raise SystemExit('torch was found')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_a_conversation_template_runs_in_a_sandbox(tiny: Path, tmp_path: Path, lm: SimpleNamespace) -> None:
    import shutil

    folder = Path(shutil.copytree(tiny, tmp_path / "template"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": "{{ messages.__class__.__mro__[1].__subclasses__() }}"})
    )
    with running(build_app([], languages=[open_language(folder)])) as url:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "a"}]}
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(f"{url}/v1/chat/completions", body)
        assert refused.value.code == 400
        refused.value.close()

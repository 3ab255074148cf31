"""Every command, setting and finding stands in docs as the code has it; what is not documented does not exist."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import click
import pytest

from tenon import __version__
from tenon.cli import COMMANDS, tenon

from ..script import loaded

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def docs() -> ModuleType:
    return loaded("scripts/docs.py")


@pytest.mark.parametrize("name", ["cli.md", "configuration.md", "findings/README.md"])
def test_a_drawn_page_is_what_the_code_would_draw_now(docs: ModuleType, name: str) -> None:
    assert (ROOT / "docs" / name).read_text("utf-8") == docs.PAGES[name](), "run: python scripts/docs.py"


def test_every_command_says_what_it_does_and_gives_json_where_it_gives_data(docs: ModuleType) -> None:
    assert all(said.endswith(".") for _, said in COMMANDS.values())
    silent = {"tenon completion", "tenon ui"}
    for path, command in docs.commands(tenon, "tenon"):
        assert command.help, path
        flags = {flag for param in command.params for flag in param.opts}
        assert "--json" in flags or path in silent, path
        for param in command.params:
            assert not isinstance(param, click.Option) or param.help, f"{path} {param.opts}"


def test_the_version_is_the_changelogs_newest() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.findall(r"^## (\d+\.\d+\.\d+)", text, re.M)[0] == __version__
    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text("utf-8")

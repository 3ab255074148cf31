"""What commands share: the project argument, the --json flag, and opening a project with progress and a clean end.

`opened` gives a command its Work and closes the store and the progress however the command ends. Commands that only
read open the store read-only, so that they also work beside a running service and never migrate anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tenon.cli.output import Output

if TYPE_CHECKING:
    from tenon.flow import Work
    from tenon.flow.work import Launch
    from tenon.store import Store

Command = TypeVar("Command", bound=Callable[..., Any])

json_flag: Callable[[Command], Command] = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
project_argument: Callable[[Command], Command] = click.argument(
    "project", type=click.Path(file_okay=False, path_type=Path), default="."
)
model_option: Callable[[Command], Command] = click.option(
    "--model", "-m", default="", help="The model, when the project has several."
)


@contextmanager
def opened(
    folder: Path, output: Output, *, again: bool = False, read_only: bool = False, launch: Launch | None = None
) -> Iterator[Work]:
    """Open the project's Work for one command, and close its store and the progress however the command ends."""
    from tenon.flow import Work

    work = Work.open(folder, os.environ, progress=output.progress, again=again, read_only=read_only, launch=launch)
    try:
        yield work
    finally:
        output.end()
        work.store.close()


@contextmanager
def stored(folder: Path, *, read_only: bool = True) -> Iterator[Store]:
    """Open the store of a folder for one command, not the project: for looking where no `project.py` loads."""
    from tenon import config
    from tenon.store import Store

    found = config.load(folder, os.environ)
    if not read_only:
        with Store.open(folder, found.store, found.limits.store, read_only=True):
            pass  # what only tidies up makes no store where there is none
    with Store.open(folder, found.store, found.limits.store, read_only=read_only) as store:
        yield store

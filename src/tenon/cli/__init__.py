"""The command line: flags become one library call, data goes to stdout, talk to stderr; only here is anything printed.

`tenon --help` must answer at once, so this module imports click and nothing of tenon's rooms: a command's module is
imported when the command is called. The table below is the whole surface; a test compares it with docs/cli.md. Exit
codes: 0 done, 1 the job failed, 2 the call was wrong, 130 interrupted.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any, NoReturn

import click

# command -> (module of tenon.cli, one line of help); modules hold a click command named like the command
COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("begin", "Make a project folder, from your own file or with a small example."),
    "run": ("begin", "Take a project from raw files to a gated model and reports; redo only what changed."),
    "ingest": ("data", "Read messy files into typed Parquet; nothing is lost, what does not fit is quarantined."),
    "check": ("data", "Check data against a contract: good rows, bad rows, and which rule each bad row broke."),
    "quarantine": ("data", "Show what was quarantined and why, and read it again."),
    "data": ("history", "List, compare and open the versions of a project's data; delete what nothing needs."),
    "train": ("learn", "Train a project's model, simplest first, and put it before its gate."),
    "fit": ("fit", "Predict whether a training step fits a GPU that is not here, and what would."),
    "runs": ("runs", "List, show, compare and search training runs; say what changed between two."),
    "models": ("learn", "List, promote and roll back model versions; audit what served when."),
    "predict": ("live", "Score a file of rows into another file."),
    "serve": ("live", "Serve a project's model over HTTP."),
    "route": ("route", "Send requests to the replica that answers soonest; replay a trace through the same router."),
    "replay": ("live", "Play recorded rows against the running service as live traffic, facts arriving late."),
    "labels": ("live", "Record true outcomes that arrived late."),
    "watch": ("tell", "Look at what was served: drift, performance as labels mature, latency, errors, cost."),
    "report": ("tell", "Write the report for an engineer, a manager or an executive."),
    "ui": ("tell", "Open the local web page over the same facts."),
    "cost": ("tell", "Say what everything cost, by stage, kind or day."),
    "store": ("care", "Check the store, and delete what nothing refers to."),
    "doctor": ("care", "Probe this machine and say how to mend what is wrong."),
    "completion": ("care", "Print the shell completion script for bash, zsh or fish."),
}


class _Lazy(click.Group):
    """A group that imports a command's module when the command is asked for, not to list it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command = getattr(import_module(f"tenon.cli.{COMMANDS[name][0]}"), name)
        assert isinstance(command, click.Command), name
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        from tenon.errors import nearest

        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"expected a command, got '{args[0]}'; {nearest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, said) for name, (_, said) in COMMANDS.items()])


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from tenon import __version__

        click.echo(f"tenon {__version__}")
        ctx.exit()


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--version", is_flag=True, callback=_version, expose_value=False, is_eager=True, help="Say the version.")
def tenon() -> None:
    """Raw files to a served, watched, costed model.

    One package, one folder, no servers to stand up.
    """


def main() -> None:
    """Run the command line and leave with its exit code; a TenonError is one sentence on stderr, never a traceback."""
    from tenon.errors import TenonError

    try:
        code = tenon.main(prog_name="tenon", standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo("tenon: interrupted; what was finished is kept, and the next run goes on from there", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except TenonError as error:
        _end(str(error), error.exit_code)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            # The reader of our output went away (`tenon runs list | head`): that is not a failure of ours.
            sys.stderr.close()
            sys.exit(0)
        from tenon.errors import sentence

        place = str(error.filename or "this machine")
        said = sentence("to read and write here", error.strerror or str(error), at=place, hint="run `tenon doctor`")
        _end(said, 1)
    except Exception as error:  # noqa: BLE001 - the last edge: a fault of ours is told as one, its trace kept for us
        _end(_fault(error), 1)
    sys.exit(code if isinstance(code, int) else 0)


def _end(said: str, code: int) -> NoReturn:
    from tenon.cli.output import harmless

    click.echo(f"tenon: {harmless(said)}", err=True)
    sys.exit(code)


def _fault(error: Exception) -> str:
    """Say that the fault is tenon's, and where its trace was written for those who mend it."""
    import tempfile
    import traceback

    said = f"{type(error).__name__}: {error}".splitlines()[0]
    try:
        with tempfile.NamedTemporaryFile("w", prefix="tenon-fault-", suffix=".txt", delete=False) as file:
            traceback.print_exception(error, file=file)
        return f"a fault of tenon itself, please report it with {file.name}: {said}"
    except OSError:
        return f"a fault of tenon itself, please report it: {said}"

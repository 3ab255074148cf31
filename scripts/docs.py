"""Write the pages of docs that are drawn from the code: the commands, the settings, the finding codes.

Run `python scripts/docs.py` after changing any of them; a test compares the pages with what this would write.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from tenon import config
from tenon.cli import tenon
from tenon.finding import CODES

DOCS = Path(__file__).parents[1] / "docs"

CLI = """# Commands

Data goes to stdout, talk and progress to stderr, `--json` makes the data JSON. Exit codes: 0 done, 1 the job failed,
2 the call was wrong, 130 interrupted. PROJECT is a folder with a `project.py`, by default the one you are in. For
completion in your shell: `eval "$(tenon completion bash)"` (or `zsh`, `fish`).

This page is drawn from the code by `python scripts/docs.py`.
"""

CONFIGURATION = """# Configuration

`tenon.toml` in the project folder holds what differs between machines and teams; `project.py` holds what the work is.
Everything has a default, a key tenon does not know is an error that names the nearest one, and the effective
configuration is kept with every run.

The environment beats the file: `TENON_`, then the path with two underscores between, as in
`TENON_PRICES__USD_PER_CORE_HOUR=0.08` or `TENON_STORE__CATALOG=postgresql://...`. Keep secrets (a password, the bearer
token) there: they are never written to the store.

```toml
[prices]
usd_per_core_hour = 0.06      # our two machines, all in

[serve]
port = 9000

[limits.serving]
rows_per_request = 500
```

```python
from pathlib import Path
from tenon.config import load

Path("tenon.toml").write_text("[serve]\\nport = 9000\\n")
config = load(Path("."), {"TENON_SERVE__HOST": "0.0.0.0"})
assert (config.serve.port, config.serve.host) == (9000, "0.0.0.0")
```

The tables below are drawn from the code by `python scripts/docs.py`.
"""

FINDINGS = """# Findings

Everything tenon wants to tell a person is a finding: a code, a severity, a place, a sentence, a hint and the numbers
behind it. Each code has a page.

| code | what it says |
|---|---|
"""


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """Yield every command that can be called, with its whole name."""
    if not isinstance(command, click.Group):
        yield path, command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        assert inner is not None, name
        yield from commands(inner, f"{path} {name}")


def cli_page() -> str:
    """Draw the page of commands."""
    parts = [CLI]
    for path, command in commands(tenon, "tenon"):
        words = [
            param.make_metavar(click.Context(command)) for param in command.params if isinstance(param, click.Argument)
        ]
        options = [param for param in command.params if isinstance(param, click.Option)]
        parts.append(f"### `{' '.join([path, *words])}`\n\n{inspect.cleandoc(command.help or '')}\n")
        if options:
            parts.append("| option | what it does |\n|---|---|")
            for option in options:
                names = ", ".join(f"`{name}`" for name in option.opts)
                shown = isinstance(option.default, (int, float, str)) and option.default and not option.is_flag
                default = f" Default: `{option.default}`." if shown else ""
                choices = f" One of {', '.join(option.type.choices)}." if isinstance(option.type, click.Choice) else ""
                parts.append(f"| {names} | {option.help}{choices}{default} |")
            parts.append("")
    return "\n".join(parts)


def settings(kind: type[Any], path: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield every setting: its path, its default, and the comment that stands beside it in the code."""
    tables: list[tuple[str, Any]] = []
    beside = dict(re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(kind), re.M))
    for field in dataclasses.fields(kind):
        here = f"{path}.{field.name}" if path else field.name
        named = typing.get_args(typing.get_type_hints(kind)[field.name])
        if dataclasses.is_dataclass(field.default):
            yield from settings(type(field.default), here)
        elif named and dataclasses.is_dataclass(named[-1]):  # a table of tables, each under a name of the user's
            tables.append((f"{here}.NAME", named[-1]))
        else:
            yield here, field.default, beside[field.name]
    for here, inner in tables:
        yield from settings(inner, here)


def configuration_page() -> str:
    """Draw the page of settings."""
    parts, section = [CONFIGURATION], ""
    for path, default, said in settings(config.Config):
        table, _ = path.rsplit(".", 1)
        if table != section:
            section = table
            parts.append(f"\n## `[{table}]`\n\n| key | default | what it is |\n|---|---|---|")
        parts.append(f"| `{path}` | `{default!r}` | {said} |")
    return "\n".join(parts) + "\n"


def findings_page() -> str:
    """Draw the index of finding codes."""
    rows = [f"| [`{code}`]({code.replace('/', '-')}.md) | {said} |" for code, said in sorted(CODES.items())]
    return FINDINGS + "\n".join(rows) + "\n"


PAGES = {"cli.md": cli_page, "configuration.md": configuration_page, "findings/README.md": findings_page}


def main() -> None:
    """Write the pages."""
    for name, draw in PAGES.items():
        (DOCS / name).write_text(draw(), "utf-8")


if __name__ == "__main__":
    main()

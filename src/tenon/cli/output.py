"""How the command line speaks: one value for stdout as JSON or as text, talk and progress on stderr.

Everything that came from data passes through `harmless` on its way to a terminal: escape sequences in a column name
must not repaint somebody's screen. Progress appears only after two seconds, so quick work stays quiet, and only where
a person looks (a terminal); `--json` silences it.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import click

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
MARK = {"error": "✗", "warning": "!", "info": "·"}
COLOUR = {"error": "red", "warning": "yellow", "info": "cyan"}
STEPS = 200  # a bar is drawn at most so often
QUIET_S = 2.0  # work shorter than this shows no progress


def harmless(text: str) -> str:
    """Show control and direction-changing characters as their code points, so that data cannot drive the terminal."""
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


@dataclass(slots=True)
class Output:
    """Where a command speaks: `emit` writes its one result, `say` talks, `progress` draws while it works."""

    json: bool = False
    _started: float = field(default_factory=time.monotonic)
    _bar: Any = None
    _said: str = ""

    def emit(self, data: Any, text: str | Callable[[], str] = "") -> None:
        """Write the command's result to stdout: `data` as JSON with --json, else `text`."""
        self.end()
        if self.json:
            import msgspec

            click.echo(msgspec.json.format(msgspec.json.encode(data, enc_hook=_plain), indent=2))
        else:
            click.echo(text() if callable(text) else text)

    def say(self, text: str, *, colour: str | None = None) -> None:
        """Talk to the person on stderr, after ending any progress that is being drawn."""
        self.end()
        click.secho(harmless(text), err=True, fg=colour)

    def findings(self, findings: Sequence[Mapping[str, Any]], *, notes: bool = True) -> None:
        """Say findings, gravest first, with place, code and next step; without `notes`, only count those of info."""
        order = {"error": 0, "warning": 1, "info": 2}
        shown = [found for found in findings if notes or found["severity"] != "info"]
        for finding in sorted(shown, key=lambda found: order[found["severity"]]):
            severity = finding["severity"]
            self.say(f"{MARK[severity]} {finding['said']}", colour=COLOUR[severity])
            where = " · ".join(part for part in (finding["place"], finding["code"]) if part)
            self.say(f"    {where}" + (f"\n    {finding['hint']}" if finding["hint"] else ""))
        if len(shown) < len(findings):
            self.say(f"· {len(findings) - len(shown)} notes on the data are in the engineer's report, and in --json")

    def progress(self, done: float, total: float, said: str) -> None:
        """Draw progress of the work named `said`, once it has gone on for two seconds and somebody is looking."""
        if self.json or not sys.stderr.isatty() or time.monotonic() - self._started < QUIET_S:
            return
        if said != self._said:
            self.end()
            self._said = said
            self._bar = click.progressbar(
                length=STEPS, label=f"{harmless(said):<24}", file=sys.stderr, width=30, show_eta=False
            )
            self._bar.__enter__()
        if self._bar is not None:
            at = int(STEPS * min(done / total, 1.0)) if total > 0 else 0
            if at > self._bar.pos or not at:
                self._bar.update(at - self._bar.pos)

    def end(self) -> None:
        """Stop drawing, so that a result or an error starts on a clean line."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar, self._said = None, ""


def _plain(value: Any) -> Any:
    """Turn what JSON does not know into text; arrays and frames never get here."""
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value)


# ── text ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], *, cut: int = 60) -> str:
    """Lay out a table in plain text: figures to the right, words to the left, a cell cut at `cut` characters."""
    cells = [[_cell(value, cut) for value in row] for row in rows]
    widths = [max([len(name), *(len(row[i]) for row in cells)]) for i, name in enumerate(header)]
    right = [
        bool(rows) and all(isinstance(row[i], (int, float)) or row[i] is None for row in rows)
        for i in range(len(header))
    ]

    def line(values: Sequence[str]) -> str:
        return "  ".join(
            value.rjust(width) if side else value.ljust(width)
            for value, width, side in zip(values, widths, right, strict=True)
        ).rstrip()

    lines = [line(list(header)), line(["─" * width for width in widths])]
    return "\n".join(lines + [line(row) for row in cells])


def _cell(value: Any, cut: int) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    text = harmless(str(value)).replace("\n", " ")
    return text if len(text) <= cut else text[: cut - 1] + "…"


def usd(amount: float) -> str:
    """Write money so that small sums stay readable: $1,234, $3.20, $0.0042."""
    if amount >= 100:
        return f"${amount:,.0f}"
    return f"${amount:.2f}" if amount >= 1 or amount == 0 else f"${amount:.2g}"


def when(at: float) -> str:
    """Write an instant as UTC to the second: 2026-11-21 09:30:00."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")


def seconds(spent: float) -> str:
    """Write a duration the way a person says it: 0.4 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if spent < 10:
        return f"{spent:.1f} s"
    if spent < 60:
        return f"{spent:.0f} s"
    if spent < 3600:
        return f"{int(spent // 60)} min {int(spent % 60)} s"
    return f"{int(spent // 3600)} h {int(spent % 3600 // 60)} min"

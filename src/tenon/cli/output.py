"""How the command line speaks: one value for stdout as JSON or as text, talk and progress on stderr.

Everything that came from data passes through `harmless` on its way to a terminal: escape sequences in a column name
must not repaint somebody's screen. Progress is one line, drawn over itself at most ten times a second and wiped away at
the end. It appears only after two seconds, so quick work stays quiet, and only where a person looks (a terminal);
`--json` silences it. Time left is told from the rate of the last ten seconds: parts that were found finished, and a
slow beginning, do not count. Colours need a terminal too, and none are used where NO_COLOR is set.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import click

from tenon.errors import harmless as harmless  # told from here to the commands

MARK = {"error": "✗", "warning": "!", "info": "·"}
COLOUR = {"error": "red", "warning": "yellow", "info": "cyan"}
BAR = 20  # characters of the bar
REDRAW_S = 0.1
RATE_S = 10.0  # rate and time left are those of the last seconds
QUIET_S = 2.0  # work shorter than this shows no progress


def terminal_width() -> int:
    """Return how many places a line may have: the terminal's, what COLUMNS says, or 100 where nobody looks."""
    return shutil.get_terminal_size((100, 24)).columns


def plain() -> bool | None:
    """Say False where no colours are wanted (NO_COLOR), None where click may decide by whether it is a terminal."""
    return False if os.environ.get("NO_COLOR") else None


@dataclass(slots=True)
class Output:
    """Where a command speaks: `emit` writes its one result, `say` talks, `progress` draws while it works.

    Used as a context it wipes progress away however the work ends, so that an error has a line of its own.
    """

    json: bool = False
    _started: float = field(default_factory=time.monotonic)
    _said: str = ""
    _drawn: float = 0.0
    _rows: int = -1
    _seen: deque[tuple[float, float, int]] = field(default_factory=deque)

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def emit(self, data: Any, text: str | Callable[[], str] = "") -> None:
        """Write the command's result to stdout: `data` as JSON with --json, else `text`."""
        self.end()
        if self.json:
            import msgspec

            click.echo(msgspec.json.format(msgspec.json.encode(data, enc_hook=_plain), indent=2))
        else:
            click.echo(text() if callable(text) else text, color=plain())

    def say(self, text: str, *, colour: str | None = None) -> None:
        """Talk to the person on stderr, after ending any progress that is being drawn."""
        self.end()
        click.secho(harmless(text), err=True, fg=colour, color=plain())

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

    def counted(self, rows: int) -> None:
        """Take the rows read so far; from then on progress is bytes, told with both rates."""
        self._rows = rows

    def progress(self, done: float, total: float, said: str) -> None:
        """Draw progress of the work named `said`, once it has gone on for two seconds and somebody is looking."""
        now = time.monotonic()
        if self.json or not sys.stderr.isatty():
            return
        if said != self._said or (self._seen and done < self._seen[-1][1]):
            self._seen.clear()
            self._said = said
        self._seen.append((now, done, self._rows))
        while now - self._seen[0][0] > RATE_S and len(self._seen) > 2:
            self._seen.popleft()
        if now - self._started < QUIET_S or (now - self._drawn < REDRAW_S and done < total):
            return
        width = shutil.get_terminal_size().columns - 1
        line = fitted(harmless(said), max(width - 60, 12)) + "  " + self._told(done, total)
        # One write, over what stood there, wiping only what is left of it: nothing flickers.
        sys.stderr.write(f"\r{fitted(line, width)}\x1b[K")
        sys.stderr.flush()
        self._drawn = now

    def _told(self, done: float, total: float) -> str:
        """Say how far the work is, how fast it goes, and how long it will take."""
        share = min(done / total, 1.0) if total > 0 else 0.0
        full = int(BAR * share)
        told = f"{'█' * full}{'░' * (BAR - full)} {100 * share:3.0f} %"
        then, before, rows = self._seen[0]
        now, done, rows_now = self._seen[-1]
        rate = (done - before) / (now - then) if now > then else 0.0
        if self._rows >= 0:
            told += f"  {rate / 1e6:,.0f} MB/s" if rate else ""
            told += f"  {short((rows_now - rows) / (now - then))} rows/s" if rate and rows >= 0 else ""
        if share >= 1:
            return told + "  finishing"
        return told + (f"  {seconds((total - done) / rate)} left" if rate else "")

    def end(self) -> None:
        """Wipe progress away, so that a result or an error starts on a clean line."""
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
        self._said, self._drawn = "", 0.0
        self._seen.clear()


def _plain(value: Any) -> Any:
    """Turn what JSON does not know into text; arrays and frames never get here."""
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value)


# ── text ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], *, cut: int = 60) -> str:
    """Lay out a table in plain text: figures to the right, words to the left, a cell cut at `cut` characters."""
    cells = [[_cell(value, cut) for value in row] for row in rows]
    names = [_cell(name, cut) for name in header]
    widths = [max([wide(name), *(wide(row[i]) for row in cells)]) for i, name in enumerate(names)]
    right = [
        bool(rows) and all(isinstance(row[i], (int, float)) or row[i] is None for row in rows)
        for i in range(len(header))
    ]

    def line(values: Sequence[str]) -> str:
        return "  ".join(
            " " * (width - wide(value)) + value if side else value + " " * (width - wide(value))
            for value, width, side in zip(values, widths, right, strict=True)
        ).rstrip()

    lines = [line(names), line(["─" * width for width in widths])]
    return "\n".join(lines + [line(row) for row in cells])


def stacked(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Lay out a table; where a terminal is too narrow for it, in parts that each begin with the first column."""
    whole = table(header, rows)
    looked_at = sys.stdout.isatty() or "COLUMNS" in os.environ
    if not looked_at or len(header) < 3 or _across(whole) <= terminal_width():
        return whole
    tried = [(n, table(header[:n], [row[:n] for row in rows])) for n in range(len(header) - 1, 1, -1)]
    n, part = next((one for one in tried if _across(one[1]) <= terminal_width()), tried[-1])
    return f"{part}\n\n{stacked([header[0], *header[n:]], [[row[0], *row[n:]] for row in rows])}"


def _across(text: str) -> int:
    return max(map(wide, text.splitlines()))


def priced(
    header: list[str], rows: list[list[Any]], costs: Mapping[str, Mapping[str, float]]
) -> tuple[list[str], list[list[Any]]]:
    """Give a table of scores, whose rows begin with who reached them, what each took and cost to train, if known."""
    if not costs:
        return header, rows
    found = [costs.get(str(row[0])) for row in rows]
    added = [[seconds(one["seconds"]), usd(one["usd"])] if one else [None, None] for one in found]
    return [*header, "took", "cost"], [[*row, *more] for row, more in zip(rows, added, strict=True)]


def _cell(value: Any, cut: int) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return fitted(harmless(str(value)).replace("\n", " ").replace("\t", " "), cut)


def wide(text: str) -> int:
    """Return how many places a text takes in a terminal: two for East Asian signs, none for marks on other letters."""
    if text.isascii():
        return len(text)
    return sum(_places(sign) for sign in text)


def _places(sign: str) -> int:
    if unicodedata.combining(sign) or sign in "\u200c\u200d\ufe0e\ufe0f":
        return 0
    return 2 if unicodedata.east_asian_width(sign) in "WF" else 1


def fitted(text: str, room: int) -> str:
    """Cut a text to what fits in `room` places, the last of them an ellipsis."""
    if len(text) <= 4 * room and wide(text) <= room:
        return text
    out, used = [], 0
    for sign in text[: 4 * room]:
        used += _places(sign)
        if used > room - 1:
            break
        out.append(sign)
    return "".join(out) + "…"


def short(amount: float) -> str:
    """Write a large number in three figures: 950, 12.3 k, 4.56 M."""
    for size, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if amount >= 0.9995 * size:
            return f"{amount / size:.3g}{name}"
    return f"{amount:.0f}"


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

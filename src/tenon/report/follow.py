"""A run as it goes on, in a few lines of a terminal: step, loss, rate, time left, money, where the time goes, findings.

`lines` is a pure function from a run's record and losses to text of a given width; `Screen` draws such lines over
themselves where somebody looks, and writes one plain line now and then where nobody does (a file, a pipe). Every word
that comes from data passes through `harmless`, so that a name cannot drive the terminal.

The losses become one row of eight heights, the mean of each column; on a logarithmic scale where they are above zero
and span two decades. A column with a value that is no number is marked with `!`.
"""

from __future__ import annotations

import math
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from tenon.errors import harmless

Losses = Sequence[float] | NDArray[np.float64]
BARS = "▁▂▃▄▅▆▇█"
BAR = 24  # places of the bar of progress, at most
SPARKS = 60  # places of the loss, at most
FINDINGS = 3  # shown, the latest
PLAIN_S = 10.0  # between two lines where nobody looks
MARK = {"error": "✗", "warning": "!", "info": "·"}
SPANS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def lines(run: Mapping[str, Any], losses: Losses, *, width: int, now: float, name: str = "loss") -> list[str]:
    """Draw a run: its record (with `stands`, which its guard keeps up to date) and the losses so far."""
    stands = dict(run.get("stands") or {})
    wide = max(width, 20)
    told = [
        _head(run, stands),
        _progress(stands, wide),
        _loss(losses, wide, name),
        _money(stands),
        _time(stands),
        _speed(stands),
        *_findings(run.get("findings") or (), wide),
    ]
    age = now - float(stands.get("at") or now)
    if run.get("status") == "running" and age > 60:
        told.insert(1, f"nothing heard for {_span(age)}")
    return [_cut(harmless(line.replace("\n", " ")), wide) for line in told if line]


def plain(run: Mapping[str, Any], losses: Losses, *, name: str = "loss") -> str:
    """Say in one line how a run stands, for a file or a pipe."""
    stands = dict(run.get("stands") or {})
    step = f"step {stands['step']:,}" if "step" in stands else "no step yet"
    parts = [f"{run.get('model') or 'run'} {run.get('id', '')} {run.get('status', '')}", step, _left(stands)]
    parts += [f"{name} {losses[-1]:.5g}"] if len(losses) else []
    parts += [f"{float(stands['usd']):.4f} USD"] if stands.get("usd") else []
    worst = [one for one in run.get("findings") or () if one.get("severity") != "info"]
    parts += [f"{len(worst)} findings, the last {worst[-1].get('code')}"] if worst else []
    return harmless(" · ".join(part for part in parts if part))


# ── parts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _head(run: Mapping[str, Any], stands: Mapping[str, Any]) -> str:
    of = stands.get("of")
    step = f" · step {stands['step']:,}" + (f" of {of:,}" if of else "") if "step" in stands else ""
    return f"{run.get('model') or 'run'} {run.get('id', '')} · {run.get('status', 'running')}{step}"


def _progress(stands: Mapping[str, Any], width: int) -> str:
    if "step" not in stands:
        return "waiting for the first steps"
    rate = f"{float(stands.get('per_s') or 0):.3g} steps/s"
    left = _left(stands)
    if not stands.get("of"):
        return rate + (f" · {left}" if left else "")
    share = min((stands["step"] + 1) / stands["of"], 1.0)
    places = min(BAR, width // 4)
    full = round(share * places)
    return f"{'█' * full}{'░' * (places - full)} {share:4.0%} · {rate}" + (f" · {left}" if left else "")


def _left(stands: Mapping[str, Any]) -> str:
    per_s, of = float(stands.get("per_s") or 0), stands.get("of")
    if not of or per_s <= 0:
        return ""
    return f"{_span((of - stands['step'] - 1) / per_s)} left"


def _loss(losses: Losses, width: int, name: str) -> str:
    if not len(losses):
        return ""
    values = np.asarray(losses, dtype=np.float64)
    finite = values[np.isfinite(values)]
    best = f"  best {finite.min():.5g}" if len(finite) else ""
    head = f"{name} {values[-1]:.5g}  "
    return head + sparks(values, min(SPARKS, max(width - len(head) - len(best), 8))) + best


def sparks(values: Any, places: int) -> str:
    """Draw values as one row of heights, the mean of each column; `!` where one is no number."""
    columns = [part for part in np.array_split(np.asarray(values, dtype=np.float64), places) if len(part)]
    means = np.array([part[np.isfinite(part)].mean() if np.isfinite(part).any() else np.nan for part in columns])
    known = means[np.isfinite(means)]
    if len(known) and known.min() > 0 and known.max() > 100 * known.min():
        means, known = np.log(means), np.log(known)
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    spread = high - low or 1.0
    drawn = []
    for part, mean in zip(columns, means, strict=True):
        if not np.isfinite(part).all():
            drawn.append("!")
        else:
            drawn.append(BARS[min(int((mean - low) / spread * len(BARS)), len(BARS) - 1)])
    return "".join(drawn)


def _money(stands: Mapping[str, Any]) -> str:
    parts = []
    for field, unit, digits in (("usd", "USD", 4), ("hours", "h", 3), ("kwh", "kWh", 4)):
        spent, of = stands.get(field), stands.get(f"{field}_of")
        if spent is None:
            continue
        whole = f" of {of:g}" if of else ""
        parts.append(f"{spent:.{digits}f}{whole} {unit}")
    step, of = stands.get("step"), stands.get("of")
    if parts and step and of and stands.get("usd"):
        parts[0] += f" ({stands['usd'] * of / (step + 1):.4g} by the end)"
    return f"spent {' · '.join(parts)}" if parts else ""


def _time(stands: Mapping[str, Any]) -> str:
    shares = {
        "waiting for data": stands.get("waiting"),
        "waiting for the device": stands.get("device"),
        "exchanging between ranks": stands.get("communicating"),
        "waiting for the slowest rank": stands.get("late"),
    }
    known = {name: float(share) for name, share in shares.items() if share is not None}
    parts = [
        f"{max(1 - sum(known.values()), 0):.0%} working",
        *(f"{share:.0%} {name}" for name, share in known.items()),
    ]
    if not known:
        parts = []
    if stands.get("lost"):
        parts.append(f"{stands['lost']:.0%} lost to throttling")
    return f"time {' · '.join(parts)}" if parts else ""


def _speed(stands: Mapping[str, Any]) -> str:
    parts = []
    for field, of, unit in (("flops_per_s", "of_flops", "FLOP/s"), ("bytes_per_s", "of_bytes", "B/s")):
        if stands.get(field):
            share = f" ({stands[of]:.0%} of the device)" if stands.get(of) else ""
            parts.append(f"{_scaled(stands[field])}{unit}{share}")
    return f"does {' · '.join(parts)}" if parts else ""


def _findings(found: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    shown = []
    for one in found[-FINDINGS:]:
        step = str(one.get("place", "")).rpartition("/")[2]
        said = f"{MARK.get(str(one.get('severity')), '·')} {one.get('code')} at {step}: {one.get('said')}"
        shown += textwrap.wrap(harmless(said), width, subsequent_indent="  ", max_lines=3, placeholder=" …")
        if one.get("hint") and one.get("severity") != "info":
            shown += textwrap.wrap(harmless(f"  → {one['hint']}"), width, max_lines=1, placeholder=" …")
    more = len(found) - FINDINGS
    return [*shown, f"  and {more} findings before"] if more > 0 else shown


def _scaled(value: float) -> str:
    power = min(max(int(math.log10(max(value, 1.0)) // 3), 0), 5)
    return f"{value / 1000**power:.3g} {['', 'k', 'M', 'G', 'T', 'P'][power]}"


def _span(seconds: float) -> str:
    for size, unit in SPANS:
        if seconds >= 2 * size or size == 1:
            return f"{seconds / size:,.0f} {unit}"
    return ""


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: width - 1] + "…"


# ── a screen ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Screen:
    """Draws lines over what it drew before; where nobody looks it writes one plain line every PLAIN_S instead.

    It is what `guard.show` is set to in a process that shows its own run: ``guard.show = Screen().stands``.
    """

    __slots__ = ("_clock", "_drawn", "_last", "_out", "_run", "_width")

    def __init__(
        self,
        out: TextIO | None = None,
        *,
        run: Mapping[str, Any] | None = None,
        width: Callable[[], int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        import shutil

        self._out = out or sys.stderr
        self._run = dict(run or {})
        self._width = width or (lambda: shutil.get_terminal_size((80, 24)).columns)
        self._clock = clock
        self._drawn = 0
        self._last = -math.inf

    @property
    def seen(self) -> bool:
        """Tell whether somebody looks."""
        return self._out.isatty()

    def draw(self, run: Mapping[str, Any], losses: Losses, *, name: str = "loss", last: bool = False) -> None:
        """Show how a run stands now; `last` leaves it on the screen for good."""
        if not self.seen:
            if last or self._clock() - self._last >= PLAIN_S:
                self._last = self._clock()
                self._out.write(plain(run, losses, name=name) + "\n")
                self._out.flush()
            return
        drawn = lines(run, losses, width=self._width(), now=time.time(), name=name)
        back = f"\x1b[{self._drawn}F\x1b[J" if self._drawn else ""
        self._out.write(back + "\n".join(drawn) + "\n")
        self._out.flush()
        self._drawn = 0 if last else len(drawn)

    def stands(self, told: Mapping[str, Any]) -> None:
        """Show what a guard tells of its own run."""
        run = {"id": told.get("run", ""), "status": "running", **self._run}
        self.draw({**run, "stands": told, "findings": told.get("findings") or ()}, told.get("loss") or ())

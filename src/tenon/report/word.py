"""Numbers and times become words, one way for every page; and text from outside becomes harmless.

A figure that is told to three people must look the same to all three, so rounding is decided here and nowhere else.
Months are written out and times are UTC: a page must read the same on every machine, whatever its locale.

Text that came from a file or a request (a category, a file name, an error) may carry terminal escapes, direction marks
that reorder a line, HTML, or a spreadsheet formula. `clean` takes out what no page should ever hold, when facts are
gathered; `cell` defuses formulas where a table is drawn, because tables get pasted into spreadsheets. HTML is escaped
by the drawing itself (jinja2's autoescape, `chart.esc`). Rejected: stripping HTML, which loses what was really there.
"""

from __future__ import annotations

import math
import re
import unicodedata
from datetime import UTC, datetime
from typing import Any

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_NUMERIC = re.compile(r"[+-]?[\d.,\s]+(e[+-]?\d+)?\s?[%a-zA-Z]{0,3}", re.IGNORECASE)
TEXT_CHARS = 2_000  # a longer text is cut: a page is read by people


def clean(text: str) -> str:
    """Return text without control, direction and unassigned characters, each shown as a middle dot; cut at a bound."""
    cut = text if len(text) <= TEXT_CHARS else text[: TEXT_CHARS - 1] + "…"
    kept = [
        char if char == " " or unicodedata.category(char)[0] not in "CZ" else (" " if char.isspace() else "·")
        for char in cut
    ]
    return "".join(kept)


def cleaned(value: Any) -> Any:
    """Return plain data with every text in it, keys too, made harmless by `clean`, and no NaN or infinity left."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {clean(str(key)): cleaned(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [cleaned(item) for item in value]
    return value


def cell(text: str) -> str:
    """Return the text of a table cell with a leading apostrophe where a spreadsheet would read a formula."""
    bare = text.lstrip()
    if bare[:1] in ("=", "@") or (bare[:1] in ("+", "-") and len(bare) > 1 and not _NUMERIC.fullmatch(bare)):
        return "'" + text
    return text


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def count(value: float) -> str:
    """Write a whole number with thousands: ``336,776``."""
    return f"{round(value):,}"


def decimal(value: float, digits: int = 3) -> str:
    """Write a measure with a fixed number of digits, or three significant ones where those would be all zeros."""
    if value != 0 and abs(value) < 0.5 * 10**-digits:
        return f"{value:.2g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}f}".replace("-0." + "0" * digits, "0." + "0" * digits)


def compact(value: float) -> str:
    """Write any number with four significant digits and no more than it needs: ``0.038``, ``10``, ``3.1e-07``."""
    return count(value) if abs(value) >= 1000 else f"{value:.4g}"


def percent(share: float, digits: int = 1) -> str:
    """Write a share of one as percent: ``23.4%``; a share that would round to none or all says so (``<0.1%``)."""
    least = 0.5 * 10 ** -(digits + 2)
    if 0 < share < least:
        return f"<{10**-digits:.{digits}f}%"
    if 1 - least < share < 1:
        return f">{100 - 10**-digits:.{digits}f}%"
    return f"{100 * share:.{digits}f}%"


def of_hundred(share: float) -> str:
    """Write a share of one as how many in a hundred: ``76``."""
    return str(math.floor(100 * share + 0.5))


def money(usd: float) -> str:
    """Write dollars with cents, and below a cent with two significant digits: ``$12.40``, ``$0.0021``."""
    sign = "-" if usd < 0 else ""
    size = abs(usd)
    if size >= 1000:
        return f"{sign}${size:,.0f}"
    if size >= 0.01 or size == 0:
        return f"{sign}${size:.2f}"
    places = 1 - math.floor(math.log10(size))
    return f"{sign}${size:.{min(places, 12)}f}"


def money_words(usd: float) -> str:
    """Write dollars as said aloud: ``$12.40``, ``12 cents``, ``less than a cent``."""
    if usd == 0:
        return "nothing"
    if 0 < usd < 0.01:
        return "less than a cent"
    if 0 < usd < 0.995:
        cents = round(100 * usd)
        return f"{cents} cent{'' if cents == 1 else 's'}"
    return money(usd)


def size(size_bytes: float) -> str:
    """Write bytes with a unit of thousands: ``34.1 MB``."""
    value = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"


def duration(seconds: float) -> str:
    """Write a duration in the two largest units that matter: ``0.4 s``, ``41 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for large, name, small, sub in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= large:
            rest = whole % large // small
            return f"{whole // large} {name}" + (f" {rest} {sub}" if rest else "")
    raise AssertionError(whole)


def plural(number: float, one: str, many: str = "") -> str:
    """Write a count with its noun: ``1 row``, ``3 rows``."""
    return f"{count(number)} {one if round(number) == 1 else many or one + 's'}"


# ── times ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def instant(value: Any) -> float | None:
    """Read a time as Unix seconds: a number, or ISO 8601 text (UTC when no zone is given); None when it is neither."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value) if math.isfinite(value) else None
    try:
        read = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()


def day(value: Any, *, year: bool = True) -> str:
    """Write a time as a day: ``4 Nov 2013``; text that is no time is returned as it is."""
    at = _utc(value)
    if at is None:
        return "" if value is None else clean(str(value))
    return f"{at.day} {_MONTHS[at.month - 1]}" + (f" {at.year}" if year else "")


def moment(value: Any) -> str:
    """Write a time to the minute in UTC: ``4 Nov 2013, 14:05 UTC``."""
    at = _utc(value)
    if at is None:
        return "" if value is None else clean(str(value))
    return f"{day(value)}, {at.hour:02d}:{at.minute:02d} UTC"


def _utc(value: Any) -> datetime | None:
    at = instant(value)
    try:
        return None if at is None else datetime.fromtimestamp(at, UTC)
    except (OverflowError, OSError, ValueError):
        return None

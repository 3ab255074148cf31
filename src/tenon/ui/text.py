"""Numbers and times as a person reads them on the page; text from outside made harmless.

Every value is escaped by jinja2 where it is drawn. What escaping leaves (terminal escapes that somebody copies into a
shell, characters that reverse the direction of a line) is taken out here; a cell that a spreadsheet would read as a
formula gets an apostrophe, because tables are copied into spreadsheets.
"""

from __future__ import annotations

import math
import unicodedata
from datetime import UTC, datetime
from typing import Any

from tenon.report import word

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_LONGEST = 600
NONE = "–"


def clean(value: Any) -> str:
    """Return text without control and direction characters, cut at a bound, never starting like a formula."""
    if value is None:
        return NONE
    text = str(value)
    cut = text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
    kept = "".join(
        char if char == " " or unicodedata.category(char)[0] not in "CZ" else " " if char.isspace() else "·"
        for char in cut
    )
    return "'" + kept if kept[:1] in ("=", "@", "+") or (kept[:1] == "-" and not _number(kept)) else kept


def count(value: Any) -> str:
    """Write a whole number with thousands: ``336,776``."""
    return f"{round(value):,}" if _finite(value) else NONE


def decimal(value: Any, digits: int = 3) -> str:
    """Write a measure with so many digits, or two significant ones where those would be all zeros."""
    if not _finite(value):
        return NONE
    if value != 0 and abs(value) < 0.5 * 10**-digits:
        return f"{value:.2g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}f}"


def percent(value: Any, digits: int = 1) -> str:
    """Write a share as percent: ``23.4 %``."""
    if not _finite(value):
        return NONE
    return "<0.1 %" if 0 < value < 0.0005 else f"{100 * value:.{digits}f} %"


def money(value: Any) -> str:
    """Write dollars with cents, below a cent with two significant digits, below that as next to nothing.

    ``$12.40``, ``$0.0021``, ``<$0.0001``.
    """
    if not _finite(value):
        return NONE
    if abs(value) >= 0.01 or value == 0:
        return f"${value:,.2f}"
    if 0 < value < 0.0001:
        return "<$0.0001"
    return f"${value:.{1 - math.floor(math.log10(abs(value)))}f}"


def size(value: Any) -> str:
    """Write bytes with a unit of thousands: ``34.1 MB``."""
    return word.size(value) if _finite(value) else NONE


def seconds(value: Any) -> str:
    """Write a duration: ``12 ms``, ``3.4 s``, ``5 min``, ``2.1 h``."""
    if not _finite(value):
        return NONE
    if value < 1:
        return f"{1000 * value:.0f} ms"
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def instant(value: Any) -> datetime | None:
    """Read Unix seconds or ISO text as UTC; None when it is neither."""
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, UTC)
        if isinstance(value, str):
            found = datetime.fromisoformat(value)
            return found if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return None


def when(value: Any) -> str:
    """Write a moment: ``25 Nov 2013, 14:05``."""
    found = instant(value)
    return f"{day(value)}, {found:%H:%M}" if found else NONE


def day(value: Any) -> str:
    """Write a day: ``25 Nov 2013``."""
    found = instant(value)
    return f"{found.day} {_MONTHS[found.month - 1]} {found.year}" if found else NONE


def short_day(value: Any) -> str:
    """Write a day without its year: ``25 Nov``."""
    found = instant(value)
    return f"{found.day} {_MONTHS[found.month - 1]}" if found else NONE


def estimate(body: Any, digits: int = 3) -> str:
    """Write a value with its interval: ``0.757 (0.750 to 0.764)``."""
    if not isinstance(body, dict) or not _finite(body.get("value")):
        return NONE
    said = decimal(body["value"], digits)
    if _finite(body.get("low")) and _finite(body.get("high")):
        said += f" ({decimal(body['low'], digits)} to {decimal(body['high'], digits)})"
    return said


def plain(value: Any) -> str:
    """Write any value of a record for a cell: numbers short, lists and tables as one line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else NONE
    if isinstance(value, int):
        return str(value)
    if isinstance(value, dict):
        return clean(", ".join(f"{key} {plain(item)}" for key, item in value.items())) if value else NONE
    if isinstance(value, list):
        return clean(", ".join(plain(item) for item in value)) if value else NONE
    return clean(value)


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _number(text: str) -> bool:
    try:
        float(text.replace(",", "").rstrip("% "))
    except ValueError:
        return len(text) == 1
    return True

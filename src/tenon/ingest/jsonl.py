"""JSON Lines as a frame of text: nested objects become dotted names, lists stay JSON, and every line is accounted for.

Values are written as text so that the same readings apply as for CSV. A line that is no object goes to quarantine.
Names that the plan does not know are counted and voted in, so a schema that changes midway costs a second pass, not
data.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
import polars as pl

from tenon.ingest.charset import Charset, to_utf8
from tenon.ingest.chunk import Refused, Text, too_long

EXAMPLES = 50  # values kept of a name that the plan does not know
DEPTH = 16  # nesting beyond this stays JSON


def flat(record: dict[str, Any], prefix: str = "", depth: int = 0) -> Iterable[tuple[str, str]]:
    """Yield dotted names and values as text; null is the empty text."""
    for name, value in record.items():
        path = f"{prefix}.{name}" if prefix else name
        if isinstance(value, dict) and value and depth < DEPTH:
            yield from flat(value, path, depth + 1)
        elif isinstance(value, str):
            yield path, value
        elif value is None:
            yield path, ""
        elif isinstance(value, bool):
            yield path, "true" if value else "false"
        elif isinstance(value, int):
            yield path, str(value)
        elif isinstance(value, float):
            yield path, repr(value)
        else:
            yield path, msgspec.json.encode(value).decode("utf-8")


def records(data: bytes, charset: Charset) -> Iterable[tuple[int, int, dict[str, str] | None, str]]:
    """Yield each line: where it begins and ends, its flat record (None when it is none), and what is wrong with it."""
    begin = 0
    while begin < len(data):
        end = data.find(b"\n", begin) + 1 or len(data)
        line = data[begin:end].replace(b"\x00", b"").strip()
        if line:
            (line,), _ = to_utf8([line], charset)
            try:
                found = msgspec.json.decode(line)
                why = "" if isinstance(found, dict) else "a JSON object on this line"
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                found, why = None, str(error)
            yield begin, end, dict(flat(found)) if not why and isinstance(found, dict) else None, why
        else:
            yield begin, end, None, ""
        begin = end


def text(
    data: bytes, names: Sequence[str], charset: Charset, unknown: dict[str, list[str]], *, reach: int = 1 << 22
) -> Text:
    """Read lines into a text frame with one column for each name; lines that are no records are refused."""
    columns: list[list[str]] = [[] for _ in names]
    place = {name: number for number, name in enumerate(names)}
    begins, ends, lines = [], [], []
    refused: list[Refused] = []
    skipped: dict[str, int] = {}
    for number, (begin, end, record, why) in enumerate(records(data, charset)):
        if end - begin > reach + 2:
            refused.extend(too_long(begin, end, number, reach))
            continue
        if not why and not record:
            skipped["blank"] = skipped.get("blank", 0) + end - begin
            continue
        if record is None:
            refused.append(Refused(begin, end, number, -1, "json", f"a JSON object: {why}"))
            continue
        if not names:  # what the plan has no column for yet is voted in, and read in the next pass
            skipped["blank"] = skipped.get("blank", 0) + end - begin
        for column in columns:
            column.append("")
        for name, value in record.items():
            if name in place:
                columns[place[name]][-1] = value
            else:
                seen = unknown.setdefault(name, []) if len(unknown) < 1000 else []
                if len(seen) < EXAMPLES:
                    seen.append(value)
        if names:
            begins.append(begin)
            ends.append(end)
            lines.append(number)
    frame = pl.DataFrame({str(n): pl.Series(column, dtype=pl.String) for n, column in enumerate(columns)})
    first, last, line = (np.array(one, dtype=np.int64) for one in (begins, ends, lines))
    return Text(frame, first, last, line, refused=refused, skipped=skipped)

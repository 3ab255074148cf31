"""The end of `tenon ingest`, to be read at a glance: what was found, what was repaired, what waits, each with examples.

It is drawn from the same plain data that `--json` prints and from nothing else, so the two cannot differ. The layout
follows the width of the terminal: one line a column, the longest cells cut first; wide tables show the columns that
have something to tell and count the others. Texts of the source are made harmless before they are cut or coloured, and
a broken row is shown around the place where it and its repair part, which is what one wants to see of it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from tenon.cli.output import fitted, harmless, seconds, short, table, wide

Facts = Mapping[str, Any]
COLUMNS = 24  # of a wide table so many are shown
KINDS = 4  # of repairs, and of what waits
READINGS = 8
INPUTS = 3
LEAST = 60  # places a line is given at least
BEFORE = 14  # places shown before the one where a row and its repair part
PATTERN = {"%Y": "YYYY", "%y": "YY", "%m": "MM", "%d": "DD", "%H": "hh", "%M": "mm", "%S": "ss", "%b": "Mon"}
MARKS = re.compile("('.') (groups|decimals)")
ALIKE = re.compile(r"('.+?') and \1 fit alike")
NEAREST = re.compile(r"; nearest \(.+?\): ")  # see typed.said
TOLD = frozenset(("ingest/repaired", "ingest/quarantined", "ingest/null-words"))  # findings that the summary shows


def summary(body: Facts, width: int) -> str:
    """Lay out what came of an ingest in lines of at most `width` places; colours are in it, to be taken off at will."""
    width = max(width, LEAST)
    parts = [
        "\n".join(_head(body, width)),
        _columns(body, width),
        "\n".join(_readings(body["columns"], width)),
        "\n".join(_repaired(body, width)),
        "\n".join(_waiting(body, width)),
        "\n".join(_end(body, width)),
    ]
    return "\n\n".join(part for part in parts if part)


def line(text: Any) -> str:
    """Return a text of the source as one harmless line; line breaks and tabs are spelt out."""
    spelt = str(text).replace("\\", "\\\\") if "\n" in str(text) or "\t" in str(text) else str(text)
    return harmless(spelt.replace("\n", "\\n").replace("\t", "\\t"))


def many(count: int, noun: str) -> str:
    """Count things: 1 row, 2,000 rows."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


# ── what was read ────────────────────────────────────────────────────────────────────────────────────────────────────


def _head(body: Facts, width: int) -> Iterator[str]:
    alike: dict[str, list[str]] = {}
    for name, dialect in body["dialects"].items():
        alike.setdefault(_dialect(dialect), []).append(Path(name).name)
    for told, names in list(alike.items())[:INPUTS]:
        name = line(names[0]) if len(names) == 1 else f"{line(names[0])} and {len(names) - 1:,} more"
        yield fitted(f"{fitted(name, width // 2)}: {told}", width)
    if len(alike) > INPUTS:
        yield f"… and {sum(len(names) for names in list(alike.values())[INPUTS:]):,} files of other layouts"
    spent = max(body["seconds"], 1e-9)
    rate = f", {body['bytes'] / 1e6 / spent:,.0f} MB/s, {short(body['rows'] / spent)} rows/s" if spent >= 1 else ""
    counts = [
        click.style(f"{many(body['rows'], 'row')} of {many(len(body['columns']), 'column')}", bold=True),
        click.style(f"{body['repaired']:,} repaired", fg="cyan" if body["repaired"] else None),
        click.style(f"{body['quarantined']:,} in quarantine", fg="yellow" if body["quarantined"] else None),
    ]
    told = f"{' · '.join(counts)} · {seconds(body['seconds'])}"
    yield told + rate if len(click.unstyle(told + rate)) <= width else told


def _dialect(dialect: Facts) -> str:
    if dialect["format"] != "csv":
        return {"jsonl": "JSON Lines", "parquet": "Parquet"}.get(dialect["format"], str(dialect["format"]))
    delimiter = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "pipes", " ": "blanks", "": "one column"}
    told = delimiter.get(dialect["delimiter"], f"'{line(dialect['delimiter'])}' between cells")
    spaced = " and blanks" if dialect["spaced"] else ""
    quote = "" if dialect["quote"] in ('"', "") else f", quotes {line(dialect['quote'])}"
    escape = f", escapes {line(dialect['escape'])}" if dialect["escape"] not in ("", '"') else ""
    header = "" if dialect["header"] else ", no header"
    return f"CSV, {told}{spaced}{quote}{escape}, {dialect['encoding']}{header}"


# ── columns ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _columns(body: Facts, width: int) -> str:
    """Lay out the columns, one a line; of many those with something to tell, and the first of the others."""
    facts, counts = body["columns"], body["glance"]["columns"]
    if not facts:
        return ""
    chosen = list(range(len(facts)))
    if len(facts) > COLUMNS:
        telling = [n for n in chosen if facts[n]["name"] in counts or facts[n]["null_words"] or facts[n]["format"]]
        shown = set(telling[:COLUMNS])
        shown.update([n for n in chosen if n not in shown][: COLUMNS - len(shown)])
        chosen = sorted(shown)
    header, rows = ["column", "type", "missing"], []
    marks = [name for name in ("repaired", "waiting") if any(one[name] for one in counts.values())]
    for number in chosen:
        fact = facts[number]
        count = counts.get(fact["name"], {})
        figures = [_percent(fact["null_pct"]), *(f"{count[name]:,}" if count.get(name) else "–" for name in marks)]
        rows.append([fitted(line(fact["name"]), width // 4) or "''", fact["type"], *figures])
    header += marks
    widths = [max(map(wide, column)) for column in zip(header, *rows, strict=True)]
    for row in rows:
        row[2:] = [cell.rjust(size) for cell, size in zip(row[2:], widths[2:], strict=True)]
    fixed = sum(widths) + 2 * len(widths)
    room = max(width - fixed, 8)
    for row, number in zip(rows, chosen, strict=True):
        row.append(_examples(facts[number]["examples"], room))
    told = table([*header, "examples"], rows, cut=width)
    rest = [facts[number] for number in range(len(facts)) if number not in set(chosen)]
    if rest:
        types = ", ".join(f"{count:,} {name}" for name, count in Counter(one["type"] for one in rest).most_common())
        told += "\n" + fitted(f"… and {many(len(rest), 'column')} more ({types}); --json has them all", width)
    return told


def _percent(share: float) -> str:
    if share == 0:
        return "–"
    return "<0.1 %" if share < 0.1 else f"{share:.1f} %" if share < 99.95 or share == 100 else ">99.9 %"


def _examples(values: Sequence[str], room: int) -> str:
    """Show as many examples as fit whole, and the first in any case."""
    told = ""
    for value in map(line, values):
        longer = f"{told}, {value}" if told else value
        if told and wide(longer) > room:
            break
        told = longer
    return fitted(told, room)


def _readings(facts: Sequence[Facts], width: int) -> Iterator[str]:
    """Say how columns are read where that is more than their type: formats, units, words for missing."""
    alike: dict[str, list[str]] = {}
    for fact in facts:
        ways = [_pattern(fact["format"])] if fact["format"] else []
        ways += [f"unit {line(fact['unit'])}"] if fact["unit"] and fact["unit"] not in fact["format"] else []
        ways += [f"missing is {', '.join(map(line, fact['null_words']))}"] if fact["null_words"] else []
        if ways:
            alike.setdefault("; ".join(ways), []).append(line(fact["name"]))
    if not alike:
        return
    yield click.style("Read as", bold=True)
    names = [
        ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "") for names in alike.values()
    ]
    side = min(max(map(wide, names[:READINGS])), width // 3)
    for told, name in list(zip(alike, names, strict=True))[:READINGS]:
        name = fitted(name, side)
        yield f"  {name}{' ' * (side - wide(name))}  {fitted(told, width - side - 4)}"
    if len(alike) > READINGS:
        yield f"  … and {sum(map(len, list(alike.values())[READINGS:])):,} columns more"


def _pattern(format_: str) -> str:
    """Write date patterns the way people do."""
    for sign, said in PATTERN.items():
        format_ = format_.replace(sign, said)
    return MARKS.sub(
        lambda found: f"{found[1]} {'between thousands' if found[2] == 'groups' else 'before decimals'}", line(format_)
    )


# ── repairs and quarantine ───────────────────────────────────────────────────────────────────────────────────────────


def _repaired(body: Facts, width: int) -> Iterator[str]:
    """Show the kinds of repair, each with what stood in the source and what became of it."""
    glance = body["glance"]
    if not glance["repairs"]:
        return
    places = "" if glance["repairs"] == body["repaired"] else f", {many(glance['repairs'], 'repair')}"
    yield click.style(f"Repaired: {many(body['repaired'], 'row')}{places}", fg="cyan", bold=True)
    for kind in glance["repaired"][:KINDS]:
        yield _kind(kind, width)
        was, became = line(kind["was"]), "missing" if kind["became"] is None else line(kind["became"])
        if kind["became"] is not None and was != was.strip():
            was = f"'{was}'"
        room = width - 8
        if wide(was) + wide(became) + 4 <= room:
            yield f"        {was} → {became}"
            continue
        was, became = _parted(was, became)
        yield f"        {fitted(was, room)}"
        yield f"      → {fitted(became, room)}"
    yield from _more(glance["repaired"], glance["repairs"], "repair")


def _waiting(body: Facts, width: int) -> Iterator[str]:
    """Show why rows wait, each reason with the beginning of a row and what would have mended it."""
    kinds = body["glance"]["waiting"]
    if not kinds:
        return
    yield click.style(f"In quarantine: {many(body['quarantined'], 'row')}", fg="yellow", bold=True)
    for kind in kinds[:KINDS]:
        yield _kind(kind, width)
        raw, (why, nearest) = line(kind["raw"]), _split(line(kind["fix"]))
        if nearest:
            delimiter = body["dialects"].get(kind["file"], {}).get("delimiter", ",")
            raw, nearest = _parted(raw, nearest.replace(" | ", line(delimiter)))
        yield f"        {fitted(raw, width - 8)}"
        if nearest:
            yield f"      ≈ {fitted(nearest, width - 8)}"
        if why:
            label = "why" if kind["reason"] == "fields" or nearest else "it needs"
            yield f"        {fitted(f'{label}: {why}', width - 8)}"
    yield from _more(kinds, body["quarantined"], "row")


def _split(fix: str) -> tuple[str, str]:
    """Part what would have mended a row into why it waits and the nearest reading, empty where there is none."""
    fix = ALIKE.sub(r"two places for \1 fit alike", fix)
    found = NEAREST.search(fix)
    return (fix, "") if found is None else (fix[: found.start()], fix[found.end() :])


def _kind(kind: Facts, width: int) -> str:
    column = f"{fitted(line(kind['column']), width // 4)}, " if kind["column"] else ""
    return fitted(f"{kind['count']:>7,}  {kind['said']} ({column}line {kind['line']:,})", width)


def _more(kinds: Sequence[Facts], total: int, noun: str) -> Iterator[str]:
    rest = total - sum(kind["count"] for kind in kinds[:KINDS])
    if rest > 0:
        yield f"{rest:>7,}  {noun}{'' if rest == 1 else 's'} of other kinds; --json has an example of each"


def _parted(was: str, became: str) -> tuple[str, str]:
    """Cut two texts alike, to begin a little before the place where they part."""
    same = next(
        (n for n, (one, other) in enumerate(zip(was, became, strict=False)) if one != other), min(len(was), len(became))
    )
    begin = max(same - BEFORE, 0)
    return (f"…{was[begin:]}", f"…{became[begin:]}") if begin else (was, became)


# ── the account ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _end(body: Facts, width: int) -> Iterator[str]:
    """Account for every byte, and name what was written."""
    balance = body["balance"]
    skipped = ", ".join(f"{name} {size:,}" for name, size in balance["skipped"].items())
    told = [
        f"All {balance['bytes']:,} bytes are accounted for: {balance['row_bytes']:,} in rows",
        f"{balance['quarantine_bytes']:,} in quarantine" if balance["quarantine_bytes"] else "",
        f"{balance['skipped_bytes']:,} skipped ({skipped})" if skipped else "",
    ]
    yield from _wrapped(", ".join(part for part in told if part), width)
    folders: dict[str, list[str]] = {}
    for path in body["written"]:
        folders.setdefault(str(Path(path).parent), []).append(Path(path).name)
    for folder, names in folders.items():
        few = names if len(names) <= 8 else [*names[:3], f"… {len(names) - 6:,} more", *names[-3:]]
        where = "" if folder == "." else f" in {line(folder)}"
        yield from _wrapped(f"Wrote{where}: {', '.join(map(line, few))}", width)


def _wrapped(text: str, width: int) -> Iterator[str]:
    """Break a text between words; a word that is too long stays whole, for it may be a path to copy."""
    out = ""
    for word in text.split(" "):
        if out.strip() and wide(out) + 1 + wide(word) > width:
            yield out
            out = f"  {word}"
        else:
            out = f"{out} {word}" if out else word
    yield out

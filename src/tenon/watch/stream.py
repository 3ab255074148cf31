"""The stream of observations in the store: where its batches lie, and folding many small ones into few.

A collector writes about once a second, so a quiet service leaves 86,400 batches of a few rows a day, and reading a week
would be opening half a million of them. `compact` folds neighbours into batches of up to 20,000 rows, never across the
border of a window, so that summaries of closed windows stay valid: a folded batch keeps the number of its last part.

Folding reads and replaces inside one transaction, because two processes that fold the same neighbours at once would
otherwise lose what the other had folded already.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tenon.store import Store
from tenon.watch.observation import STREAM, decode, encode, settled, stack
from tenon.watch.window import WEEK_S, start_of

PIECE_ROWS = 20_000  # rows of one stored batch at most: large enough to pack well, far below the store's bound
FEWEST = 16  # neighbours worth folding


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Where a stored batch lies: its number, rows, and the first and last time of its rows."""

    seq: int
    at: float  # when it was written
    rows: int
    first: float
    last: float


def spans(store: Store, model: str, *, after: int = 0) -> list[Span]:
    """List where the stored batches of observations above a number lie, in order, without reading any."""
    rows = store.query(
        "SELECT seq, at, row_count, first, last FROM batch WHERE stream = ? AND subject = ? AND seq > ? ORDER BY seq",
        (STREAM, model, after),
    )
    return [
        Span(seq=row["seq"], at=row["at"], rows=row["row_count"], first=row["first"], last=row["last"]) for row in rows
    ]


def compact(store: Store, model: str, *, after: int = 0, width_s: float = WEEK_S) -> int:
    """Fold small neighbours above a number into larger batches; return the number below which nothing is left to fold.

    Writes; each fold is a transaction of its own.
    """
    groups = _groups(spans(store, model, after=after), width_s)
    for group in groups:
        if len(group) >= FEWEST:
            _fold(store, model, group)
    return groups[-2][-1].seq if len(groups) > 1 else after  # only the last group can still grow


def _groups(held: Iterable[Span], width_s: float) -> list[list[Span]]:
    """Cut the batches into runs of neighbours that lie in one window and have at most `PIECE_ROWS` together."""
    groups: list[list[Span]] = []
    rows, window = 0, None
    for span in held:
        here = start_of(span.first, width_s)
        inside = here if here == start_of(span.last, width_s) else None
        if groups and inside is not None and inside == window and rows + span.rows <= PIECE_ROWS:
            groups[-1].append(span)
            rows += span.rows
        else:
            groups.append([span])
            rows, window = span.rows, inside
    return groups


def _fold(store: Store, model: str, group: list[Span]) -> None:
    with store.atomic():
        wanted = [span.seq for span in group]
        batches = []
        for batch in store.read(STREAM, model, after=wanted[0] - 1):
            if batch.seq > wanted[-1]:
                break
            batches.append(batch)
        if [batch.seq for batch in batches] != wanted:
            return  # somebody else has folded them meanwhile
        frame = stack(settled(decode(batch.body, f"{STREAM}/{model}/{batch.seq}")) for batch in batches)
        store.fold(STREAM, model, encode(frame), over=batches)

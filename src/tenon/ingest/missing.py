"""Words that mean "no value": spellings in several languages, also when written with letters that only look right.

`known` compares a cell after folding: case, blanks, brackets and quotes around it are dropped, and Cyrillic and Greek
letters that look like Latin ones become those. So `NULL`, `(null)` and `Ν/А` with a Greek and a Cyrillic letter are
one word. In columns that have a type, every known word means missing; in text columns only `STRONG` spellings and
those that the same file uses in its typed columns do: `NA` may be Namibia, and `-` may be a grade.
"""

from __future__ import annotations

from functools import lru_cache

# Letters that look alike, folded to the Latin one (small letters; the cell is lower-cased first).
LOOKS = str.maketrans(
    "авекмнорстухіјѕһԁԛԝαβεζηικμνορτυχ",
    "abekmhopctyxijshdqwabeznikmnoptux",
)
SOUNDS = str.maketrans("нулаоеизд", "nulaoeizd")
WORDS = frozenset(
    word.strip()
    for line in (
        "| na | n/a | n\\a | #n/a | n.a. | n.a | nan | nat | null | none | nil | nul | \\n | #nv | void | undefined",
        "#null! | missing | unknown | unbekannt | inconnu | desconocido | not available | not applicable | no data",
        "nodata | tbd | nd | n.d. | n/d | nr | n/r | nc | n.c. | s/d | sin dato | sin datos | k.a. | keine angabe",
        "- | -- | --- | ---- | – | — | − | ? | ?? | ??? | . | .. | ... | … | * | x | # | /",
        "нет | нет данных | нет значения | н/д | н.д. | б/д | не указано | не указан | не известно | неизвестно",
        "пусто | #value! | #ref! | #div/0! | #name?",
    )
    for word in line.split("|")
)
STRONG = frozenset(
    ("", "NULL", "null", "Null", "\\N", "#N/A", "<NA>", "(null)", "[NULL]", "<null>", "N/A", "n/a", "NaN", "nan")
)


@lru_cache(maxsize=1 << 14)
def known(cell: str) -> bool:
    """Whether a cell is a known way of writing that there is no value."""
    if len(cell) > 24:
        return False
    word = " ".join(cell.strip().lower().split())
    if word in WORDS or word.replace(" ", "") in WORDS:
        return True
    bare = word.strip("()[]<>{}\"'` ")
    if bare in WORDS:
        return True
    return bare.translate(LOOKS) in WORDS or (len(bare) > 3 and bare.translate(SOUNDS).translate(LOOKS) in WORDS)

Format = tuple[bytes, bytes, bytes]
Gauge = tuple[
    str,
    float,
    float,
    float,
    tuple[bytes, ...],
    tuple[bytes, ...],
    tuple[bytes, ...],
    bool,
    bytes,
    bytes,
    bool,
    bool,
    int,
    int,
    int,
    bytes,
    int,
    int,
    bool,
    tuple[Format, ...],
]
Cell = tuple[str, tuple[bytes, ...]]
Table = tuple[
    int, int, int, int, tuple[float, ...], tuple[Gauge, ...], bytes, bytes, bytes, tuple[Cell, ...], tuple[bytes, ...]
]

def prepare(spec: Table, /) -> object: ...
def groups(table: object, data: bytes, starts: object, ends: object, good: object, quoted: object, /) -> bytes: ...
def mend(
    table: object,
    data: bytes,
    starts: object,
    ends: object,
    firsts: object,
    lasts: object,
    ways: object,
    kind: bool,
    /,
) -> tuple[bytes, bytes, bytes, bytes, bytes]: ...
def judge(table: object, column: int, cell: bytes, /) -> float | None: ...

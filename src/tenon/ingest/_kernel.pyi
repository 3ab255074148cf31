Spec = tuple[str, bool, bytes, tuple[bytes, ...], tuple[bytes, ...], tuple[bytes, ...]]

def read(
    data: bytes, delimiter: int, quote: int, newline: int, reach: int, columns: tuple[Spec, ...], /
) -> tuple[bytes, bytes, list[tuple[object, object] | None], bytes]: ...

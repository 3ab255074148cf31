from collections.abc import Callable

def encode(
    names: tuple[bytes, ...],
    columns: tuple[object, ...],
    compress: Callable[[memoryview], bytes],
    codec: int,
    begin: int,
    /,
) -> tuple[bytes, bytes]: ...

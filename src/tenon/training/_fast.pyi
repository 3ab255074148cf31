from collections.abc import Callable
from typing import Any

class Fast:
    steps: int
    due: int
    next: int
    most: int
    hold: int
    held: int
    read: float
    limit: float
    def __init__(
        self,
        *,
        tensor: type,
        model: Any,
        hook: Callable[..., None],
        casting: Callable[[], bool],
        turns: tuple[tuple[Any, ...], ...],
        ratios: list[float],
        norms: list[float],
        calls: list[Any],
    ) -> None: ...
    def step(self, step: int, loss: Any, norm: Any, /) -> int: ...
    def norm(self) -> float | None: ...
    def after(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, /) -> None: ...
    def follow(self, losses: list[float], /) -> None: ...

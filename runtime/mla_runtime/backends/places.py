"""Places in one allocation, each where a tensor may begin."""

from __future__ import annotations

ALIGNMENT = 256  # what TensorRT asks of every address


class Places:
    """Hands out offsets in order; `size` is what all of them take."""

    def __init__(self) -> None:
        self.size = 0

    def take(self, nbytes: int) -> int:
        """Give the offset of `nbytes` more bytes."""
        offset = self.size
        self.size += -(-nbytes // ALIGNMENT) * ALIGNMENT
        return offset

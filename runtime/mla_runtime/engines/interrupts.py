"""Ctrl-C while TensorRT compiles: it must not be raised inside of TensorRT, which would drop it and go on."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """Whether Ctrl-C was pressed."""

    def __init__(self) -> None:
        self.pressed = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Note the first; the second ends the process at once, whatever it is at."""
        del frame
        signal.signal(number, signal.SIG_DFL)
        self.pressed = True
        sys.stderr.write("stopping when TensorRT lets go; press Ctrl-C again to end at once\n")


@contextmanager
def held_back() -> Iterator[Interrupts]:
    """Note Ctrl-C inside, and raise `KeyboardInterrupt` at the end. Only the main thread is told of it."""
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before = signal.signal(signal.SIGINT, interrupts)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupts.pressed:
        raise KeyboardInterrupt

"""SIGTERM and SIGINT as a wish to stop, which the loop grants between two steps."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

PATIENCE = 2.0  # seconds within which a repeated SIGINT is the same one


@contextmanager
def signals() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM or SIGINT sets.

    A second SIGINT interrupts at once, unless it follows the first immediately: torchrun forwards to its processes what
    the terminal has sent to them already.
    """
    arrived = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield arrived
        return
    first: list[float] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and first and time.monotonic() - first[0] > PATIENCE:
            raise KeyboardInterrupt
        first.append(time.monotonic())
        arrived.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

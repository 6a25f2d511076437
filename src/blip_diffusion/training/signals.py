"""SIGTERM and SIGINT as requests to stop, which the loop handles between two steps."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

PATIENCE = 2.0  # seconds within which a repeated SIGINT counts as the same


@contextmanager
def signals() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM or SIGINT sets.

    A second SIGINT interrupts at once, unless it follows the first immediately: torchrun forwards signals
    that the terminal has already sent to its processes.
    """
    arrived = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield arrived
        return
    first: list[float] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and first and time.monotonic() - first[0] > PATIENCE:
            raise KeyboardInterrupt
        first.append(time.monotonic())
        arrived.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Ctrl-C between two steps instead of amid one."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def interrupts() -> Iterator[list]:
    """A list that Ctrl-C makes true, instead of an exception in the middle of something; a second Ctrl-C raises it at once.

    It stays empty in a thread, which gets no signal, and where another handler than Python's stands, which then decides.
    """
    received: list = []
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield received
        return

    def note(*_):
        if received:
            raise KeyboardInterrupt
        received.append(True)

    signal.signal(signal.SIGINT, note)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)

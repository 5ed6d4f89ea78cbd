"""A limit on the memory of images that are decoded at one time.

Decoders run in many threads. A photograph takes a few MiB, and is not counted. A few images of 89 million pixels at one
time would take gigabytes, so they wait for each other.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from data import bounds

UNCOUNTED_BYTES = 32 << 20  # of an image that takes no part: waiting would cost more than it saves


class Room:
    """Bytes that the threads of this process share. An image that needs more than all of them is decoded alone."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._taken = 0
        self._changed = threading.Condition()

    @contextmanager
    def taking(self, wanted: int) -> Iterator[None]:
        """Wait until `wanted` bytes are free, and hold them for the block."""
        if wanted <= UNCOUNTED_BYTES:
            yield
            return
        wanted = min(wanted, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._taken + wanted <= self._total)
            self._taken += wanted
        try:
            yield
        finally:
            with self._changed:
                self._taken -= wanted
                self._changed.notify_all()


DECODING = Room(bounds.DECODING_BYTES)  # for all decoders of this process

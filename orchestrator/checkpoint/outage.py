"""Requests to a store that may be unreachable for a while."""

import threading
from collections.abc import Callable
from typing import TypeVar

from data import storage
from data.storage import patience

OUTAGE_SECONDS = 3600.0  # how long a store may be unreachable before a save, or a start, fails


T = TypeVar("T")


class StoreRetry:
    """Repeats requests while a store is unreachable. Reports once that it is, and once that it is back.

    Args:
        store: its URL, for the messages.
        say: receives the messages.
        until: once set, requests are not repeated any more.

    Attributes:
        away: whether the store is unreachable at present.
    """

    def __init__(self, store: str, say: Callable[[str], None], until: threading.Event | None = None) -> None:
        self._store = store
        self._say = say
        self._until = until
        self._error: Exception | None = None
        self.away = False

    def __call__(self, work: Callable[[], T]) -> T:
        """The result of `work()`, which may be called repeatedly.

        Raises:
            Exception: the last error, after OUTAGE_SECONDS; at once if a retry is pointless.
        """

        def attempt() -> T:
            try:
                return work()
            except Exception as error:
                self._error = error
                raise

        result = patience.patiently(attempt, patience=OUTAGE_SECONDS, until=self._until, on_retry=self._note)
        if self.away:
            self.away = False
            self._say(f"{self._store} is back")
        return result

    def _note(self) -> None:
        if not self.away:
            self.away = True
            assert self._error is not None
            self._say(f"cannot reach {self._store} ({storage.describe(self._error)}); retrying")

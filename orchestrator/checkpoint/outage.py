"""Requests to a store that may be unreachable for a while."""

import threading
from collections.abc import Callable
from typing import TypeVar

from data import storage
from data.storage import patience

OUTAGE = 3600.0  # seconds that a store may be away before a save, or a start, fails

T = TypeVar("T")


class StoreRetry:
    """Carries out work on a store however long that is away, up to OUTAGE seconds. Says so once, and when it is back.

    Args:
        store: its URL, for the messages.
        say: is given them.
        until: once set, nothing is waited for any more.

    Attributes:
        away: whether it is being waited for.
    """

    def __init__(self, store: str, say: Callable[[str], None], until: threading.Event | None = None) -> None:
        self._store, self._say, self._until = store, say, until
        self._error: Exception | None = None
        self.away = False

    def __call__(self, work: Callable[[], T]) -> T:
        """The result of `work()`, which may be carried out repeatedly.

        Raises:
            Exception: what the last try raised; at once if another try cannot change it.
        """

        def attempt() -> T:
            try:
                return work()
            except Exception as error:
                self._error = error
                raise

        result = patience.patiently(attempt, patience=OUTAGE, until=self._until, on_retry=self._note)
        if self.away:
            self.away = False
            self._say(f"{self._store} is back")
        return result

    def _note(self) -> None:
        if not self.away:
            self.away = True
            assert self._error is not None
            self._say(f"{self._store} is away ({storage.describe(self._error)}); trying on")

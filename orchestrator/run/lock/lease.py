"""The lock of a run's folder in a bucket: an object that its owner renews every few seconds.

Clocks of machines differ, so no time in the object counts: a lease has ended if its object has not changed for
LEASE_SECONDS by the clock of the process that waits. Stores create an object conditionally, but some servers that
imitate them ignore the condition. So every owner reads its name back, a moment later.
"""

import time
from dataclasses import replace

from data import storage
from orchestrator.run.lock.owner import Owner, Taken, read_owner

LEASE_SECONDS = 60.0
RENEW_SECONDS = 15.0
SETTLE_SECONDS = 1.5  # after writing its name, before an owner reads it back: longer than a competitor's request
POLL_SECONDS = 2.0


def lease(url: str, owner: Owner, *, by_force: bool) -> None:
    """Take the lease at `url` for `owner`, waiting LEASE_SECONDS at most for the present one to end.

    Args:
        by_force: take it from the present owner.

    Raises:
        Taken: the other owner renews the lease, or was quicker.
    """
    seen, since = read_owner(url), time.monotonic()
    while not (by_force or seen is None or seen.is_dead or time.monotonic() - since > LEASE_SECONDS):
        time.sleep(POLL_SECONDS)
        if (now := read_owner(url)) is not None and now != seen:
            raise Taken(now)
        seen = now
    if by_force or storage.exists(url):  # also if it names no owner, because it is torn
        storage.write_atomic(url, owner.dumps())
    else:
        storage.create(url, owner.dumps())
    time.sleep(SETTLE_SECONDS)
    found = read_owner(url)
    if found is None or found.token != owner.token:
        raise Taken(found)


def renew(url: str, owner: Owner) -> tuple[Owner, Owner | None]:
    """Renew the lease: (the owner as written; the other owner that took it, or None). Raises the store's errors."""
    present = read_owner(url)
    if present is not None and present.token != owner.token:
        return owner, present
    owner = replace(owner, beats=owner.beats + 1)
    storage.write_atomic(url, owner.dumps())
    return owner, None

"""The owner of a run, as `RUN/lock` names it."""

import getpass
import json
import os
import secrets
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from data import storage

NAME = "lock"
BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Owner:
    """One start of a job: the process of its command.

    Attributes:
        token: random; it tells this start from all others.
        user, host, pid: of the command.
        process: the boot of the host, the namespace of process numbers and the start time of the process. They tell it
            from another process with its number: a later one, or one in another container or on a host with this name.
        cluster: the Ray cluster that trains.
        since: when the command began, in local time.
        beats: how often a lease was renewed.
    """

    token: str
    user: str
    host: str
    pid: int
    process: str
    cluster: str
    since: str
    beats: int = 0

    @classmethod
    def here(cls, cluster: str) -> Self:
        """This process as owner."""
        return cls(
            token=secrets.token_hex(16),
            user=_user(),
            host=socket.gethostname(),
            pid=os.getpid(),
            process=_process(os.getpid()),
            cluster=cluster,
            since=time.strftime("%Y-%m-%d %H:%M:%S"),
        )

    @property
    def is_alive(self) -> bool:
        """Whether its process surely lives: on this host, with this number and start time."""
        return self.host == socket.gethostname() and bool(self.process) and _process(self.pid) == self.process

    @property
    def is_dead(self) -> bool:
        """Whether its process surely ended: it was one that this process would see, and it is not there."""
        seen_from_here = self.process.split(" ")[:2] == _process(os.getpid()).split(" ")[:2] != [""]
        return self.host == socket.gethostname() and seen_from_here and _process(self.pid) != self.process

    def __str__(self) -> str:
        return f"{self.user} on {self.host} (process {self.pid}, {self.cluster}, since {self.since})"

    def dumps(self) -> bytes:
        """The content of `RUN/lock`."""
        return f"{json.dumps(asdict(self), indent=1)}\n".encode()


class Taken(Exception):
    """The run has another owner. The message names it."""

    def __init__(self, owner: Owner | None) -> None:
        super().__init__(str(owner or "another process"))


def parse(content: bytes) -> Owner | None:
    """The owner that a lock file names; None if it is empty or torn."""
    try:
        fields = json.loads(content)
        return Owner(**{name: kind(fields[name]) for name, kind in Owner.__annotations__.items()})
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def read_owner(url: str) -> Owner | None:
    """The owner that the lock file at `url` names; None if there is none. Raises the file system's errors."""
    try:
        return parse(storage.read(url))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"user {os.getuid()}"


def _process(pid: int) -> str:
    """Boot, namespace and start time of a process of this namespace; empty if there is none, or outside of Linux."""
    try:
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        return f"{BOOT.read_text().strip()} {os.readlink('/proc/self/ns/pid')} {started}"
    except (OSError, IndexError):
        return ""

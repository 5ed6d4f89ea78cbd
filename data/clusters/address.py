"""The address of a cluster, and whether a server answers there. Imports no Ray, which would try for minutes."""

import queue
import socket
import threading
import time

from data.errors import NoCluster

EXPECTED = "expected HOST:PORT of the cluster's head, as `ray start --head` prints it"


def check_address(address: str, seconds: float) -> float:
    """Check that a server accepts connections at an address within some seconds; returns those that are left.

    Raises:
        NoCluster: it is no HOST:PORT, its host has no address, or no server answers there in time.
    """
    host, port = _parsed(address)
    deadline = time.monotonic() + seconds
    answers = _resolved(host, port, deadline, seconds)
    error: OSError = OSError("no address")
    for family, kind, protocol, _, place in answers:
        with socket.socket(family, kind, protocol) as connection:
            try:
                connection.settimeout(_left(deadline))
                connection.connect(place)
            except OSError as refused:
                error = refused
                continue
            return max(1.0, _left(deadline))
    if isinstance(error, TimeoutError):
        raise NoCluster(
            f"nothing answers there within {seconds:g} s; is the cluster running, and is the address right?"
        )
    raise NoCluster(f"{error.strerror or error}; is the cluster running, and is the address right?")


def _parsed(address: str) -> tuple[str, int]:
    scheme, found, rest = address.partition("://")
    if found and scheme in ("http", "https"):
        raise NoCluster(
            f"this is the address of a job server: use `ray job submit JOB`, or HOST:PORT of the head, such as "
            f"{rest.partition('/')[0].rpartition(':')[0] or 'HOST'}:6379"
        )
    if found:
        raise NoCluster(f"addresses that begin with {scheme}:// are not supported; {EXPECTED}")
    host, colon, port = address.rpartition(":")
    if not colon or not host or any(letter.isspace() for letter in host):
        raise NoCluster(EXPECTED)
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise NoCluster(f"an IPv6 address has brackets, as [{host}]:{port}; {EXPECTED}")
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise NoCluster(f"{port or 'nothing'} is no port; {EXPECTED}")
    return host.strip("[]"), int(port)


def _resolved(host: str, port: int, deadline: float, seconds: float) -> list[tuple]:
    """The addresses of a host. A name server that does not answer costs minutes, so another thread asks it."""
    answers: queue.Queue[list[tuple] | Exception] = queue.Queue()

    def ask() -> None:
        try:
            answers.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answers.put(error)

    threading.Thread(target=ask, name="resolve", daemon=True).start()
    try:
        answer = answers.get(timeout=_left(deadline))
    except queue.Empty:
        raise NoCluster(f"no name server knows the host {host} within {seconds:g} s; {EXPECTED}") from None
    if isinstance(answer, Exception):
        raise NoCluster(f"the host {host} has no address ({answer}); {EXPECTED}") from answer
    return answer


def _left(deadline: float) -> float:
    return max(0.01, deadline - time.monotonic())

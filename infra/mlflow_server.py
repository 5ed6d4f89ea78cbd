"""MLflow's own server on the database and the files that jobs write by default: `python -m infra.mlflow_server`.

The server has no accounts: every client that reaches it may read and delete every run. It therefore listens on
loopback, unless `--allowed-hosts` gives the names by which clients call it. MLflow then refuses requests with another
Host header. Such requests come, for example, from web pages that try to reach the server through a user's browser.
"""

import argparse
import ipaddress
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

LOCAL_NAMES = ("localhost", "localhost:*", "127.0.0.1", "127.0.0.1:*", "[::1]", "[[]::1]:*")
"""Allowed Host headers, at any port, since a port may be forwarded. MLflow's default also allows private addresses."""


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line in one line and exits with code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {self.prog}: {message} (--help explains)\n")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Replaces this process by the server. Exits with code 2 if the command line is wrong."""
    parser = Parser(prog="python -m infra.mlflow_server", description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="folder of mlflow.db (default %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=5000, help="(default %(default)s)")
    parser.add_argument(
        "--allowed-hosts",
        metavar="NAME[:PORT],...",
        help="names by which clients call the server, such as mlflow.internal:5000; localhost is always allowed",
    )
    options = parser.parse_args(arguments)
    named = [name.strip() for name in (options.allowed_hosts or "").split(",") if name.strip()]
    if not is_loopback(options.host) and not named:
        parser.error(
            f"--host {options.host} lets other machines in: give the names by which they call this one with "
            f"--allowed-hosts NAME:{options.port}, or omit --host and forward the port"
        )
    if any(name.startswith("*") for name in named):
        parser.error(f"--allowed-hosts {options.allowed_hosts} allows every name: give the names that clients use")
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    words = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/artifacts"]
    words += ["--host", options.host, "--port", str(options.port), "--allowed-hosts", ",".join([*LOCAL_NAMES, *named])]
    words += ["--workers", "1"]  # more processes would not serve a SQLite file faster than its threads
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "server", *words])


def is_loopback(host: str) -> bool:
    """Whether `host` is reachable from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    main()

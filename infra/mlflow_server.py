"""MLflow's own server on the database and the files that jobs write by default: `python -m infra.mlflow_server`.

It has no accounts: whoever reaches it may read and delete every run. So it listens on loopback, unless the names by
which clients may call it are given. Then MLflow refuses requests that name another host, as a web page does that
tries to reach the server through somebody's browser.
"""

import argparse
import ipaddress
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

LOCAL_NAMES = ("localhost", "localhost:*", "127.0.0.1", "127.0.0.1:*", "[::1]", "[[]::1]:*")
"""What a Host header may say, at any port: one may be forwarded. MLflow's own list has all private addresses, too."""


class Parser(argparse.ArgumentParser):
    """Errors in one line, as everywhere."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {self.prog}: {message} (--help explains)\n")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Become the server; exits with code 2 when the words are wrong."""
    parser = Parser(prog="python -m infra.mlflow_server", description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="that holds mlflow.db (default %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=5000, help="(default %(default)s)")
    parser.add_argument(
        "--allowed-hosts",
        metavar="NAME[:PORT],...",
        help="by which clients call it, such as mlflow.internal:5000; localhost is always one",
    )
    options = parser.parse_args(arguments)
    named = [name.strip() for name in (options.allowed_hosts or "").split(",") if name.strip()]
    if not is_loopback(options.host) and not named:
        parser.error(
            f"--host {options.host} lets other machines in: say how they call this one with "
            f"--allowed-hosts NAME:{options.port}, or leave --host out and forward the port"
        )
    if any(name.startswith("*") for name in named):
        parser.error(f"--allowed-hosts {options.allowed_hosts} allows every name: give those by which clients call it")
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    words = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/artifacts"]
    words += ["--host", options.host, "--port", str(options.port), "--allowed-hosts", ",".join([*LOCAL_NAMES, *named])]
    words += ["--workers", "1"]  # its threads serve a SQLite file as well as more processes would
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "server", *words])


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    main()

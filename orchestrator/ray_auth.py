"""Ray's token authentication, settled in the environment before `import ray`, which reads it once.

A token is on in every cluster that this project starts.
"""

import os
import secrets
from pathlib import Path

CURRENT_CLUSTER = Path("/tmp/ray/ray_current_cluster")  # written by `ray start`, gone after `ray stop`


def cluster_is_named() -> bool:
    """Whether there is a cluster to join: RAY_ADDRESS is set, or `ray start` ran on this machine."""
    return bool(os.environ.get("RAY_ADDRESS")) or CURRENT_CLUSTER.exists()


def settle_authentication() -> None:
    """Choose the token mode, unless RAY_AUTH_MODE says it already. Call before the first `import ray`."""
    if "RAY_AUTH_MODE" in os.environ:
        return
    if not cluster_is_named():
        # A private cluster gets a token that only its processes know. Left to itself, Ray would save one in the home
        # folder, and a cluster that is started there later would ask for it.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    elif (Path.home() / ".ray" / "auth_token").exists():
        os.environ["RAY_AUTH_MODE"] = "token"  # `ray start` asks for a token wherever it finds one

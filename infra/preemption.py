"""Tells Ray that this node will be lost soon, so that its workers save a checkpoint and leave in time.

    python -m infra.preemption watch    on a Compute Engine machine: waits for the metadata server's notice
    python -m infra.preemption drain    drains at once: Kubernetes calls it before it stops a pod

Neither Ray nor its autoscaler listens to a cloud's notice. `ray drain-node` passes it on to the workers.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import psutil
from tenacity import Retrying, before_sleep_log, retry_if_exception_type, wait_exponential_jitter

log = logging.getLogger("preemption")

METADATA = "http://metadata.google.internal"
HANGING_SECONDS = 60  # time after which the metadata server answers even if nothing has changed


def main(words: list[str]) -> int:
    """Runs one of the two commands. Returns its exit code: 1 if no Ray runs on this node, or if Ray refused."""
    parser = argparse.ArgumentParser(prog="python -m infra.preemption", description=__doc__.split("\n", 1)[0])
    parser.add_argument("command", choices=["watch", "drain"])
    parser.add_argument("--grace", type=int, default=25, metavar="SECONDS", help="time until the node is lost (25)")
    arguments = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    reason = wait_for_notice() if arguments.command == "watch" else "the pod is being stopped"
    deadline = time.monotonic() + arguments.grace
    code = drain(reason, arguments.grace)
    if arguments.command == "drain" and code == 0:  # Kubernetes stops the pod when this command ends
        wait_for_raylet(deadline)
    return code


def wait_for_notice(metadata: str = "") -> str:
    """Waits for a notice and returns its reason. If the metadata server does not answer, it keeps asking.

    Args:
        metadata: base URL of the metadata server. The default is that of GCE_METADATA_HOST, as in Google's own clients.
    """
    host = os.environ.get("GCE_METADATA_HOST")
    base = metadata or (f"http://{host}" if host else METADATA)
    retry = Retrying(
        retry=retry_if_exception_type((OSError, ValueError)),
        wait=wait_exponential_jitter(initial=0.5, max=5),
        before_sleep=before_sleep_log(log, logging.WARNING),
    )
    tag = "0"  # of the last known state; with this one, the first answer comes at once
    while True:
        instance, tag = retry(_ask, base, tag)
        if instance.get("preempted") == "TRUE":
            return "Compute Engine takes the spot machine back"
        if (event := instance.get("maintenanceEvent", "NONE")) != "NONE":
            return f"maintenance of the host: {event}"


def _ask(base: str, tag: str) -> tuple[dict[str, str], str]:
    """Waits until the instance's metadata differ from the state `tag`; returns them and their tag."""
    query = {"recursive": "true", "wait_for_change": "true", "timeout_sec": str(HANGING_SECONDS), "last_etag": tag}
    url = f"{base}/computeMetadata/v1/instance/?{urllib.parse.urlencode(query)}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    with urllib.request.urlopen(request, timeout=HANGING_SECONDS + 10) as answer:
        return json.load(answer), answer.headers.get("ETag", "0")


def drain(reason: str, grace: int) -> int:
    """Tells Ray that this node will be lost in `grace` seconds. Returns an exit code."""
    raylet = find_raylet()
    if raylet is None:
        log.error("no Ray node runs here: nothing to drain")
        return 1
    flags = dict(word.split("=", 1) for word in raylet.cmdline() if "=" in word)
    log.info("%s: draining node %s, %d s left", reason, flags["--node_id"], grace)
    return subprocess.run(
        [
            *("ray", "drain-node", "--address", flags["--gcs-address"], "--node-id", flags["--node_id"]),
            *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", reason),
            *("--deadline-remaining-seconds", str(grace)),
        ],
        check=False,
    ).returncode


def find_raylet() -> psutil.Process | None:
    """Ray's process for this node. Its command line names the node and the cluster."""
    processes = psutil.process_iter(["name", "status"])
    living = (process for process in processes if process.info["status"] != psutil.STATUS_ZOMBIE)
    return next((process for process in living if process.info["name"] == "raylet"), None)


def wait_for_raylet(deadline: float) -> None:
    """Waits until the drained node has left the cluster, or until `deadline` (time.monotonic)."""
    while find_raylet() is not None and time.monotonic() < deadline:
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

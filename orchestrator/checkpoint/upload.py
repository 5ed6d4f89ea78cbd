"""A snapshot becomes a checkpoint: every rank brings its files, rank 0 writes the manifest when all are there.

It runs beside training. A store that is away is waited for.
"""

import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from data import storage
from orchestrator.checkpoint.manifest import MANIFEST, CheckpointError, File, Manifest, Part
from orchestrator.checkpoint.outage import StoreRetry


class Abandoned(CheckpointError):
    """Another rank's upload failed, so this one is of no use."""


def publish(
    files: Iterable[tuple[Path, File]],
    describe: Callable[[dict[str, File]], Part],
    destination: str,
    *,
    rank: int,
    world_size: int,
    step: int,
    totals: dict[str, Any],
    metrics: dict[str, float],
    retry: StoreRetry,
    stop: threading.Event,
) -> None:
    """Move this rank's files to a checkpoint's folder; on rank 0 also wait for all other ranks and write the manifest.

    Args:
        files: local files with their digests; each is moved before the next one is asked for.
        describe: from the digests by name, this rank's part of the manifest.
        destination: URL of the checkpoint's folder, the same on all ranks.
        step, totals, metrics: steps done, the accounting totals and the latest metrics, restored with the weights.
        retry: carries out the requests.
        stop: once set, the other ranks are not waited for any more.

    Raises:
        Abandoned: it was stopped.
        CheckpointError: the disk is full.
        Exception: what the store raised, after all tries.
    """
    written: dict[str, File] = {}
    for path, entry in files:
        written[path.name] = entry
        retry(partial(storage.put_file, path, f"{destination}/{path.name}"))
    part = describe(written).model_dump_json().encode()
    retry(partial(storage.write_atomic, f"{destination}/{_part(rank)}", part))
    if rank != 0:
        return

    expected = {_part(other) for other in range(world_size)}
    pause = 0.02
    while missing := expected - set(retry(partial(storage.contents, destination))):
        if stop.wait(pause):
            raise Abandoned(f"{len(missing)} of {world_size} ranks did not finish their upload")
        pause = min(2.0, pause * 1.5)
    texts = [retry(partial(storage.read, f"{destination}/{name}")) for name in sorted(expected)]
    parts = [Part.model_validate_json(text) for text in texts]
    manifest = Manifest(
        step=step,
        world_size=world_size,
        totals=totals,
        metrics=metrics,
        parameters=parts[0].parameters,
        files={name: entry for part in parts for name, entry in part.files.items()},
        fragments=[fragment for part in parts for fragment in part.fragments],
    )
    retry(partial(storage.write_atomic, f"{destination}/{MANIFEST}", manifest.dumps().encode()))


def remove_parts(destination: str) -> None:
    """Delete what the manifest of a complete checkpoint has replaced."""
    for name in storage.matching(destination, "part-*.json"):
        storage.remove(f"{destination}/{name}")


def _part(rank: int) -> str:
    return f"part-{rank:05d}.json"

"""The upload of a snapshot, in the background: every rank moves its files, and rank 0 then writes the manifest.

Requests are repeated while the store is unreachable.
"""

import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from data import storage
from orchestrator.checkpoint.manifest import MANIFEST, CheckpointError, File, Manifest, Part
from orchestrator.checkpoint.notes import MARK, OWNER, origin_text
from orchestrator.checkpoint.outage import StoreRetry


class TakenOver(CheckpointError):
    """Another command owns the run. The message names it."""


class Abandoned(CheckpointError):
    """This rank's upload was stopped because another rank's failed."""


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
    run: str | None,
    retry: StoreRetry,
    stop: threading.Event,
    permit: Callable[[], None] | None = None,
) -> None:
    """Move this rank's files to a checkpoint's folder. Rank 0 also waits for all other ranks and writes the manifest.

    Args:
        files: local files with their digests; each one is moved before the next one is requested.
        describe: digests by file name -> this rank's part of the manifest.
        destination: URL of the checkpoint's folder, the same on all ranks.
        rank, world_size: of this process, and the number of ranks.
        step, totals, metrics: number of steps done, accounting totals and latest metrics, restored with the weights.
        run: identity of the run, for the file beside the manifest.
        retry: repeats the requests.
        stop: once set, rank 0 stops waiting for the other ranks.
        permit: called before the manifest is written.

    Raises:
        Abandoned: `stop` was set.
        TakenOver: by `permit`.
        CheckpointError: the disk is full.
        Exception: the store's error, after all retries.
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
    while missing := expected - (present := retry(partial(storage.contents, destination))).keys():
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
    for name in present.keys() & {MANIFEST, MARK}:  # of an earlier checkpoint with this name
        retry(partial(storage.remove, f"{destination}/{name}"))
    retry(partial(storage.write_atomic, f"{destination}/{OWNER}", origin_text(run)))
    if permit is not None:
        retry(permit)
    retry(partial(storage.write_atomic, f"{destination}/{MANIFEST}", manifest.dumps().encode()))


def remove_parts(destination: str) -> None:
    """Delete the ranks' parts of a complete checkpoint: its manifest contains them."""
    for name in storage.matching(destination, "part-*.json"):
        storage.remove(f"{destination}/{name}")


def _part(rank: int) -> str:
    return f"part-{rank:05d}.json"

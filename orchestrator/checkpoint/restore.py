"""Restoring the newest complete and intact checkpoint, at any world size and ZeRO stage.

Every rank reads only the files that contain its fragments, checks their digests and never runs code from them
(safetensors and JSON; no pickle). If anything is missing or damaged on any rank, all ranks use the previous checkpoint.
Requests are repeated while the store is unreachable.
"""

import logging
import tempfile
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data import storage
from orchestrator.checkpoint.files import DISK_FULL_ERRNOS, disk_full, piece_key, sha256, staging_folder
from orchestrator.checkpoint.fragments import (
    Fragment,
    allocate_optimizer_state,
    held_fragments,
    optimizer_state,
    parameter_sizes,
    publish_weights,
)
from orchestrator.checkpoint.manifest import WEIGHT, CheckpointError, Manifest, complete_checkpoints
from orchestrator.checkpoint.outage import StoreRetry
from orchestrator.engine.step import Engine

log = logging.getLogger(__name__)


def restore(engine: Engine, run_url: str, warn: Callable[[str], None] = log.warning) -> Manifest | None:
    """Load the newest complete and intact checkpoint of a run, the same on all ranks.

    Args:
        warn: receives a line for every damaged checkpoint, and if the store is unreachable.

    Returns:
        The checkpoint's manifest; None if the run has no checkpoint.

    Raises:
        CheckpointError: the checkpoint is intact but of another model; or the run has checkpoints and none is intact:
            starting over would be worse than stopping; or the local disk has no room for files from a bucket.
        Exception: the store's error, after an hour, or at once if a retry is pointless.
    """
    retry = StoreRetry(run_url, warn if dist.get_rank() == 0 else log.warning)
    manifests, any_damaged = _complete_ones(run_url, retry, warn)
    for manifest in manifests:
        with ExitStack() as stack:
            reader = _Reader(engine, manifest, f"{run_url}/{manifest.name}", retry, stack)
            damage = reader.fetch()
            damaged_ranks = torch.tensor(float(damage is not None), device=engine.device)
            dist.all_reduce(damaged_ranks)
            if damaged_ranks > 0:
                if damage is not None:
                    warn(f"checkpoint {manifest.name}: {damage}; using the previous one")
                any_damaged = True
                continue
            reader.load()
        publish_weights(engine)
        return manifest

    if any_damaged:
        raise CheckpointError(f"{run_url}: none of its checkpoints is intact; see the log, or move them")
    return None


def _complete_ones(run_url: str, retry: StoreRetry, warn: Callable[[str], None]) -> tuple[list[Manifest], bool]:
    """A run's complete checkpoints, newest first, and whether there are damaged ones. Rank 0 asks the store."""
    found: list[Any] = [None, False]
    if dist.get_rank() == 0:
        damaged: list[str] = []
        manifests = retry(lambda: list(complete_checkpoints(run_url, damaged.append)))
        for message in dict.fromkeys(damaged):  # once, even if the store was asked repeatedly
            warn(message)
        found = [manifests, bool(damaged)]
    dist.broadcast_object_list(found, src=0)
    return found[0], found[1]


class _Reader:
    """Fetches the fragments of one checkpoint that this rank needs, and copies them to the engine.

    Files from a bucket are in a folder on local disk until `stack` is closed.
    """

    def __init__(self, engine: Engine, manifest: Manifest, url: str, retry: StoreRetry, stack: ExitStack) -> None:
        sizes = parameter_sizes(engine)
        if sizes != manifest.parameters:
            odd = sorted(set(sizes.items()) ^ set(manifest.parameters.items()))[0][0]
            raise CheckpointError(f"{url}: parameter {odd} differs from this job's model; use another run name")

        self.engine = engine
        self.manifest = manifest
        self.url = url
        self.retry = retry

        self.local = storage.is_local(url)
        if self.local:
            self.folder = Path(storage.resolve(url)[1])
        else:
            parent = staging_folder(storage.parent(url))
            parent.mkdir(parents=True, exist_ok=True)
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="restore-", dir=parent)))

        self.held: dict[str, list[Fragment]] = defaultdict(list)  # by parameter
        for fragment in held_fragments(engine):
            self.held[fragment.name].append(fragment)
        self.needed: dict[str, list[tuple[str, str, int, int]]] = defaultdict(list)  # file -> fragments to read
        for state, name, start, numel, file in manifest.fragments:
            if any(start < f.start + f.numel and f.start < start + numel for f in self.held.get(name, [])):
                self.needed[file].append((state, name, start, numel))

    def fetch(self) -> str | None:
        """Fetch all needed files to local disk and check their digests.

        Returns:
            The damage in words; None if there is none.
        """
        for file in self.needed:
            path = self.folder / file
            try:
                if not self.local:
                    self.retry(partial(storage.get_file, f"{self.url}/{file}", path))
                if self.retry(partial(sha256, path)) != self.manifest.files[file].sha256:
                    return f"{file} does not match its SHA-256"
                with safe_open(path, "pt") as tensors:
                    if (wrong := self._wrong_tensor(file, tensors)) is not None:
                        return f"{file} lacks {wrong}"
            except (FileNotFoundError, SafetensorError) as error:
                return f"{file}: {error}"
            except OSError as error:
                if error.errno in DISK_FULL_ERRNOS:
                    raise disk_full(path, self.manifest.files[file].bytes) from error
                raise
        return None

    def load(self) -> None:
        """Copy the fetched fragments to the engine; the manifest was validated, so none is missing."""
        allocate_optimizer_state(self.engine, self.manifest.states, self.manifest.updates)
        for file, fragments in self.needed.items():
            with safe_open(self.folder / file, "pt") as tensors:
                for state, name, start, _ in fragments:
                    self._copy(state, name, start, tensors.get_tensor(piece_key(state, name, start)))

    def _copy(self, state: str, name: str, start: int, source: Tensor) -> None:
        """Copy elements from `start` on of a parameter's state to the fragments that overlap them."""
        for f in self.held[name]:
            first, last = max(start, f.start), min(start + source.numel(), f.start + f.numel)
            if first < last:
                target = f.flat if state == WEIGHT else optimizer_state(self.engine, f.flat)[state]
                f.view(target)[first - f.start : last - f.start].copy_(source[first - start : last - start])

    def _wrong_tensor(self, file: str, tensors: Any) -> str | None:
        """A fragment that the manifest lists and that the file lacks, or has with another type or size."""
        present = set(tensors.keys())
        for state, name, start, numel in self.needed[file]:
            key = piece_key(state, name, start)
            if key not in present:
                return key
            tensor = tensors.get_slice(key)
            if tensor.get_shape() != [numel] or tensor.get_dtype() != "F32":
                return f"{key} with {numel} float32 numbers"
        return None

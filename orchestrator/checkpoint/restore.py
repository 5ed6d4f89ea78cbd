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
from typing import Any, TypeVar, cast

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
from orchestrator.checkpoint.manifest import WEIGHT, CheckpointError, Manifest, Unfit, passed_over, survey
from orchestrator.checkpoint.notes import MARK, Owner, pass_over
from orchestrator.checkpoint.outage import StoreRetry
from orchestrator.engine.step import Engine

T = TypeVar("T")

log = logging.getLogger(__name__)


def restore(
    engine: Engine, run_url: str, warn: Callable[[str], None] = log.warning, owner: Owner | None = None
) -> Manifest | None:
    """Load the newest complete and intact checkpoint of a run, the same on all ranks.

    Newer ones that are unfit get a mark with the reason: from now on they do not count.

    Args:
        warn: receives a line for every unfit checkpoint, and if the store is unreachable.
        owner: the run that the checkpoint must be of. None: any.

    Returns:
        The checkpoint's manifest; None if the run has no checkpoint.

    Raises:
        CheckpointError: the checkpoint is intact but of another model; or the run has checkpoints and none is intact:
            starting over would be worse than stopping; or the local disk has no room for files from a bucket.
        Exception: the store's error, after an hour, or at once if a retry is pointless.
    """
    first = dist.get_rank() == 0
    retry = StoreRetry(run_url, warn if first else log.warning)
    unfit: list[Unfit] = []
    for found in _on_rank_0(lambda: retry(lambda: list(survey(run_url, owner)))):
        if isinstance(found, Unfit):
            unfit.append(found)
        elif damage := _load(engine, found, f"{run_url}/{found.name}", retry):
            unfit.append(Unfit(found.name, damage))
        else:
            if first:
                _mark(run_url, unfit, found.name, warn)
            return found
        if first:
            warn(str(unfit[-1]))

    marked = _on_rank_0(lambda: retry(lambda: passed_over(run_url)))
    if marked or not all(each.foreign for each in unfit):
        hint = f"; without the file {MARK}, {marked[0]} is tried again" if marked else ""
        raise CheckpointError(f"{run_url}: none of its checkpoints is intact; see the log, or move them{hint}")
    return None


def _on_rank_0(work: Callable[[], T]) -> T:
    """The result of `work()` on rank 0, on all ranks. Collective."""
    found: list[Any] = [work() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found, src=0)
    return cast(T, found[0])


def _load(engine: Engine, manifest: Manifest, url: str, retry: StoreRetry) -> str | None:
    """Load a checkpoint, unless any rank finds it damaged. Collective.

    Returns:
        The damage in words, the same on all ranks; None if there is none.
    """
    with ExitStack() as stack:
        reader = _Reader(engine, manifest, url, retry, stack)
        damage = reader.fetch()
        damaged_ranks = torch.tensor(float(damage is not None), device=engine.device)
        dist.all_reduce(damaged_ranks)
        if damaged_ranks > 0:
            causes: list[str | None] = [None] * dist.get_world_size()
            dist.all_gather_object(causes, damage)
            return next(cause for cause in causes if cause is not None)
        reader.load()
    publish_weights(engine)
    return None


def _mark(run_url: str, unfit: list[Unfit], used: str, warn: Callable[[str], None]) -> None:
    """Mark the checkpoints that are newer than the one in use. What cannot be marked now is marked at a later save."""
    try:
        for each in unfit:
            pass_over(f"{run_url}/{each.name}", each.reason, used)
    except Exception as error:  # of any file system
        warn(f"checkpoint {each.name}: it cannot be marked as passed over ({storage.describe(error)})")


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
        """Fetch all needed files to local disk and check them. What looks damaged is read twice.

        Returns:
            The damage in words; None if there is none.
        """
        for file in self.needed:
            if self._damage(file) is not None and (damage := self._damage(file, fresh=True)) is not None:
                return damage
        return None

    def _damage(self, file: str, *, fresh: bool = False) -> str | None:
        path = self.folder / file
        try:
            if not self.local:
                self.retry(partial(storage.get_file, f"{self.url}/{file}", path))
            if self._digest(path, fresh) != self.manifest.files[file].sha256:
                return f"{file} does not match its SHA-256"
            with safe_open(path, "pt") as tensors:
                if (wrong := self._wrong_tensor(file, tensors)) is not None:
                    return f"{file} lacks {wrong}"
        except Exception as error:  # of any file system
            if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS:
                raise disk_full(path, self.manifest.files[file].bytes) from error
            if not isinstance(error, SafetensorError) and storage.is_outage(error, self.url):
                raise
            return f"{file}: {error if isinstance(error, ValueError) else storage.describe(error)}"
        return None

    def _digest(self, path: Path, fresh: bool) -> str:
        def attempt() -> str:
            try:
                return sha256(path, fresh=fresh)
            except OSError as error:
                if storage.is_outage(error, self.url):
                    raise
                raise ValueError(storage.describe(error)) from error  # no retry helps

        return self.retry(attempt)

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

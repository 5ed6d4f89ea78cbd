"""Checkpoints: float32 weights and optimizer state in fragments that any world size and ZeRO stage reads back.

    {run}/step-000001200-5f3a90c1/
        rank-00000-of-00002.000.safetensors    fragments of rank 0, in files of about half a gigabyte
        rank-00001-of-00002.000.safetensors
        manifest.json                          written last: step, totals, each file's size and SHA-256, each fragment

Saving has two halves. `stage` copies this rank's fragments to local disk; training waits for that. `publish` uploads
the staged files beside training; rank 0 writes the manifest once all ranks' files are there. A folder without manifest
is no checkpoint. The random suffix keeps a new attempt at a step apart from what a crash left of an earlier one.

Restoring reads only the files whose fragments this rank needs, checks their digests and never runs code from them
(safetensors and JSON; no pickle). If anything is missing or damaged, all ranks fall back to the checkpoint before.
"""

import hashlib
import itertools
import json
import logging
import re
import secrets
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from orchestrator.engine import Engine
from orchestrator.fragments import (
    WEIGHT,
    allocate_optimizer_state,
    held_fragments,
    optimizer_state,
    owned_fragments,
    publish_weights,
)

FORMAT = 1
MANIFEST = "manifest.json"
FILE_BYTES = 512 * 2**20  # also bounds the memory that staging needs on top of the state itself
PARTS_TIMEOUT = 3600.0  # seconds that rank 0 waits for the other ranks' uploads of one checkpoint
_NAME = re.compile(r"step-(\d{9})-[0-9a-f]{8}")
_FILE = re.compile(r"rank-\d{5}-of-\d{5}\.\d{3}\.safetensors")

log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint that does not fit this run, or an upload that other ranks did not finish."""


@dataclass(frozen=True)
class Manifest:
    """What a complete checkpoint holds.

    `files`: name -> {bytes, sha256}; `fragments`: (state, parameter, start, numel, file).
    """

    name: str
    step: int
    totals: dict[str, Any]
    metrics: dict[str, float]
    parameters: dict[str, int]
    files: dict[str, dict[str, Any]]
    fragments: list[tuple[str, str, int, int, str]]

    @property
    def states(self) -> list[str]:
        """The optimizer's keys, such as exp_avg, without the weights."""
        return sorted({state for state, *_ in self.fragments} - {WEIGHT})

    @classmethod
    def parse(cls, name: str, text: str) -> "Manifest":
        """Raises ValueError, KeyError or TypeError if `text` is not a manifest of this format."""
        record = json.loads(text)
        if record["format"] != FORMAT:
            raise ValueError(f"checkpoint format {record['format']}, this version reads {FORMAT}")
        fragments = [(str(s), str(p), int(a), int(n), str(f)) for s, p, a, n, f in record["fragments"]]
        files = dict(record["files"])
        odd = [
            file for file in files.keys() | {f[4] for f in fragments} if file not in files or not _FILE.fullmatch(file)
        ]
        if odd:
            raise ValueError(f"{odd[0]!r} is no file of a checkpoint")
        return cls(
            name,
            int(record["step"]),
            dict(record["totals"]),
            dict(record["metrics"]),
            dict(record["parameters"]),
            files,
            fragments,
        )


def new_name(step: int) -> str:
    """A folder name for the checkpoint after `step` steps; sorts by step."""
    return f"step-{step:09d}-{secrets.token_hex(4)}"


# ---------------------------------------------------------------------------------------------------------- saving


def stage(engine: Engine, directory: Path) -> None:
    """Write this rank's fragments and `part.json`, which lists them, to a local directory."""
    rank, world = dist.get_rank(), dist.get_world_size()
    prefix = f"rank-{rank:05d}-of-{world:05d}"
    listing: list[tuple[str, str, int, int, str]] = []
    pending: dict[str, torch.Tensor] = {}
    pending_bytes, file_number = 0, 0

    def flush() -> None:
        nonlocal pending_bytes, file_number
        if pending:
            save_file(pending, directory / f"{prefix}.{file_number:03d}.safetensors")
            pending.clear()
            pending_bytes, file_number = 0, file_number + 1

    for fragment in owned_fragments(engine):
        for state, tensor in {WEIGHT: fragment.flat, **optimizer_state(engine, fragment.flat)}.items():
            file = f"{prefix}.{file_number:03d}.safetensors"
            listing.append((state, fragment.name, fragment.start, fragment.numel, file))
            pending[_key(state, fragment.name, fragment.start)] = fragment.view(tensor).to("cpu", copy=True)
            pending_bytes += fragment.numel * 4
            if pending_bytes >= FILE_BYTES:
                flush()
    flush()
    (directory / "part.json").write_text(json.dumps({"fragments": listing, "parameters": _parameter_sizes(engine)}))


def publish(
    directory: Path,
    destination: str,
    *,
    rank: int,
    world_size: int,
    step: int,
    totals: dict[str, Any],
    metrics: dict[str, float],
) -> None:
    """Upload a staged directory; on rank 0 also wait for all other ranks and write the manifest.

    Args:
        directory: what `stage` wrote; its files are moved when the destination is on local disk.
        destination: URL of the checkpoint's folder, the same on all ranks.
        step, totals, metrics: steps done, the accounting totals and the latest metrics, restored with the weights.

    Raises:
        CheckpointError: another rank's files did not arrive within an hour.
    """
    fs, root = fsspec.core.url_to_fs(destination)
    fs.makedirs(root, exist_ok=True)
    part = json.loads((directory / "part.json").read_text())
    part["files"] = {}
    for path in sorted(directory.glob("*.safetensors")):
        part["files"][path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
        if _is_local(fs):
            shutil.move(path, Path(root) / path.name)
        else:
            fs.put_file(str(path), f"{root}/{path.name}")
    _write_text(fs, f"{root}/part-{rank:05d}.json", json.dumps(part))
    if rank != 0:
        return

    parts = _wait_for_parts(fs, root, world_size)
    record: dict[str, Any] = {
        "format": FORMAT,
        "step": step,
        "world_size": world_size,
        "totals": totals,
        "metrics": metrics,
        "parameters": parts[0]["parameters"],
        "files": {name: entry for p in parts for name, entry in p["files"].items()},
        "fragments": [fragment for p in parts for fragment in p["fragments"]],
    }
    _write_text(fs, f"{root}/{MANIFEST}", json.dumps(record))
    for i in range(world_size):
        fs.rm_file(f"{root}/part-{i:05d}.json")


def prune(run_url: str, keep: int) -> None:
    """Delete all but the `keep` newest complete checkpoints, and the unfinished ones that crashes left before them.

    Ray Train's own pruning knows only what was registered with it, which a crash may prevent.
    """
    fs, root = fsspec.core.url_to_fs(run_url)
    kept = [manifest.name for manifest in itertools.islice(complete_checkpoints(run_url), keep)]
    for name in _names(fs, root):
        if kept and name not in kept and name < max(kept):
            fs.rm(f"{root}/{name}", recursive=True)


def _wait_for_parts(fs: Any, root: str, world_size: int) -> list[dict[str, Any]]:
    deadline = time.monotonic() + PARTS_TIMEOUT
    expected = [f"{root}/part-{rank:05d}.json" for rank in range(world_size)]
    pause = 0.05
    while missing := [path for path in expected if not fs.exists(path)]:
        if time.monotonic() > deadline:
            raise CheckpointError(f"{root}: {len(missing)} of {world_size} ranks did not finish their upload")
        time.sleep(pause)
        pause = min(2.0, pause * 1.5)
        fs.invalidate_cache()
    return [json.loads(fs.cat_file(path)) for path in expected]


# ------------------------------------------------------------------------------------------------------- restoring


def complete_checkpoints(run_url: str) -> Iterator[Manifest]:
    """The complete checkpoints of a run, newest first: their manifest parses and every file has its size."""
    fs, root = fsspec.core.url_to_fs(run_url)
    fs.invalidate_cache()
    if not fs.exists(root):
        return
    for name in sorted(_names(fs, root), reverse=True):
        folder = f"{root}/{name}"
        if not fs.exists(f"{folder}/{MANIFEST}"):
            continue  # a crash left it unfinished
        try:
            manifest = Manifest.parse(name, fs.cat_file(f"{folder}/{MANIFEST}").decode())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("checkpoint %s: unreadable manifest (%s); trying the one before", name, error)
            continue
        sizes = {entry["name"].rsplit("/", 1)[-1]: entry["size"] for entry in fs.ls(folder, detail=True)}
        wrong = [file for file, entry in manifest.files.items() if sizes.get(file) != entry["bytes"]]
        if wrong:
            log.warning("checkpoint %s: %s missing or truncated; trying the one before", name, wrong[0])
            continue
        yield manifest


def _names(fs: Any, root: str) -> list[str]:
    names = [path.rstrip("/").rsplit("/", 1)[-1] for path in fs.ls(root, detail=False)]
    return [name for name in names if _NAME.fullmatch(name)]


def restore(engine: Engine, run_url: str, warn: Callable[[str], None] = log.warning) -> Manifest | None:
    """Load the newest complete and intact checkpoint of a run, the same on all ranks; None if there is none.

    Raises:
        CheckpointError: the checkpoint is intact but of another model, or there are checkpoints and none is intact:
            starting over would be worse than stopping.
        OSError: the storage cannot be read.
    """
    candidates: list[Any] = [list(complete_checkpoints(run_url)) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(candidates, src=0)
    for manifest in candidates[0]:
        with tempfile.TemporaryDirectory(prefix="vit-restore-") as scratch:
            reader = _Reader(engine, manifest, f"{run_url}/{manifest.name}", Path(scratch))
            damage = reader.fetch()
            damaged = torch.tensor(float(damage is not None), device=engine.device)
            dist.all_reduce(damaged)
            if damaged > 0:
                if damage is not None:
                    warn(f"checkpoint {manifest.name}: {damage}; using the one before")
                continue
            reader.load()
        publish_weights(engine)
        return manifest
    if candidates[0]:
        raise CheckpointError(
            f"{run_url}: none of {len(candidates[0])} checkpoints is intact; see the log, or move them"
        )
    return None


class _Reader:
    """Brings the fragments of one checkpoint that this rank needs."""

    def __init__(self, engine: Engine, manifest: Manifest, url: str, scratch: Path) -> None:
        sizes = _parameter_sizes(engine)
        if sizes != manifest.parameters:
            odd = sorted(set(sizes.items()) ^ set(manifest.parameters.items()))[0][0]
            raise CheckpointError(f"{url}: parameter {odd} differs from this job's model; use another run name")
        self.engine, self.manifest = engine, manifest
        self.fs, self.root = fsspec.core.url_to_fs(url)
        self.scratch = scratch
        self.held = held_fragments(engine)
        wanted: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for f in self.held:
            wanted[f.name].append((f.start, f.start + f.numel))
        self.needed: dict[str, list[tuple[str, str, int, int]]] = defaultdict(list)  # file -> fragments to read
        for state, name, start, numel, file in manifest.fragments:
            if any(start < b and a < start + numel for a, b in wanted[name]):
                self.needed[file].append((state, name, start, numel))

    def fetch(self) -> str | None:
        """Bring all needed files to local disk and check their digests; returns what is wrong, or None."""
        for file in self.needed:
            try:
                path = self._local(file)
                if not _is_local(self.fs):
                    self.fs.get_file(f"{self.root}/{file}", str(path))
                if sha256(path) != self.manifest.files[file]["sha256"]:
                    return f"{file} does not match its SHA-256"
                with safe_open(path, "pt") as tensors:
                    absent = {_key(s, n, a) for s, n, a, _ in self.needed[file]} - set(tensors.keys())
                if absent:
                    return f"{file} lacks {min(absent)}"
            except (FileNotFoundError, SafetensorError) as error:
                return f"{file}: {error}"
        return None

    def load(self) -> None:
        """Copy the fetched fragments into the engine; as many elements as it holds must come."""
        allocate_optimizer_state(self.engine, self.manifest.states, self.manifest.step)
        held = defaultdict(list)
        for f in self.held:
            held[f.name].append(f)
        covered = 0
        for file, fragments in self.needed.items():
            with safe_open(self._local(file), "pt") as tensors:
                for state, name, start, numel in fragments:
                    source = tensors.get_tensor(_key(state, name, start))
                    for f in held[name]:
                        first, last = max(start, f.start), min(start + numel, f.start + f.numel)
                        if first >= last:
                            continue
                        target = f.flat if state == WEIGHT else optimizer_state(self.engine, f.flat)[state]
                        f.view(target)[first - f.start : last - f.start].copy_(source[first - start : last - start])
                        covered += last - first
        expected = sum(f.numel for f in self.held) * (1 + len(self.manifest.states))
        if covered != expected:
            raise CheckpointError(f"{self.root}: covers {covered} of {expected} elements that this rank holds")

    def _local(self, file: str) -> Path:
        return Path(self.root if _is_local(self.fs) else self.scratch) / file


# --------------------------------------------------------------------------------------------------------- helpers


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _key(state: str, name: str, start: int) -> str:
    return f"{state}/{name}@{start}"


def _parameter_sizes(engine: Engine) -> dict[str, int]:
    # under ZeRO 3 a parameter is empty between uses and `ds_numel` keeps its size
    return {name: int(getattr(p, "ds_numel", p.numel())) for name, p in engine.deepspeed.module.named_parameters()}


def _is_local(fs: Any) -> bool:
    return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def _write_text(fs: Any, path: str, text: str) -> None:
    """Write a small file so that it is either there whole or not at all (object stores do that by themselves)."""
    if _is_local(fs):
        temporary = f"{path}.tmp"
        Path(temporary).write_text(text)
        fs.mv(temporary, path)
    else:
        fs.pipe_file(path, text.encode())

"""The manifest of a checkpoint, written last: what makes a folder a checkpoint, and what every byte of it must be.

    {run}/step-000001200-5f3a90c1/
        rank-00000-of-00002.000.safetensors    fragments of rank 0, in files of about half a gigabyte
        rank-00001-of-00002.000.safetensors
        manifest.json                          step, totals, size and SHA-256 of each file and of itself, each fragment

A folder without manifest is no checkpoint. The random suffix keeps a new attempt at a step apart from what a crash left
of an earlier one.
"""

import hashlib
import itertools
import json
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data import storage
from orchestrator.names import SKIPPED

MANIFEST = "manifest.json"
LARGEST_MANIFEST = 512 * 2**20  # bytes; a thousand ranks at ZeRO 3 need a fifth of that
WEIGHT = "weight"  # the float32 weights' key, beside the optimizer's own (exp_avg, exp_avg_sq, momentum_buffer)
_NAME = re.compile(r"step-(\d{9})-[0-9a-f]{8}")

FileName = Annotated[str, Field(pattern=r"^rank-\d{5}-of-\d{5}\.\d{3}\.safetensors$")]
Size = Annotated[int, Field(ge=0, lt=2**63)]
Fragment = tuple[str, str, Size, Size, FileName]  # state, parameter, start, numel, file

log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint that does not fit this run, or one that could not be saved or restored."""


class File(BaseModel):
    """Length and SHA-256 (hex) of one file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    bytes: Size
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Part(BaseModel):
    """What one rank contributes: the elements of each parameter, its files and the fragments in them."""

    model_config = ConfigDict(extra="forbid")

    parameters: dict[str, Size]
    files: dict[FileName, File]
    fragments: list[Fragment]


class Manifest(Part):
    """What a complete checkpoint holds. `totals` and `metrics`, as they were after `step` steps, are restored, too."""

    format: Literal[1, 2] = 2  # 1 had no digest of its own
    step: Size
    world_size: Size
    totals: dict[str, Any]
    metrics: dict[str, float]
    _name: str = ""

    @property
    def name(self) -> str:
        """The checkpoint's folder in its run."""
        return self._name

    @property
    def states(self) -> list[str]:
        """The optimizer's keys, such as exp_avg, without the weights."""
        return sorted({state for state, *_ in self.fragments} - {WEIGHT})

    @property
    def updates(self) -> int:
        """Updates of the weights: steps less skipped ones."""
        return self.step - int(self.metrics.get(SKIPPED, 0))

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        """Every state has every element of every parameter once, in files that are there."""
        pieces: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
        for state, parameter, start, numel, file in self.fragments:
            pieces[state, parameter].append((start, numel))
            if file not in self.files:
                raise ValueError(f"{file!r} is in no list of files")
        for state in (WEIGHT, *self.states):
            for parameter, size in self.parameters.items():
                end = 0
                for start, numel in sorted(pieces.pop((state, parameter), [])):
                    if start != end:
                        raise ValueError(f"{state} of {parameter} has a gap or an overlap at {end}")
                    end += numel
                if end != size:
                    raise ValueError(f"{state} of {parameter} has {end} of {size} elements")
        if pieces:
            raise ValueError(f"{min(pieces)[1]!r} is no parameter")
        return self

    def dumps(self) -> str:
        """The text of `manifest.json`."""
        record = json.loads(json.dumps(self.model_dump()))  # as it will be read
        return json.dumps({**record, "digest": _digest(record)})

    @classmethod
    def parse(cls, name: str, text: str) -> Self:
        """The manifest of the checkpoint in the folder `name`.

        Raises:
            ValueError: in one line, what makes it no manifest of this folder.
        """
        try:
            record = dict(json.loads(text))
            digest = record.pop("digest", None)
            manifest = cls.model_validate(record)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from error
        except (TypeError, RecursionError) as error:
            raise ValueError("no JSON object of a reasonable depth") from error
        if digest != _digest(record) and (manifest.format > 1 or digest is not None):
            raise ValueError("it does not match its own SHA-256")
        manifest._name = name
        if (found := _NAME.fullmatch(name)) and int(found[1]) != manifest.step:
            raise ValueError(f"it belongs to step {manifest.step}")
        return manifest


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def new_name(step: int, suffix: int) -> str:
    """A folder name for the checkpoint after `step` steps, with 32 random bits; sorts by step."""
    return f"step-{step:09d}-{suffix:08x}"


def complete_checkpoints(run_url: str, warn: Callable[[str], None] = log.warning) -> Iterator[Manifest]:
    """The complete checkpoints of a run, newest first: their manifest is sound and every file has its size.

    Those that once were complete and are not any more are named through `warn`.

    Raises:
        OSError: the storage cannot be read; an outage is no damage.
    """
    for name in sorted(_names(run_url), reverse=True):
        sizes = storage.contents(f"{run_url}/{name}")
        if MANIFEST not in sizes:
            continue  # a crash left it unfinished
        try:
            if sizes[MANIFEST] > LARGEST_MANIFEST:
                raise ValueError(f"{sizes[MANIFEST]} bytes are too many")
            manifest = Manifest.parse(name, storage.read(f"{run_url}/{name}/{MANIFEST}").decode())
        except ValueError as error:  # of the text's encoding, too
            warn(f"checkpoint {name}: unreadable manifest ({storage.describe(error)}); using the one before")
            continue
        wrong = [file for file, entry in manifest.files.items() if sizes.get(file) != entry.bytes]
        if wrong:
            warn(f"checkpoint {name}: {wrong[0]} missing or truncated; using the one before")
            continue
        yield manifest


def prune(run_url: str, keep: int) -> None:
    """Delete all but the `keep` newest complete checkpoints, and what crashes left unfinished, however new.

    Nobody may be writing a checkpoint of the run. Ray Train's own pruning knows only what was registered with it, which
    a crash may prevent.
    """
    kept = [manifest.name for manifest in itertools.islice(complete_checkpoints(run_url), keep)]
    for name in _names(run_url):
        if kept and name not in kept and name < max(kept):
            storage.remove(f"{run_url}/{name}/{MANIFEST}")  # first: what a kill leaves now is no checkpoint
            storage.remove_folder(f"{run_url}/{name}")
    remove_unfinished(run_url)


def remove_unfinished(run_url: str) -> None:
    """Delete the checkpoints of a run that have no manifest. Nobody may be writing one."""
    for name in _names(run_url):
        if MANIFEST not in storage.contents(f"{run_url}/{name}"):
            storage.remove_folder(f"{run_url}/{name}")


def _names(run_url: str) -> list[str]:
    return [name for name in storage.contents(run_url) if _NAME.fullmatch(name)]

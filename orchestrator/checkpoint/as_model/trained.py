"""A run as a model: which checkpoint of it, its weights as whole tensors, and what its folder says about them.

An address is the run's URL, with the checkpoint and the kind of weights: `URL[@STEP | @last | @best][#live | #ema]`.
Without them it is the newest complete checkpoint that is intact, and the weights that were trained. A checkpoint that
is asked for by its step must be intact.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from torch import Tensor

from data import storage
from model import VisionTransformer, ViTConfig
from orchestrator.checkpoint.as_model.whole import Damaged, read_whole
from orchestrator.checkpoint.best import Best
from orchestrator.checkpoint.manifest import (
    MANIFEST,
    WEIGHT,
    Manifest,
    Unfit,
    complete_checkpoints,
    survey,
)
from orchestrator.checkpoint.notes import RUN as IDENTITY
from orchestrator.checkpoint.notes import Owner
from orchestrator.engine.average import EMA
from orchestrator.job.data_sections import HeldOutAugment
from orchestrator.job.safe_yaml import parse_without_aliases
from orchestrator.job.sections import Best as BestKeys
from orchestrator.job.sections import Encoder, Model
from orchestrator.job.values import ImpossibleValues
from orchestrator.names import EVALUATED, split_held_out
from orchestrator.run.class_names import CLASSES
from orchestrator.run.folder import JOB, RUN, SUMMARY

ATTEMPTS = 5  # to read the newest checkpoint of a run that deletes its old ones meanwhile
STATES = {"live": WEIGHT, "ema": EMA}
_ADDRESS = re.compile(r"(?P<run>.*?)(?:@(?P<step>[^@#/]*))?(?:#(?P<weights>[^@#/]*))?", re.DOTALL)


class ModelError(ValueError):
    """There is no such model, or it is damaged. The text is one line."""


@dataclass(frozen=True)
class Address:
    """A model of a run.

    Attributes:
        url: the run's folder.
        step: a number of steps, "best", or "last": the newest that is intact.
        weights: "live", or "ema" for the averaged ones.
    """

    url: str
    step: str = "last"
    weights: str = "live"


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained model: its weights, and what belongs to them.

    Attributes:
        config: the network.
        tensors: float32, by parameter.
        augment: from an image to the network's input, as for the first set of `data.eval`.
        class_names: by class number; empty if the classes have none.
        step: updates of the weights, and steps without an effect.
        metrics: of the held-out sets, as they were measured last: {"eval/val/top1": 0.9}.
        origin: where the weights come from: `job`, `run` (its identity), `step`, `weights`, `data` (digest of the
            training set), `code` (what trained them), `checkpoint`, `sha256` (of the checkpoint's manifest), `loss`.
    """

    config: ViTConfig
    tensors: dict[str, Tensor]
    augment: HeldOutAugment
    class_names: list[str]
    step: int
    metrics: dict[str, float]
    origin: dict[str, Any]


def run_address(url: str) -> Address | None:
    """The model of a run that a URL names; None if it names a file or a folder of weights.

    Raises:
        ModelError: there is such a run, but what follows its URL is no checkpoint.
    """
    if is_run(url):
        return Address(url.rstrip("/"))
    found = _ADDRESS.fullmatch(url)
    if found is None or found["run"] == url or not is_run(found["run"]):
        return None
    step, weights = found["step"] or "last", found["weights"] or "live"
    if not (step in ("last", "best") or re.fullmatch("[0-9]{1,9}", step)):
        raise ModelError(f"{url}: {step!r} is no checkpoint; use a number of steps, last or best")
    if weights not in STATES:
        raise ModelError(f"{url}: {weights!r} are no weights; use {' or '.join(STATES)}")
    return Address(found["run"].rstrip("/"), step, weights)


def is_run(url: str) -> bool:
    """Whether a folder is that of a run."""
    return storage.exists(storage.join(url, JOB))


def no_run(url: str) -> str:
    """Why a URL names no run, in words."""
    return f"not the folder of a run (it has no {JOB})" if storage.exists(url) else "does not exist"


def read_trained(address: Address, warn: Callable[[str], None], *, values: bool = True) -> Trained:
    """Read a model of a run.

    Args:
        warn: receives a line for each newer checkpoint that cannot be used, if no step is given.
        values: read the weights. Else the tensors are of the meta device: names and shapes, for a check that is cheap.

    Raises:
        ModelError: there is no such checkpoint, or it is damaged, or of another network than the run's job says.
        Exception: the store's error.
    """
    job, run = _job(address.url), _fields(address.url, RUN, json.loads)
    config = _config(job, address.url)
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in VisionTransformer(config).named_parameters()}
    manifest, tensors = _weights(address, _owner(run), job, shapes, warn, values=values)
    return Trained(
        config=config,
        tensors=tensors,
        augment=_augment(job),
        class_names=_class_names(address.url, config.num_classes),
        step=manifest.step,
        metrics=_metrics(address.url, manifest),
        origin={
            "job": job.get("name"),
            "run": run.get("id"),
            "step": manifest.step,
            "weights": address.weights,
            "evaluated_step": manifest.metrics.get(EVALUATED),
            "data": run.get("train"),
            "code": run.get("code"),
            "checkpoint": manifest.name,
            "sha256": manifest.sha256,
            "loss": (job.get("objective") or {}).get("loss"),
        },
    )


# ------------------------------------------------------------------------------------------------- the checkpoint


def _weights(
    address: Address,
    owner: Owner | None,
    job: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    warn: Callable[[str], None],
    *,
    values: bool,
) -> tuple[Manifest, dict[str, Tensor]]:
    """The weights of the checkpoint that is asked for. A run may delete a checkpoint while it is read."""
    url, state = address.url, STATES[address.weights]
    gone = ""
    for _ in range(ATTEMPTS):
        for manifest in _candidates(address, owner, job, warn):
            _check_fits(manifest, state, shapes, url)
            if not values:
                return manifest, {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
            try:
                return manifest, read_whole(f"{url}/{manifest.name}", manifest, state, shapes)
            except Damaged as damage:
                unfit = Unfit(manifest.name, str(damage))
            except FileNotFoundError as error:
                if not storage.exists(f"{url}/{manifest.name}/{MANIFEST}"):
                    gone = manifest.name
                    break  # look again, which checkpoints there are
                unfit = Unfit(manifest.name, f"{error.filename or error} is missing")
            if address.step != "last":
                raise ModelError(f"{url}/{unfit.name}: {unfit.reason}; name another step, or put back a copy of it")
            warn(str(unfit))
        else:
            break
        if address.step.isdecimal():
            break
    if gone:
        raise ModelError(f"{url}/{gone}: the checkpoint was deleted while it was read; name a newer one")
    raise ModelError(f"{url}: the run has no complete checkpoint that is intact")


def _candidates(
    address: Address, owner: Owner | None, job: Mapping[str, Any], warn: Callable[[str], None]
) -> Iterator[Manifest]:
    """The checkpoints to try, in this order."""
    if address.step == "best":
        best = _best(job, address.url)
        found = best.of(complete_checkpoints(address.url, warn, owner))
        if found is None:
            raise ModelError(f"{address.url}: no checkpoint has {best.metric}, measured at its own step")
        yield found
    elif address.step == "last":
        yield from complete_checkpoints(address.url, warn, owner)
    else:
        yield _at_step(address, int(address.step), owner)


def _at_step(address: Address, step: int, owner: Owner | None) -> Manifest:
    found = list(survey(address.url, owner))
    unfit = ""
    for each in found:
        if isinstance(each, Manifest) and each.step == step:
            return each
        if isinstance(each, Unfit) and int(each.name.split("-")[1]) == step:
            unfit = unfit or f"{address.url}/{each.name}: {each.reason}; name another step, or put back a copy of it"
    if unfit:
        raise ModelError(unfit)
    steps = sorted({each.step for each in found if isinstance(each, Manifest)})
    there = f"it has {', '.join(map(str, steps))}" if steps else "it has none"
    raise ModelError(f"{address.url}: no complete checkpoint at step {step}; {there}")


def _best(job: Mapping[str, Any], url: str) -> Best:
    best = (job.get("checkpoint") or {}).get("best")
    if best is None:
        raise ModelError(f"{url}: the run keeps no best checkpoint: its job has no checkpoint.best")
    try:
        settings = BestKeys.model_validate(best)
    except ValidationError as error:
        raise ModelError(f"{url}/{JOB}: damaged (checkpoint.best); put back a copy of it") from error
    return Best(settings.metric, settings.mode)


def _check_fits(manifest: Manifest, state: str, shapes: Mapping[str, tuple[int, ...]], url: str) -> None:
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    if differing := sorted(set(sizes.items()) ^ set(manifest.parameters.items())):
        name = differing[0][0]
        text = f"{name} has {manifest.parameters.get(name, 0):,} numbers, and {sizes.get(name, 0):,} by {JOB}"
        raise ModelError(f"{url}/{manifest.name}: {text}; it is not of this job")
    if state != WEIGHT and state not in manifest.states:
        raise ModelError(f"{url}/{manifest.name}: it has no averaged weights; the run trained without optimizer.ema")


def _owner(run: Mapping[str, Any]) -> Owner | None:
    """The run that a checkpoint must be of; its length is not known without the data."""
    identity = run.get("id")
    known = isinstance(identity, str) and IDENTITY.fullmatch(identity)
    return Owner(str(identity), total_steps=2**63) if known else None


# ------------------------------------------------------------------------------------------------- the run's folder


def _job(url: str) -> dict[str, Any]:
    job = _fields(url, JOB, parse_without_aliases)
    if not isinstance(job.get("model"), dict):
        raise ModelError(f"{url}/{JOB}: damaged (no model); put back a copy of it")
    return job


def _fields(url: str, name: str, parse: Callable[[bytes], Any]) -> dict[str, Any]:
    try:
        fields = parse(storage.read(f"{url}/{name}"))
        if not isinstance(fields, dict):
            raise ValueError("no mapping")
    except FileNotFoundError:
        raise ModelError(f"{url}/{name}: missing; put back a copy of it") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ModelError(f"{url}/{name}: damaged ({type(error).__name__}); put back a copy of it") from error
    return fields


def _config(job: Mapping[str, Any], url: str) -> ViTConfig:
    section = Model if "num_classes" in job["model"] else Encoder
    try:
        return section.model_validate(job["model"]).vit_config()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if isinstance(wrong := first.get("ctx", {}).get("error"), ImpossibleValues):
            value = wrong.values[0]
            raise ModelError(f"{url}/{JOB}: model.{value.key}: {value}") from error
        key = ".".join(["model", *map(str, first["loc"])])
        raise ModelError(f"{url}/{JOB}: {key}: {first['msg']}; another version of this program wrote it") from error
    except ValueError as error:
        raise ModelError(f"{url}/{JOB}: model.{error}") from error


def _metrics(url: str, manifest: Manifest) -> dict[str, float]:
    """Metrics of the held-out sets. A complete run may have measured more sets after its last checkpoint."""
    metrics = dict(manifest.metrics)
    if storage.exists(f"{url}/{SUMMARY}"):
        summary = _fields(url, SUMMARY, json.loads)
        if summary.get("step") == manifest.step and isinstance(summary.get("metrics"), dict):
            metrics |= summary["metrics"]
    return {name: value for name, value in metrics.items() if split_held_out(name)}


def _augment(job: Mapping[str, Any]) -> HeldOutAugment:
    """Of the first set of `data.eval`; the middle of the image if there is none."""
    sets = (job.get("data") or {}).get("eval") or {}
    for settings in itertools.islice(sets.values(), 1):
        try:
            return HeldOutAugment.model_validate(settings["augment"])
        except (ValidationError, KeyError, TypeError):
            break
    return HeldOutAugment(crop="center")


def _class_names(url: str, num_classes: int) -> list[str]:
    try:
        names = json.loads(storage.read(f"{url}/{CLASSES}"))
    except FileNotFoundError:
        return []
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(names) > num_classes:
        raise ModelError(f"{url}/{CLASSES}: damaged (no list of at most {num_classes} class names); move the file away")
    return names

"""The sections of a job file about data: which images, in which order, how they are read and augmented."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from orchestrator.job.choices import ExactAugment, HeldOutAugment, Pack, SetName
from orchestrator.job.tables import SOURCES
from orchestrator.job.values import Count, ImpossibleValue, Positive, Rate, Section, Size, Text, fits


class Augment(Section):
    """From a decoded training image to the network's input."""

    crop: Literal["inception", "resize_crop", "resize", "center"]
    """inception: random area and aspect ratio; resize_crop: the whole image to a square of `resize` pixels, then a
    random cut; resize: the whole image; center: shorter side to `resize` pixels, then the middle."""
    min_area: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Smallest part of the area that an inception crop keeps."""
    flip: bool = False
    """Mirror half of the images, left to right."""
    resize: Count | None = None
    """Pixels, for resize_crop and center; null = image_size * 256 / 224."""

    @fits("crop", "min_area")
    def _area_is_for_this_crop(self) -> Iterator[ImpossibleValue]:
        if self.min_area != Augment.model_fields["min_area"].default and self.crop != "inception":
            yield ImpossibleValue("min_area", f"only for crop = inception, and it is {self.crop}")

    @fits("crop", "resize")
    def _resize_is_for_this_crop(self) -> Iterator[ImpossibleValue]:
        if self.resize is not None and self.crop not in ("resize_crop", "center"):
            yield ImpossibleValue("resize", f"only for crop = resize_crop or center, and it is {self.crop}")


class DataSet(Section):
    """A set of labelled images."""

    url: Text
    """Folder of WebDataset shards with an index.json: local, gs://, s3:// ..."""


class Source(DataSet):
    """One of several sets to train on."""

    weight: Positive | None = None
    """Its share of every batch, relative to the other sources'. Either all sources have a weight or none has. null = by
    size: the sources are one large set."""
    subset: Count | None = None
    """Train on this many images of it: always the same ones, and a part of every larger subset. null = all."""
    exclude: Text | None = None
    """URL of a list of images to leave out, as `python -m data dedup` writes it; null = none."""


class TrainSet(Section):
    """The training set and the order it is read in."""

    url: Text | None = None
    """Folder of WebDataset shards with an index.json: local, gs://, s3:// ...; null if sources are given."""
    subset: Count | None = None
    """Train on this many images: always the same ones, and a part of every larger subset. null = all."""
    exclude: Text | None = None
    """URL of a list of images to leave out, as `python -m data dedup` writes it; null = none."""
    sources: dict[SetName, Source] = Field(default={})
    """Several sets in one run by name, in place of url, subset and exclude. Their order counts."""
    lanes: Count | None = None
    """Places of the set that a batch is gathered from, at most batch_size; null = 64, or fewer for a
    small batch or set."""
    block: Count = 1024
    """Samples of a lane that are shuffled together."""
    augment: Augment = Augment(crop="inception", flip=True)

    @fits("url", "subset", "exclude", "sources")
    def _url_or_sources(self) -> Iterator[ImpossibleValue]:
        if not self.sources:
            if self.url is None:
                yield ImpossibleValue("url", "missing; give the folder of the training set, or several in sources")
            return
        for key in ("url", "subset", "exclude"):
            if getattr(self, key) is not None:
                yield ImpossibleValue(key, "not allowed beside sources; set it for one of the sources")
        unweighted = [name for name, source in self.sources.items() if source.weight is None]
        if 0 < len(unweighted) < len(self.sources):
            for name in unweighted:
                yield ImpossibleValue(f"sources.{name}.weight", "missing; other sources have a weight")

    def all_sources(self) -> dict[str, Source]:
        """The sets to train on, by the key that describes each: `sources`, or the single one of `url`."""
        if self.url is None:
            return {f"data.train.sources.{name}": source for name, source in self.sources.items()}
        return {"data.train": Source(url=self.url, subset=self.subset, exclude=self.exclude)}


class HeldOutSet(DataSet):
    """A set to measure on."""

    positive: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """For several labels an image, with weights such as a classifier's probabilities: precision@1 counts a label as
    right if its weight is above this. Images without such a label are left out of precision@1."""
    augment: HeldOutAugment = HeldOutAugment(crop="center")
    check_classes: bool = True
    """Compare its classes with those of the other sets before the run; a difference is an error. false = a difference
    is meant, as in a test set of fewer classes."""


class MeasuredSet(HeldOutSet):
    """A set to measure on, by a rule."""

    augment: ExactAugment = ExactAugment(crop="center")
    rule: Literal["top1", "any_label", "multi_label", "objectnet"] | None = None
    """What is right. top1: the image's one label; any_label: any of its labels (ImageNet ReaL); multi_label: one whose
    weight is above `positive`, reported as precision@1; objectnet: one of the classes that the object stands for;
    null = top1 for one label an image, objectnet for a set with its class map, any_label for ReaL, else multi_label."""


def _without_nulls(sets: Any) -> Any:
    """`data.eval: null` is no set at all, and `--set data.eval.val=null` removes one."""
    if sets is None:
        return {}
    return {name: keys for name, keys in sets.items() if keys is not None} if isinstance(sets, dict) else sets


NullableSets = BeforeValidator(_without_nulls, json_schema_input_type=dict[str, HeldOutSet | None] | None)


class Reading(Section):
    """How images are read."""

    workers: Count | None = None
    """Threads that decode, in each training worker; null = one for each of its CPUs."""
    prefetch: Count = 2
    """Batches that are decoded ahead."""
    memory: Size | None = None
    """Memory of a training worker for images, encoded and decoded, such as 4GiB; null = what the order needs and
    256 MiB to read ahead."""
    cache_dir: Text | None = None
    """Folder on a local disk where the workers of a node keep shards from remote storage, whole and verified by their
    checksums; null = no cache."""
    cache_size: Size = 100 * 2**30
    """Size limit of a node's cache; the shards used longest ago are removed first."""
    max_bad_fraction: Rate = 0.05
    """Fraction of the images of an epoch that may be unusable (masked, counted by cause, listed in quarantine.jsonl)
    before the run stops."""
    unreadable: Literal["stop", "mask"] = "stop"
    """What to do with a shard that stays unreadable after all retries: stop the run, or mask its images as bad ones."""


class Data(Reading):
    """Data of a job that trains."""

    pack: Annotated[Pack, SOURCES] | None = None
    """Images that come with the project, to be made into shards before the run; null = all data is there."""
    train: TrainSet
    eval: Annotated[dict[SetName, HeldOutSet], NullableSets] = Field(default={})
    """Held-out sets by name, measured while training."""


class HeldOutData(Reading):
    """Data of a job that measures only."""

    eval: dict[SetName, MeasuredSet] = Field(default={})
    """Held-out sets by name."""


class VtabData(Reading):
    """Data of the VTAB tasks."""

    train: TrainSet
    """Training sets; url is the folder that holds TASK/train and TASK/test for each of the 19 tasks."""

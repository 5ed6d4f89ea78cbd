"""Data sets that TensorFlow Datasets has prepared, such as CIFAR and the 19 tasks of VTAB.

The package (requirements-tfds.txt) works without TensorFlow if a set was prepared in a format with random access:
`array_record`. Encoded images are packed as they are stored.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from data.errors import BadSample, DataError
from data.packing.source import Item, Reading, Skipped, Source, fingerprint, image_field, label_field
from data.sources.vtab import TASKS, task_label


class Tfds(Source):
    """One split of a prepared data set. Keys are places in it.

    Args:
        folder: the folder of its dataset_info.json, such as ~/tensorflow_datasets/cifar100/3.0.2.
        split: "train", "test", or any split in the syntax of TFDS, such as "train[:800]+validation[:200]" for the 1,000
            images of many tasks of VTAB-1k.
        image, label: names of the features. None: those that the data set names for supervised learning, or else
            "image" and "label". A label that is a list makes a multi-label set.
        task: one of `data.sources.vtab.TASKS`, with a derived label.

    Raises:
        DataError: the package is missing, there is no prepared set, or it has no such split or feature.
    """

    def __init__(
        self, folder: str, split: str, *, image: str | None = None, label: str | None = None, task: str | None = None
    ) -> None:
        builder = _builder(folder)
        given = builder.info.supervised_keys or ("image", "label")
        self._image, self._label, self._task = image or given[0], label or given[1], task
        wanted = [("image", self._image)]
        if task is None:
            wanted.append(("label", self._label))
        elif TASKS[task].dataset != builder.name:
            raise DataError(f"{folder}: the task {task} is one of {TASKS[task].dataset}, this is {builder.name}")
        for what, name in wanted:
            if name not in builder.info.features:
                features = ", ".join(sorted(builder.info.features))
                raise DataError(f"{folder}: name the feature with the {what} by --{what}-key; there are: {features}")
        try:
            info = builder.info.splits[split]
        except (KeyError, ValueError) as error:
            raise DataError(f"{folder}: no split {split!r}; there are: {', '.join(builder.info.splits)}") from error
        if task is None:
            feature = builder.info.features[self._label]
            inner = getattr(feature, "feature", feature)  # a Sequence's
            self.multi_label = inner is not feature
            self.num_classes = getattr(inner, "num_classes", None) or 0
            self.class_names = list(getattr(inner, "names", None) or [])
        else:
            self.num_classes = TASKS[task].num_classes
        self.name = f"tfds/{builder.info.full_name}/{split}"
        self._folder, self._split, self._samples = folder, split, int(info.num_examples)
        self.found = self._samples
        self.mean_bytes = (info.num_bytes or 0) / max(self._samples, 1)
        self.fingerprint = fingerprint([self._samples, info.num_bytes, self._image, self._label, task])

    def __len__(self) -> int:
        return self._samples

    def reading(self, positions: np.ndarray) -> Reading:
        return partial(
            _read, self._folder, self._split, self._image, self._label, self._task, self.multi_label, positions
        )


def prepared_splits(folder: str) -> list[str]:
    """The splits of the set that is prepared in `folder`."""
    return list(_builder(folder).info.splits)


def _builder(folder: str) -> Any:
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise DataError("the source tfds needs a package more: pip install -r requirements-tfds.txt") from error
    try:
        return tensorflow_datasets.builder_from_directory(folder)
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: no data set that TFDS prepared ({' '.join(str(error).split())})") from error


def _read(
    folder: str, split: str, image: str, label: str, task: str | None, multi_label: bool, positions: np.ndarray
) -> Iterator[Item | Skipped]:
    import tensorflow_datasets

    try:
        rows = _builder(folder).as_data_source(split=split, decoders={image: tensorflow_datasets.decode.SkipDecoding()})
    except NotImplementedError as error:
        raise DataError(
            f"{folder}: prepared in a format without random access; "
            "prepare it with `tfds build --file_format=array_record`"
        ) from error
    for position in positions.tolist():
        row = rows[position]
        key = f"{position:09d}"
        try:
            extension, content = image_field(TASKS[task].image(row[image]) if task else row[image])
            numbers = [task_label(TASKS[task], row)] if task else np.atleast_1d(row[label]).tolist()
        except BadSample as bad:
            yield Skipped(key, bad.cause)
            continue
        yield Item(key, {extension: content} | label_field(numbers, multi_label))

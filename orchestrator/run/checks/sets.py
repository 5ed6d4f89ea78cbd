"""Opening the sets of a job, and checks of their labels."""

from collections.abc import Mapping

from data import Index, open_index, storage
from data.errors import DataError
from orchestrator.job.choices import feature_sets
from orchestrator.job.errors import Mistakes
from orchestrator.job.kinds import AnyRun
from orchestrator.job.mistakes import problem
from orchestrator.run.checks.places import at_url, each, resolve
from orchestrator.run.class_names import with_class_names


def open_labelled(job: AnyRun, key: str, url: str) -> Index:
    """The index of a set with labels. Raises JobError."""
    index = open_any(job, key, url)
    if index.label_rule().unlabelled and not index.label_counts:
        raise problem(job, key, "its images have no labels: it was indexed with --unlabelled")
    return index


def open_any(job: AnyRun, key: str, url: str) -> Index:
    """The index of a set. Raises JobError."""
    resolved = resolve(job, key, url)
    try:
        storage.check_reachable(resolved)
        return with_class_names(open_index(resolved))
    except DataError as error:
        raise at_url(job, key, url, resolved, str(error)) from error


def check_labels(job: AnyRun, head: str, num_classes: int, key: str, url: str, index: Index) -> None:
    """Stray labels beyond the classes are bad samples, to be masked; more of them are a mistake in the job.

    Args:
        head: the key that decides the classes of the network.
        num_classes: of the network.
        key, url, index: of the set.
    """
    outside = sum(count for label, count in index.label_counts.items() if label >= num_classes)
    if not index.label_counts or outside > job.data.max_bad_fraction * index.num_samples:
        text = f"fewer than the {index.num_classes:,} classes of {key} = {url}"
        if head != "model.num_classes":
            text = f"its head has {num_classes:,} classes, {text}"
        raise problem(job, head, text)


def check_positive(job: AnyRun, held_out: Mapping[str, Index], found: Mistakes) -> None:
    """A threshold for the weights of labels is for sets that have weights."""
    for name, index in held_out.items():
        if job.data.eval[name].positive and not index.multi_label:
            text = "its images have one label each, without weights; use 0"
            found.add(problem(job, f"data.eval.{name}.positive", text))


def check_feature_sets(job: AnyRun, found: Mistakes) -> None:
    """The sets of evaluators of frozen features: one label an image, and no class that is only tested."""
    for key, settings in feature_sets(job.evaluators).items():
        opened: dict[str, Index] = {}
        for part, url in (("train", settings.train), ("test", settings.test)):
            with each(job, found):
                opened[part] = open_labelled(job, f"{key}.{part}", url)
                if opened[part].multi_label:
                    raise problem(job, f"{key}.{part}", "its images have several labels each; one is needed")
        with each(job, found):
            if len(opened) == 2 and (tested := opened["test"].num_classes) > opened["train"].num_classes:
                text = f"{tested:,} classes, and {key}.train has {opened['train'].num_classes:,}"
                raise problem(job, f"{key}.test", text)

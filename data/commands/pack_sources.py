"""The sources of `python -m data pack SOURCE DEST`: the name and the options of each, and how they make a `Source`."""

import argparse
import re

from data import bounds
from data.commands.folder_checks import check_classes, check_dest
from data.commands.pack_measure import add_measure_only
from data.commands.pack_options import (
    TRANSCODING,
    Splits,
    from_option,
    pack_options,
    positive,
    shard_samples,
    shuffling,
    source_parser,
    transcoding,
)
from data.commands.parsing import Commands
from data.sources.classes.holdout import Holdout
from data.sources.vtab import TASKS


def add_sources(command: argparse.ArgumentParser) -> None:
    """Add the sources to the pack command."""
    sources = command.add_subparsers(dest="source", metavar="SOURCE", title="sources")
    for add in (_digits, _shapes, _folder, _imagenet, _imagenet21k, _img2dataset, _tfds):
        add(sources)
    add_measure_only(sources)


def holdout(text: str) -> Holdout:
    """argparse type: a number of images, or a percentage of them."""
    try:
        return Holdout.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def class_count(text: str) -> int:
    """argparse type: a number of classes."""
    number = positive(text)
    if number > bounds.CLASSES:
        raise argparse.ArgumentTypeError(
            f"{number:,} classes are more than the {bounds.CLASSES:,} that labels can have"
        )
    return number


def probability(text: str) -> float:
    """argparse type: a number from 0 to below 1."""
    number = float(text)
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"{text} is no probability below 1")
    return number


def _digits(sources: "Commands[argparse.ArgumentParser]") -> None:
    def splits(options: argparse.Namespace) -> Splits:
        from data.sources.digits import OPTIONS, SPLITS, Digits

        for split in SPLITS:
            yield split, Digits(split), OPTIONS

    source_parser(
        sources,
        "digits",
        "scikit-learn's 1,797 handwritten digits to DEST/train and DEST/test",
        "Images of 8x8 pixels in 10 classes. Every fifth image of a class goes to test.",
        "runs/data/digits",
        splits,
    )


def _shapes(sources: "Commands[argparse.ArgumentParser]") -> None:
    def splits(options: argparse.Namespace) -> Splits:
        from data.sources.shape_drawing import SPLITS
        from data.sources.shapes import Shapes

        for split, samples in zip(SPLITS, (options.samples, options.test_samples), strict=True):
            source = Shapes(
                samples=samples,
                classes=options.classes,
                image_size=options.image_size,
                seed=options.seed,
                split=split,
                multi_label=options.multi_label,
            )
            yield split, source, pack_options(options)

    shapes = source_parser(
        sources,
        "shapes",
        "any number of drawn images to DEST/train and DEST/test",
        "Textured, coloured, overlapping shapes. A class is a form, a colour and a texture, ten of each: 10 to 1,000 "
        "classes. Image i is a pure function of the seed, the split and i: a larger set begins with the smaller one.",
        "runs/data/shapes --samples 100000 --classes 100 --image-size 96",
        splits,
    )
    shapes.add_argument("--samples", type=positive, default=50_000, metavar="N", help="images of train (50,000)")
    shapes.add_argument("--test-samples", type=positive, default=5_000, metavar="N", help="images of test (5,000)")
    shapes.add_argument("--classes", type=positive, default=10, metavar="K", help="number of classes, 10 to 1,000 (10)")
    shapes.add_argument("--image-size", type=positive, default=64, metavar="PIXELS", help="side of the images (64)")
    shapes.add_argument("--multi-label", action="store_true", help="one to five labelled objects an image")
    shapes.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the images (0)")
    shard_samples(shapes)


def _folder(sources: "Commands[argparse.ArgumentParser]") -> None:
    def splits(options: argparse.Namespace) -> Splits:
        from data.shards.class_names import read_class_list
        from data.sources.folder import Folder

        if not options.yes:
            check_dest(options.dest, options.images, ["train", "val"] if options.holdout.number else [""])
        classes = None if options.classes is None else read_class_list(options.classes)
        source = Folder(options.images, options.labels, classes)
        if options.labels is None and classes is None and not options.yes:
            check_classes(options.images, source.class_names)
        parts = source.split(options.holdout, options.holdout_seed) if options.holdout.number else {"": source}
        for split, part in parts.items():
            yield split, part, pack_options(options)

    folder = source_parser(
        sources,
        "folder",
        "image files, in one folder a class or with a label table",
        "--from URL holds CLASS/.../IMAGE. Folders 0, 1, 2 ... are class numbers; others are numbered in the order of "
        "their names, with or without images. Links are followed; hidden and system folders are left out. "
        "Or with --labels a CSV or Parquet table has a row for each image: its "
        "`path` in the folder and its `label`, or its `labels`, as a list. Labels are numbers from 0 on (3 or 3.0), or "
        "names, which are numbered in their order. Two folders have the same numbers only if they have the same names: "
        "to pack a test set that lacks a class, give the index of the training set as --classes, or let --holdout "
        f"divide one folder. {TRANSCODING}",
        "gs://bucket/flowers --from ~/flowers --holdout 10% --workers 8 --resize 256",
        splits,
    )
    from_option(folder, "the folder, local or any fsspec URL")
    folder.add_argument(
        "--yes",
        action="store_true",
        help='pack classes that are called "train" and "test", or into the folder of the images',
    )
    folder.add_argument("--labels", metavar="TABLE", help="label table, CSV or Parquet")
    folder.add_argument(
        "--classes",
        metavar="FILE",
        help="names of the classes in the order of their numbers: an index.json or its folder, a JSON list, or text, "
        "one a line; local or any fsspec URL (the folders' names or the labels)",
    )
    folder.add_argument(
        "--holdout",
        type=holdout,
        default=Holdout(0),
        metavar="N|P%",
        help="images in DEST/val, in proportion from each class; DEST/train has the others, at least one a class; "
        "0 for none, and all go to DEST (0)",
    )
    folder.add_argument("--holdout-seed", type=int, default=0, metavar="S", help="seed of the choice of val (0)")
    shuffling(folder)
    transcoding(folder)


def _imagenet(sources: "Commands[argparse.ArgumentParser]") -> None:
    def splits(options: argparse.Namespace) -> Splits:
        from data.sources.imagenet import imagenet

        for split in options.split:
            yield split, imagenet(options.images, split), pack_options(options)

    imagenet_parser = source_parser(
        sources,
        "imagenet",
        "ILSVRC2012's official archives to DEST/train and DEST/val",
        "--from URL holds ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz, which are "
        "read in place. Classes are numbered in the order of their WordNet ids, as in torchvision and TensorFlow "
        "Datasets. "
        f"{TRANSCODING}",
        "gs://bucket/imagenet --from /downloads --workers 16",
        splits,
    )
    from_option(imagenet_parser, "the folder with the archives")
    imagenet_parser.add_argument(
        "--split", nargs="+", choices=("train", "val"), default=("train", "val"), help="the splits to pack (both)"
    )
    shuffling(imagenet_parser)
    transcoding(imagenet_parser)


def _imagenet21k(sources: "Commands[argparse.ArgumentParser]") -> None:
    def splits(options: argparse.Namespace) -> Splits:
        from data.sources.imagenet import check_imagenet21k, imagenet21k

        merge = options.merge_identical
        if not options.force:
            check_imagenet21k(options.dest, merge)
        found = imagenet21k(
            options.images,
            options.holdout,
            merge_into=options.dest if merge else None,
            runner=options.runner,
            force=options.force,
        )
        for split, source in found.items():
            yield split, source, pack_options(options)

    imagenet21k_parser = source_parser(
        sources,
        "imagenet21k",
        "ImageNet-21k's class tars to DEST/train and DEST/val",
        "--from URL is the folder of nNNNNNNNN.tar, or an uncompressed tar that holds them. The release has no "
        "validation images. As in the authors' code, 51,200 images are held out; here they are drawn from all images. "
        "The same picture stands in several class tars. Images with the same bytes become one sample that has the "
        "classes of all of them (a multi-label set), so that no copy of a held-out image stays in train. For this all "
        "images are read once more at first; their SHA-256 stay in DEST/digests, where a second start finds them: 32 "
        "bytes an image, which you may delete at the end. "
        f"{TRANSCODING}",
        "gs://bucket/imagenet21k --from /downloads/winter21_whole --workers 64 --resize 256",
        splits,
    )
    from_option(imagenet21k_parser, "the folder or the tar")
    imagenet21k_parser.add_argument(
        "--holdout", type=holdout, default=Holdout(51_200), metavar="N|P%", help="images in val; 0 for none (51,200)"
    )
    imagenet21k_parser.add_argument(
        "--merge-identical",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="merge images with the same bytes (yes); --no-merge-identical packs each file with its one label, as "
        "earlier versions did: copies of held-out images stay in train",
    )
    shuffling(imagenet21k_parser)
    transcoding(imagenet21k_parser)


def _img2dataset(sources: "Commands[argparse.ArgumentParser]") -> None:
    def splits(options: argparse.Namespace) -> Splits:
        from data.sources.img2dataset import Columns, Img2dataset
        from data.sources.soft_labels import Kept

        columns = Columns(options.key, options.label_column, options.probability_column)
        kept = Kept(options.min_probability, options.hard)
        source = Img2dataset(options.images, options.labels, columns, options.num_classes or 0, kept)
        yield "", source, pack_options(options)

    img2dataset = source_parser(
        sources,
        "img2dataset",
        "images that img2dataset downloaded, with a label table: COYO-Labeled-300M",
        "--from URL holds NNNNN.tar, NNNNN.parquet and NNNNN_stats.json. Each image gets the labels and probabilities "
        "of its row in the --labels table (CSV, Parquet, or a folder of Parquet files). The row is found by the column "
        "--key, which img2dataset must have saved. Without a table, the labels are those in its own .json. Images keep "
        "their order, which is already mixed. The table's keys are in memory: 16 bytes a row. Labels that a "
        "classifier gave are mostly wrong if their probability is small: --min-probability 0.1 keeps those above, and "
        "leaves out images without any; --hard keeps them without their probabilities, each with weight 1. "
        f"{TRANSCODING}",
        "gs://bucket/coyo --from gs://bucket/images --labels gs://bucket/labels --num-classes 21841 "
        "--min-probability 0.1 --hard --workers 64",
        splits,
    )
    from_option(img2dataset, "img2dataset's output folder")
    img2dataset.add_argument("--labels", metavar="TABLE", help="label table (labels are in each .json)")
    img2dataset.add_argument("--key", default="id", metavar="COLUMN", help="column to join on (id)")
    img2dataset.add_argument(
        "--label-column", default="labels", metavar="COLUMN", help="lists of class numbers (labels)"
    )
    img2dataset.add_argument(
        "--probability-column", default="label_probs", metavar="COLUMN", help="lists of probabilities (label_probs)"
    )
    img2dataset.add_argument(
        "--min-probability", type=probability, metavar="P", help="keep labels whose probability is above P (all)"
    )
    img2dataset.add_argument("--hard", action="store_true", help="give labels weight 1 in place of their probability")
    img2dataset.add_argument(
        "--num-classes",
        type=class_count,
        default=argparse.SUPPRESS,
        metavar="N",
        help="number of classes (largest label + 1)",
    )
    shard_samples(img2dataset)
    transcoding(img2dataset)


def _tfds(sources: "Commands[argparse.ArgumentParser]") -> None:
    def splits(options: argparse.Namespace) -> Splits:
        from data.sources.tfds import Tfds, prepared_splits

        for split in options.split or prepared_splits(options.images):
            source = Tfds(options.images, split, image=options.image_key, label=options.label_key, task=options.task)
            yield re.sub(r"\W+", "_", split).strip("_"), source, pack_options(options)

    tfds = source_parser(
        sources,
        "tfds",
        "a data set prepared by TensorFlow Datasets to DEST/SPLIT",
        "Needs requirements-tfds.txt, not TensorFlow. --from is the folder with dataset_info.json, prepared in a "
        "format with random access (`tfds build --file_format=array_record cifar100`). "
        f"{TRANSCODING}",
        "runs/data/cifar100 --from ~/tensorflow_datasets/cifar100/3.0.2",
        splits,
    )
    from_option(tfds, "the prepared data set's folder")
    tfds.add_argument(
        "--split",
        nargs="+",
        metavar="SPLIT",
        help="such as train test 'train[:800]', which goes to DEST/train_800 (all)",
    )
    tfds.add_argument("--image-key", metavar="FEATURE", help="feature of the image (as the data set says)")
    tfds.add_argument("--label-key", metavar="FEATURE", help="feature of the label or labels (as the data set says)")
    tfds.add_argument("--task", choices=sorted(TASKS), help="a VTAB task whose label is derived from other features")
    shuffling(tfds)
    transcoding(tfds)

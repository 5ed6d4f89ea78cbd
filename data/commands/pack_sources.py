"""The sources of `python -m data pack SOURCE DEST`: the name and the options of each, and how they make a `Source`."""

import argparse
import re
import textwrap
from collections.abc import Callable, Iterator

from data import bounds
from data.commands.folder_checks import check_classes, check_dest
from data.commands.parsing import Commands
from data.images.transcode import FORMATS, QUALITY, Transcode
from data.packing.pack import Options
from data.packing.source import Source
from data.sources.classes.holdout import Holdout
from data.sources.vtab import TASKS

Splits = Iterator[tuple[str, Source, Options]]
"""(folder under DEST, or "" for DEST itself; the source that is packed there; how it is packed)."""

TRANSCODING = (
    "Images are stored unchanged, with the extension of their content; BMP, GIF, TIFF and PNM become PNG. With "
    "--resize, --format or --quality they are decoded (the EXIF orientation is ignored) and re-encoded, by default in "
    f"quality {QUALITY}; with --resize alone, images that are small enough are stored unchanged. Unreadable images are "
    "skipped, counted by reason and listed in DEST/skipped.jsonl, so that shards differ in their numbers of images."
)


def add_sources(command: argparse.ArgumentParser) -> None:
    """Add the sources to the pack command."""
    sources = command.add_subparsers(dest="source", metavar="SOURCE", title="sources")
    for add in (_digits, _shapes, _folder, _imagenet, _imagenet21k, _img2dataset, _tfds):
        add(sources)


def positive(text: str) -> int:
    """argparse type: an integer of at least 1."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


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

    _source(
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
            yield split, source, _options(options)

    shapes = _source(
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
    _shard_samples(shapes)


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
            yield split, part, _options(options)

    folder = _source(
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
    _from(folder, "the folder, local or any fsspec URL")
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
    _shuffling(folder)
    _transcoding(folder)


def _imagenet(sources: "Commands[argparse.ArgumentParser]") -> None:
    def splits(options: argparse.Namespace) -> Splits:
        from data.sources.imagenet import imagenet

        for split in options.split:
            yield split, imagenet(options.images, split), _options(options)

    imagenet_parser = _source(
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
    _from(imagenet_parser, "the folder with the archives")
    imagenet_parser.add_argument(
        "--split", nargs="+", choices=("train", "val"), default=("train", "val"), help="the splits to pack (both)"
    )
    _shuffling(imagenet_parser)
    _transcoding(imagenet_parser)


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
            yield split, source, _options(options)

    imagenet21k_parser = _source(
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
    _from(imagenet21k_parser, "the folder or the tar")
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
    _shuffling(imagenet21k_parser)
    _transcoding(imagenet21k_parser)


def _img2dataset(sources: "Commands[argparse.ArgumentParser]") -> None:
    def splits(options: argparse.Namespace) -> Splits:
        from data.sources.img2dataset import Columns, Img2dataset
        from data.sources.soft_labels import Kept

        columns = Columns(options.key, options.label_column, options.probability_column)
        kept = Kept(options.min_probability, options.hard)
        source = Img2dataset(options.images, options.labels, columns, options.num_classes or 0, kept)
        yield "", source, _options(options)

    img2dataset = _source(
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
    _from(img2dataset, "img2dataset's output folder")
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
    _shard_samples(img2dataset)
    _transcoding(img2dataset)


def _tfds(sources: "Commands[argparse.ArgumentParser]") -> None:
    def splits(options: argparse.Namespace) -> Splits:
        from data.sources.tfds import Tfds, prepared_splits

        for split in options.split or prepared_splits(options.images):
            source = Tfds(options.images, split, image=options.image_key, label=options.label_key, task=options.task)
            yield re.sub(r"\W+", "_", split).strip("_"), source, _options(options)

    tfds = _source(
        sources,
        "tfds",
        "a data set prepared by TensorFlow Datasets to DEST/SPLIT",
        "Needs requirements-tfds.txt, not TensorFlow. --from is the folder with dataset_info.json, prepared in a "
        "format with random access (`tfds build --file_format=array_record cifar100`). "
        f"{TRANSCODING}",
        "runs/data/cifar100 --from ~/tensorflow_datasets/cifar100/3.0.2",
        splits,
    )
    _from(tfds, "the prepared data set's folder")
    tfds.add_argument(
        "--split",
        nargs="+",
        metavar="SPLIT",
        help="such as train test 'train[:800]', which goes to DEST/train_800 (all)",
    )
    tfds.add_argument("--image-key", metavar="FEATURE", help="feature of the image (as the data set says)")
    tfds.add_argument("--label-key", metavar="FEATURE", help="feature of the label or labels (as the data set says)")
    tfds.add_argument("--task", choices=sorted(TASKS), help="a VTAB task whose label is derived from other features")
    _shuffling(tfds)
    _transcoding(tfds)


def _source(
    sources: "Commands[argparse.ArgumentParser]",
    name: str,
    summary: str,
    text: str,
    example: str,
    splits: Callable[[argparse.Namespace], Splits],
) -> argparse.ArgumentParser:
    paragraphs = (
        f"{summary[0].upper()}{summary[1:]}.",
        textwrap.fill(text, 110),
        f"  python -m data pack {name} {example}",
    )
    source = sources.add_parser(
        name,
        help=summary,
        description="\n\n".join(paragraphs),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source.add_argument("dest", metavar="DEST", help="folder to write to, local or any fsspec URL")
    source.add_argument("--force", action="store_true", help="replace any content of DEST")
    source.add_argument(
        "--workers",
        type=positive,
        default=argparse.SUPPRESS,
        metavar="N",
        help="shards at a time (1), on Ray if that ends sooner",
    )
    source.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object last")
    source.set_defaults(sources=splits)
    return source


def _from(source: argparse.ArgumentParser, text: str) -> None:
    source.add_argument("--from", dest="images", required=True, metavar="URL", help=text)


def _shard_samples(source: argparse.ArgumentParser) -> None:
    source.add_argument(
        "--shard-samples",
        type=positive,
        default=0,
        metavar="N",
        help="most samples of a shard (200 MB; 16 shards or more)",
    )


def _shuffling(source: argparse.ArgumentParser) -> None:
    _shard_samples(source)
    source.add_argument("--shuffle-seed", type=int, default=0, metavar="S", help="seed of the images' order (0)")
    source.add_argument("--no-shuffle", action="store_true", help="keep the source's order")


def _transcoding(source: argparse.ArgumentParser) -> None:
    source.add_argument("--resize", type=positive, metavar="PIXELS", help="shrink the shorter side to so many")
    source.add_argument("--format", choices=FORMATS, help="format of the images (their own)")
    source.add_argument(
        "--quality",
        type=int,
        choices=range(1, 101),
        metavar="Q",
        help=f"quality of JPEG and WebP, 1 to 100 ({QUALITY})",
    )


def _options(options: argparse.Namespace) -> Options:
    transcode = None
    if any(getattr(options, name, None) for name in ("resize", "format", "quality")):
        transcode = Transcode(options.resize, options.format, options.quality)
    seed = None if getattr(options, "no_shuffle", True) else options.shuffle_seed
    return Options(shuffle_seed=seed, samples_per_shard=options.shard_samples, transcode=transcode)

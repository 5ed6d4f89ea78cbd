"""The sources of `python -m data pack` whose images are for measuring only."""

import argparse

from data.commands.pack_options import (
    TRANSCODING,
    Splits,
    from_option,
    pack_options,
    shuffling,
    source_parser,
    transcoding,
)
from data.commands.parsing import Commands

ONLY = "The set is for measuring only: a job that trains on it is refused."


def add_measure_only(sources: "Commands[argparse.ArgumentParser]") -> None:
    """Add the sources to the pack command."""
    for add in (_imagenet_real, _imagenet_v2, _objectnet):
        add(sources)


def _imagenet_real(sources: "Commands[argparse.ArgumentParser]") -> None:
    def splits(options: argparse.Namespace) -> Splits:
        from data.sources.measure_only.real import imagenet_real

        yield "", imagenet_real(options.images, options.labels), pack_options(options)

    real = source_parser(
        sources,
        "imagenet-real",
        "ILSVRC2012's validation images with ReaL's labels",
        "--from URL holds ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz, and real.json of "
        "github.com/google-research/reassessed-imagenet, which has the class numbers of everything that people see in "
        "an image. The set is multi-label; an evaluation with the rule any_label takes each of an image's labels for "
        "right. Images without labels are left out, and named: 3,163 of the 50,000. "
        f"{ONLY} {TRANSCODING}",
        "gs://bucket/imagenet-real --from /downloads",
        splits,
    )
    from_option(real, "the folder with the archives")
    real.add_argument("--labels", metavar="URL", help="real.json (the one in the folder)")
    shuffling(real)
    transcoding(real)


def _imagenet_v2(sources: "Commands[argparse.ArgumentParser]") -> None:
    def splits(options: argparse.Namespace) -> Splits:
        from data.sources.measure_only.v2 import imagenet_v2

        yield "", imagenet_v2(options.images), pack_options(options)

    v2 = source_parser(
        sources,
        "imagenet-v2",
        "ImageNet-V2's 10,000 images",
        "--from URL is imagenetv2-matched-frequency.tar.gz, unchanged or decompressed, or the folder that it unpacks "
        "to, with the folders 0 ... 999: these are the numbers of ImageNet's classes. A compressed archive is read "
        "once more for each shard. "
        f"{ONLY} {TRANSCODING}",
        "gs://bucket/imagenet-v2 --from /downloads/imagenetv2-matched-frequency.tar.gz",
        splits,
    )
    from_option(v2, "the archive, or its folder")
    shuffling(v2)
    transcoding(v2)


def _objectnet(sources: "Commands[argparse.ArgumentParser]") -> None:
    def splits(options: argparse.Namespace) -> Splits:
        from data.sources.measure_only.objectnet import ObjectNet

        yield "", ObjectNet(options.images), pack_options(options)

    objectnet = source_parser(
        sources,
        "objectnet",
        "ObjectNet's images of the 113 classes that ImageNet has",
        "--from URL is the unpacked release, with the folders images and mappings. Labels are the numbers of the "
        "ImageNet classes that its mappings give; the index keeps the whole map for the rule objectnet of an "
        "evaluation. The border of 2 pixels is cut off. Images of the other 200 classes are left out, and named. The "
        "licence forbids training on these images. "
        f"{ONLY} {TRANSCODING}",
        "gs://bucket/objectnet --from /downloads/objectnet-1.0",
        splits,
    )
    from_option(objectnet, "the release's folder")
    shuffling(objectnet)
    transcoding(objectnet)

"""Sets of images that ImageNet models are measured on, and that nothing may be trained on: one module each.

The indexes have a note that names the set (`Index.measure_only`). A job that trains on one of them is refused.
"""

from typing import Any

from data.shards.index import MEASURE_ONLY

IMAGENET_CLASSES = 1000


def measure_only(what: str) -> dict[str, Any]:
    """The note of an index."""
    return {MEASURE_ONLY: what}

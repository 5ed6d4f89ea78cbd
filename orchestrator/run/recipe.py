"""The recipe: the part of a job that decides what is computed. A run continues only under the recipe it began with."""

from typing import Any

# Keys that may change between two starts of a run without changing what is computed. The training set may move, because
# it is compared by the digest of its indexes and of the samples chosen from them.
FREE_SECTIONS = {
    *("parallel", "training", "cluster", "checkpoint", "evaluate", "evaluators", "tracking", "profile"),
    "extensions",  # where code is found; what is used of it has a name in another section
}
FREE_DATA_KEYS = {
    *("pack", "eval", "workers", "prefetch", "memory", "cache_dir", "cache_size", "max_bad_fraction", "unreadable")
}
FREE_SOURCE_KEYS = {"url", "exclude"}  # these may move; the digest covers their content


def recipe(fields: dict[str, Any]) -> dict[str, Any]:
    """The part of a job that decides what is computed, with dotted keys."""
    kept = {section: value for section, value in fields.items() if section not in FREE_SECTIONS}
    kept["parallel"] = {"precision": fields["parallel"]["precision"]}
    kept["data"] = {key: value for key, value in fields["data"].items() if key not in FREE_DATA_KEYS}
    train = {key: value for key, value in fields["data"]["train"].items() if key not in FREE_SOURCE_KEYS}
    train["sources"] = {
        name: {key: value for key, value in source.items() if key not in FREE_SOURCE_KEYS}
        for name, source in train.get("sources", {}).items()
    }
    kept["data"]["train"] = train
    return dict(_flat(kept, ""))


def _flat(value: Any, prefix: str) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(prefix, value)]
    return [pair for key, inner in value.items() for pair in _flat(inner, f"{prefix}.{key}" if prefix else key)]

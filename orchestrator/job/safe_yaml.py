"""YAML that cannot surprise: job files as people write them, and the files that the program writes itself."""

import re
from typing import Any

import yaml

MOST_KEYS = 10_000  # of one mapping in a file; YAML's merge key can double their number with every line


class _Loader(yaml.SafeLoader):
    """Safe YAML whose keys are text (`no` as well) and given once, and where `3e-4` is a number, as in YAML 1.2."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value}", key.start_mark)
            seen.add(key.value)
            if key.tag != "tag:yaml.org,2002:merge":
                key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MOST_KEYS:
            raise yaml.constructor.ConstructorError(None, None, f"more than {MOST_KEYS:,} keys", node.start_mark)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


class _NoAliases(yaml.SafeLoader):
    """Safe YAML without aliases: a few of them can stand for any number of keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "an alias", self.peek_event().start_mark)
        return super().compose_node(parent, index)


def parse_yaml(text: str) -> Any:
    """The value of YAML that a person wrote. Raises yaml.YAMLError."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except ValueError as error:  # an impossible number or date
        raise yaml.YAMLError(str(error)) from error


def parse_without_aliases(content: bytes) -> Any:
    """The value of YAML that the program wrote, which has no aliases.

    Raises yaml.YAMLError, and ValueError or RecursionError if the file was damaged since.
    """
    return yaml.load(content, _NoAliases)  # noqa: S506


def reason(error: yaml.YAMLError) -> str:
    """What is wrong with the text, on one line."""
    return getattr(error, "problem", None) or str(error).splitlines()[0]

"""YAML as studies and the zoo are written in it: no value is read as another than it looks like.

``1e-3`` is a number, ``07`` and ``1:30`` are refused, and so are repeated keys and ``<<``. Each error names its line.
"""

import itertools
import re
from pathlib import Path
from typing import Any

import yaml

from lvis_rcnn.system.cli import InputError
from lvis_rcnn.system.encodings import text_start

# Of a file with its aliases written out: nine lines of aliases of aliases would fill any memory.
MOST_VALUES = 100_000


class StudyLoader(yaml.SafeLoader):
    """YAML with ``1e-3`` as a number (YAML 1.2; PyYAML reads a string), every error in it with its line."""

    def construct_document(self, node: yaml.Node) -> Any:
        """Build all values, unless aliases make them too many."""
        if values_of(node, {}) > MOST_VALUES:
            raise refused(f"more than {MOST_VALUES:,} values, each alias (*) written out", node)
        return super().construct_document(node)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Build a value; refuse what is not of its type, as a date without such a day, half a character, and sets."""
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, str):
                value.encode()
            if isinstance(value, set | bytes):
                raise ValueError
        except (ValueError, LookupError, AttributeError):
            kind = node.tag.rpartition(":")[2]
            shown = repr(node.value[:40]) if isinstance(node, yaml.ScalarNode) else "a value"
            raise refused(f"{shown} cannot be read as {kind}", node) from None
        return value


def refused(what: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    """An error that names the line."""
    return yaml.constructor.ConstructorError(None, None, what, node.start_mark)


def values_of(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """Number of values in a node, counted once for each alias of it; ``known`` holds that of each node."""
    if node not in known:
        known[node] = 1  # while it is counted: one that contains itself is refused later
        pairs = isinstance(node, yaml.MappingNode)
        inside = itertools.chain(*node.value) if pairs else () if isinstance(node, yaml.ScalarNode) else node.value
        known[node] = 1 + sum(values_of(one, known) for one in inside)
    return known[node]


FLOAT = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")
StudyLoader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789."))


def unique_mapping(loader: StudyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    """Build a mapping; refuse a repeated key, one that JSON does not have, and ``<<``, which YAML 1.2 does not have."""
    if merged := [key for key, _ in node.value if key.tag == "tag:yaml.org,2002:merge"]:
        raise refused("keys of another section (<<) are not copied: write them out", merged[0])
    keys = [loader.construct_object(key) for key, _ in node.value]
    for key, (key_node, _) in zip(keys, node.value, strict=True):
        if not isinstance(key, str | int | float | None) or isinstance(key, bool):
            raise refused("a key that is no text: write it in quotes", key_node)
        if keys.count(key) > 1:
            raise refused(f"key {key!r} is repeated", node)
    return loader.construct_mapping(node, deep=True)


def decimal_number(loader: StudyLoader, node: yaml.ScalarNode) -> int | float:
    """Build a number; refuse one that YAML 1.1 takes for octal or base 60, and YAML 1.2 for decimal or a text.

    Neither reading would do: Snakemake reads the study, too, by YAML 1.1.
    """
    text = loader.construct_scalar(node)
    as_text = "or in quotes if it is a text"
    if ":" in text:
        raise refused(f"{text[:40]} would be a number in base 60: write it in decimal, {as_text}", node)
    if leading := re.fullmatch(r"([-+]?)0[0_]*([\d_]+)", text):
        what = f"{text[:40]} has leading zeros, which may mean octal"
        raise refused(f"{what}: write {''.join(leading.groups())[:40]}, {as_text}", node)
    number: int | float = NUMBERS[node.tag](loader, node)
    if isinstance(number, int) and abs(number) >= 1 << 63:
        raise refused(f"{text[:40]} is too large: numbers have at most 64 bits", node)
    return number


NUMBERS = {
    f"tag:yaml.org,2002:{kind}": yaml.SafeLoader.yaml_constructors[f"tag:yaml.org,2002:{kind}"]
    for kind in ("int", "float")
}
for number_tag in NUMBERS:
    StudyLoader.add_constructor(number_tag, decimal_number)
StudyLoader.add_constructor("tag:yaml.org,2002:map", unique_mapping)


def read_yaml(path: Path) -> Any:
    """Parse a YAML file.

    Raises:
        InputError: the file is missing or no YAML.
    """
    try:
        content = path.read_bytes()
        return yaml.load(content[text_start(content[:32], str(path)) :].decode(), Loader=StudyLoader)
    except FileNotFoundError:
        raise InputError(str(path), "no such study file", fix="name a file of configs/") from None
    except OSError as error:
        raise InputError(str(path), f"not readable: {error.strerror}", fix="name a file of configs/") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(str(path), f"not readable as YAML: {error}", fix="correct the file") from None
    except RecursionError:
        raise InputError(str(path), "not readable as YAML: nested too deeply", fix="correct the file") from None

"""Config files: the flags of a command line in YAML, and nothing else.

    distill: kd
    model_t: resnet32x4
    sdd: [1, 2]

A value is read as it stands there, the way the command line would read it.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from helper.errors import UserError

LARGEST = 1 << 16  # bytes; PyYAML takes a second for so many


def read_yaml(
    path: Path, read: Callable[[bytes], Any] = yaml.compose, largest: int = LARGEST
) -> Any:
    """What one of PyYAML's readers makes of a file.

    Raises UserError where it cannot be read, has more than `largest` bytes, or is no YAML.
    """
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if len(content) > largest:
        raise UserError(f"{path} has more than {largest:,} bytes: shorten it")
    try:
        return read(content)
    except RecursionError:
        raise UserError(f"{path} is nested too deeply: at most a list is a value") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} is no YAML: {error}") from None


def words_of(path: str, takes_several: Callable[[str], bool] = lambda flag: False) -> list[str]:
    """A config file -> the command line that says the same: ['--distill=kd', '--sdd=1,2'].

    `takes_several` says of which flags a list is several words: ['--path_t', 'a.pth', 'b.pth'].
    Raises UserError where it is missing, no YAML, or more than names with values.
    """
    if not os.path.isfile(path):
        raise UserError(f"no config file {path}: give the path of a .yaml file with --cfg")
    root = read_yaml(Path(path))
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path} holds no flags: expected lines such as 'distill: kd'")
    words = []
    for key, value in root.value:
        where = f"{path}, line {key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode) or key.value == "cfg":
            raise UserError(f"{where}: {getattr(key, 'value', '?')!s} is no flag of a config")
        flag, name = f"--{key.value}", f"{where}: {key.value}"
        if isinstance(value, yaml.SequenceNode) and takes_several(flag):
            words += [flag, *(text_of(part, name) for part in value.value)]
        else:
            words.append(f"{flag}={text_of(value, name)}")
    return words


def plain(node: yaml.Node | None) -> Any:
    """A YAML node as dicts, lists and text, each value as it stands there.

    UserError where a name is no text or stands there twice, or an alias repeats a part of it.
    """
    seen: set[yaml.Node] = set()

    def of(node: yaml.Node) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return node.value
        if node in seen:  # a few lines of aliases can be larger than any memory
            raise UserError(f"line {node.start_mark.line + 1}: an alias repeats it: write it twice")
        seen.add(node)
        if isinstance(node, yaml.SequenceNode):
            return [of(part) for part in node.value]
        content: dict[str, Any] = {}
        for key, value in node.value:
            where = f"line {key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise UserError(f"{where}: a list or a table is no name")
            if key.value in content:
                raise UserError(f"{where}: {key.value} is set a second time")
            content[key.value] = of(value)
        return content

    return of(node) if node else ""


@contextlib.contextmanager
def in_file(path: str):
    """Say which file a mistake is in."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def text_of(value: yaml.Node, where: str) -> str:
    """A scalar or a list of them, as it is typed: '4.0', '1,2,4'."""
    parts = value.value if isinstance(value, yaml.SequenceNode) else [value]
    if not all(isinstance(part, yaml.ScalarNode) for part in parts):
        raise UserError(f"{where} is a table: expected a value or a list of values")
    if isinstance(value, yaml.ScalarNode) and value.value in ("", "~", "null"):
        raise UserError(f"{where} has no value")
    text = ",".join(part.value for part in parts)
    if "\0" in text:  # a command line has none, nor has the name of a file
        raise UserError(f"{where} has a NUL byte")
    return text

"""Config files: the flags of a command line in YAML, and nothing else.

    distill: kd
    model_t: resnet32x4
    sdd: [1, 2]

A value is read as it stands there, the way the command line would read it.
"""

import contextlib
from pathlib import Path

import yaml

from helper.errors import UserError


def words_of(path: str) -> list[str]:
    """A config file -> the command line that says the same: ['--distill=kd', '--sdd=1,2'].

    Raises UserError where it is missing, no YAML, or more than names with values.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"no config file {path}: give the path of a .yaml file with --cfg")
    try:
        root = yaml.compose(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no YAML: {error}") from None
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path} holds no flags: expected lines such as 'distill: kd'")
    words, seen = [], set()
    for key, value in root.value:
        where = f"{path}, line {key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode) or key.value == "cfg":
            raise UserError(f"{where}: {getattr(key, 'value', '?')!s} is no flag of a config")
        if key.value in seen:
            raise UserError(f"{where}: {key.value} is set a second time")
        seen.add(key.value)
        words.append(f"--{key.value}={text_of(value, f'{where}: {key.value}')}")
    return words


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
    return ",".join(part.value for part in parts)

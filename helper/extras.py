"""Packages of the optional requirements files."""

import importlib
from typing import Any

from helper.errors import UserError


def import_extra(name: str, file: str, who: str) -> Any:
    """A module of a package that `file` lists; UserError that says who needs it where it is not."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"{who} needs the {name.partition('.')[0]} package: sh scripts/setup.sh {file}, or "
            f"pip install -r {file}"
        ) from None

"""Code that changes numbers and is no part of a commit of this toolkit: somebody's own files."""

import ast
import hashlib
import inspect
import os
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

CODE = Path(__file__).resolve().parent.parent  # the folder that this code was loaded from
INSTALLED = [Path(path).resolve() for path in set(sysconfig.get_paths().values())]


def own_code(entry: Any) -> str:
    """sha256 over the file of a class, function or module and the files that it imports.

    Installed packages are left out, and so are files of this toolkit as they were committed (all
    of them, where it lies in no repository): "" where nothing is left.
    """
    module = entry if isinstance(entry, ModuleType) else inspect.getmodule(entry)
    files = sorted(imported_files(module, {}).values()) if module else []
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest() if files else ""


def imported_files(module: ModuleType, found: dict[str, Path]) -> dict[str, Path]:
    """Files of one's own among a module and all that it imports, by the modules' names."""
    file = Path(module.__file__).resolve() if getattr(module, "__file__", None) else None
    if module.__name__ in found or file is None or file.suffix != ".py" or not is_own(file):
        return found
    found[module.__name__] = file
    for name in imported_names(module, file):
        if name in sys.modules:
            imported_files(sys.modules[name], found)
    return found


def imported_names(module: ModuleType, file: Path) -> list[str]:
    """Names of modules that a file imports, wherever in it."""
    package, names = (module.__package__ or "").split("."), []
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return names


def is_own(file: Path) -> bool:
    """Whether a file is neither installed nor of this toolkit as it was committed."""
    if CODE in file.parents:
        return file in changed_files()
    return not any(folder in file.parents for folder in INSTALLED)


@cache
def changed_files() -> frozenset[Path]:
    """Files of the toolkit that git calls new or changed; none outside a repository of its own."""
    listing = git("status", "--porcelain", "--untracked-files=all", "-z")
    return frozenset(CODE / entry[3:] for entry in listing.split("\0") if entry)


def git(*arguments: str) -> str:
    """What git prints in the folder of the toolkit; "" where that is no repository of its own."""

    def run(*words):
        command = ["git", "--no-optional-locks", "-C", str(CODE), *words]  # leaves no index.lock
        return os.fsdecode(subprocess.run(command, capture_output=True, check=True).stdout)

    try:
        if Path(run("rev-parse", "--show-toplevel").strip()).resolve() != CODE:
            return ""  # the code lies inside somebody else's repository
        return run(*arguments)
    except (OSError, subprocess.CalledProcessError):
        return ""

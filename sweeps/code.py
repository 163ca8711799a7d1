"""A copy of the toolkit, so that what is edited while a sweep runs changes none of its runs."""

import shutil
import subprocess
from pathlib import Path

from runs.code import CODE, changed_files, git

KINDS = (".py", ".yaml")  # of files that a run reads


def copy_code(to: Path) -> None:
    """Copy the code as it is now. A repository stays one: a run notes its commit."""
    shutil.rmtree(to, ignore_errors=True)
    if commit := git("rev-parse", "HEAD").strip():
        quiet = {"check": True, "capture_output": True}
        subprocess.run(["git", "clone", "--shared", "--no-checkout", CODE, to], **quiet)
        subprocess.run(["git", "-C", to, "checkout", "--detach", commit], **quiet)
        files = changed_files()
    else:
        files = set(CODE.glob("*.py"))
        files |= {file for room in CODE.glob("*/__init__.py") for file in room.parent.rglob("*")}
    for file in files:
        if file.suffix in KINDS:
            copy_file(file, to / file.relative_to(CODE))


def copy_file(file: Path, to: Path) -> None:
    """Copy a file; where it is gone, its copy goes as well."""
    if file.is_file():
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, to)
    else:
        to.unlink(missing_ok=True)

"""Files: written whole or not at all, and their checksums."""

import errno
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from helper.errors import UserError

STDOUT = Path("/dev/stdout")


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Call `write(file)` on a temporary file; once it is on disk it takes the place of `path`.

    A link is followed; what is no regular file (a pipe, a device) is written into as it is. An
    OSError says which file could not be written.
    """
    try:
        if is_special(path):
            with os.fdopen(open_special(path), "wb") as file:
                write(file)
        else:
            replace_whole(Path(os.path.realpath(path)), write)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None


def is_special(path: Path) -> bool:
    """Whether something else than a regular file is there; standard output is, wherever it goes."""
    return path == STDOUT or (path.exists() and not path.is_file())


def open_special(path: Path) -> int:
    """A handle to write into what is there."""
    if path == STDOUT:
        sys.stdout.flush()
        return os.dup(1)  # opened anew, a file would be written from its start
    return os.open(path, os.O_WRONLY | os.O_APPEND)


def replace_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """`write_whole` of a regular file, whether it is there or not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's files are for their owner alone
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the rename itself is on disk only when the folder is
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def append(path: Path, content: bytes) -> None:
    """Add to a file; it is on disk when this returns. An OSError says which file it is."""
    try:
        with path.open("ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def read_regular(path: Path) -> bytes:
    """All of a file. OSError too for a pipe or a device, which may have no end."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "no regular file", str(path))
    return path.read_bytes()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, never half of one."""
    text = json.dumps(content, indent=2, default=str) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))


def check_writable(folder: Path, flag: str) -> None:
    """UserError unless files can be made in a folder, or in the nearest above it that is there."""
    try:
        while not (folder.exists() or folder.is_symlink()):
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"a full disk takes the name of a file, but no byte of it")
    except OSError as error:
        raise UserError(
            f"cannot write to {folder} ({error.strerror}): give another {flag}"
        ) from None


def check_output(path: Path, flag: str) -> None:
    """UserError unless a file can be written where a flag says."""
    if path.is_dir():
        raise UserError(f"{flag} {path} is a folder: give the name of a file")
    if not is_special(path):
        check_writable(Path(os.path.realpath(path)).parent, flag)


def sha256(path: str | Path, size: int | None = None) -> str:
    """Of a file, or of its first `size` bytes, in hex."""
    digest, left = hashlib.sha256(), os.path.getsize(path) if size is None else size
    with open(path, "rb") as file:
        while block := file.read(min(left, 1 << 20)):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()

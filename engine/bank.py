"""The bank on disk: what a frozen teacher says of every view of every training image.

A view is one crop and flip of an image. N samples, V views of each, W numbers a row, M rows.
"""

import contextlib
import errno
import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from helper.errors import UserError
from helper.files import read_regular, write_json
from helper.forms import is_count, is_name, is_number, is_percentage, wrong_in

VERSION = 1  # of the files' layout and of the numbers of views
TYPES = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}
KEY_FILE, SCORES_FILE = "bank.json", "scores.json"
DESCRIBED = {  # what a description of a bank reads of its key
    "samples": is_count,
    "views": is_count,
    "network": is_name,
    "teacher": is_name,
    "image_size": is_count,
    "type": lambda value: value in list(TYPES),
}
SCORES = {  # of a teacher, as `evaluate` gives them
    "loss": lambda value: is_number(value) and value >= 0,
    "acc": is_percentage,
    "acc_top5": is_percentage,
    "acc_balanced": is_percentage,
}


class RowFile:
    """One row of W numbers for each (sample, view), in a sparse file, and which of them are there.

    The rows, then a byte a row that is 1 where the row is there. Values are on disk before their
    bytes say so, and a byte is never shared between rows: a run that is killed leaves no row that
    is not what it says, and several runs may fill one file. What cannot be written (a full disk, a
    folder that is read-only) is said once, and nothing is kept from then on.
    """

    def __init__(self, path: Path, rows: int, width: int, dtype: str):
        """Open the file, or make it. UserError where it is of another size."""
        self.path, self.rows, self.width, self.dtype = path, rows, width, TYPES[dtype]
        self.row_bytes = width * self.dtype.itemsize
        self.flags_at = rows * self.row_bytes
        self.size = self.flags_at + rows
        self.refused: OSError | None = None  # why nothing more can be kept
        try:
            self._create()
        except OSError as error:
            self._give_up(error)
        if not path.exists():
            self.values, self.there = None, np.zeros(rows, np.uint8)
            return
        if path.stat().st_size != self.size:
            raise UserError(
                f"{path} has {path.stat().st_size:,} bytes where {self.size:,} belong: it is no "
                "whole bank; drop it with tools/bank.py, or delete it"
            )
        try:
            self.file = open(path, "rb" if self.refused else "r+b", buffering=0)  # noqa: SIM115
        except OSError as error:
            self._give_up(error)
            self.file = open(path, "rb", buffering=0)  # noqa: SIM115
        mapped = np.memmap(self.file, np.uint8, "r")
        self.values = mapped[: self.flags_at].view(self.dtype).reshape(rows, width)
        self.there = mapped[self.flags_at :]

    def has(self, rows: Tensor) -> Tensor:
        """Which rows are there: (M,) int64 -> (M,) bool"""
        return torch.from_numpy(self.there[rows.numpy()] == 1)

    def read(self, rows: Tensor) -> Tensor:
        """(M,) int64 -> (M, W) float32; only rows that are there have a meaning."""
        if self.values is None:
            return torch.zeros(len(rows), self.width)
        return torch.from_numpy(self.values[rows.numpy()].astype(np.float32))

    def write(self, rows: Tensor, values: Tensor) -> None:
        """Keep rows: (M,) int64, (M, W)."""
        if self.refused or not len(rows):
            return
        stored = values.cpu().numpy().astype(self.dtype)
        try:  # a memory map would end the process where the disk is full
            for row, value in zip(rows.tolist(), stored, strict=True):
                self._write_at(row * self.row_bytes, value.tobytes())
            os.fsync(self.file.fileno())
            for row in rows.tolist():
                self._write_at(self.flags_at + row, b"\x01")
            os.fsync(self.file.fileno())
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        if self.values is not None:
            self.file.close()

    def _create(self) -> None:
        """An empty file of the whole size, which takes no space on the disk."""
        if self.path.exists():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_suffix(".lock")):
            if self.path.exists():
                return
            new = self.path.with_suffix(".new")
            with open(new, "wb") as file:
                file.truncate(self.size)
            os.replace(new, self.path)

    def _write_at(self, offset: int, data: bytes) -> None:
        self.file.seek(offset)
        if self.file.write(data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _give_up(self, error: OSError) -> None:
        self.refused = OSError(error.errno, error.strerror or str(error), str(self.path))
        warnings.warn(
            f"the teacher's bank {self.path} cannot be written ({error.strerror or error}): rows "
            "that are missing are computed and not kept",
            stacklevel=3,
        )


class Bank:
    """The folder of one teacher, one data set and one way of computing: a `RowFile` of each kind.

    `key` is everything that the rows depend on; two keys are two folders. M samples' rows.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], widths: Mapping[str, int]):
        """Open or make the folder of a key. `widths` has the numbers a row of each kind wanted.

        UserError where the folder holds another key's rows or a file that is not whole.
        """
        self.folder, self.key = folder, {"version": VERSION, **key}
        check_key(folder, self.key)
        rows = key["samples"] * key["views"]
        self.files = {
            kind: RowFile(folder / f"{kind}.rows", rows, width, key["type"])
            for kind, width in widths.items()
        }

    def has(self, rows: Tensor) -> Tensor:
        """Which rows are there, of every kind: (M,) int64 -> (M,) bool"""
        return torch.stack([file.has(rows) for file in self.files.values()]).all(dim=0)

    def sample(self, most: int) -> Tensor:
        """At most so many of the rows that are there, chosen at random: (M,) int64"""
        there = np.flatnonzero(np.logical_and.reduce([file.there for file in self.files.values()]))
        if len(there) > most:
            there = np.random.default_rng().choice(there, most, replace=False)
        return torch.from_numpy(there)

    def rounded(self, values: Tensor) -> Tensor:
        """Float32 as it comes back from the files."""
        return values.to(getattr(torch, self.key["type"])).float()

    @property
    def refused(self) -> OSError | None:
        """Why rows of some kind can no longer be kept; None while all can."""
        return next((file.refused for file in self.files.values() if file.refused), None)

    def scores(self) -> dict[str, float] | None:
        """The teacher's on the test split, where they were kept and are as they were written."""
        try:
            stored = json.loads(read_regular(self.folder / SCORES_FILE))
        except (OSError, ValueError, RecursionError):
            return None
        scores = scores_in(stored)
        true = scores and stored.get("digest") == digest({"key": self.key, "scores": scores})
        return scores if true else None

    def keep_scores(self, scores: Mapping[str, float]) -> None:
        """Keep what `scores` gives."""
        with contextlib.suppress(OSError):
            own = digest({"key": self.key, "scores": scores})
            write_json(self.folder / SCORES_FILE, {**scores, "digest": own})

    def describe(self) -> str:
        """'DIR: logits 12.5 %, pooled 3.1 % of 8,100,000 views are there'"""
        rows = self.key["samples"] * self.key["views"]
        counts = {kind: np.count_nonzero(file.there) for kind, file in self.files.items()}
        return describe_rows(self.folder, rows, counts)

    def read(self, rows: Tensor) -> dict[str, Tensor]:
        """(M,) int64 -> each kind's rows, (M, W) float32"""
        return {kind: file.read(rows) for kind, file in self.files.items()}

    def write(self, rows: Tensor, values: Mapping[str, Tensor]) -> None:
        """Keep rows (M,) of each kind, (M, W)."""
        for kind, file in self.files.items():
            file.write(rows, values[kind])

    def close(self) -> None:
        for file in self.files.values():
            file.close()


def bank_folder(parent: Path, name: str, key: Mapping[str, Any]) -> Path:
    """Where the rows of a key lie: parent/resnet32x4_cifar100_1a2b3c4d5e6f."""
    return parent / f"{name}_{digest({'version': VERSION, **key})[:12]}"


def digest(content: Mapping[str, Any]) -> str:
    """sha256 (hex) of what JSON says of it."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def complete_size(key: Mapping[str, Any], widths: Mapping[str, int]) -> int:
    """Bytes of the files of a bank that is complete."""
    rows, item = key["samples"] * key["views"], TYPES[key["type"]].itemsize
    return rows * sum(width * item + 1 for width in widths.values())


def scores_in(stored: Any) -> dict[str, float] | None:
    """The scores among what a file says of a teacher; None where one is missing or cannot be."""
    if wrong_in(stored, SCORES):
        return None
    return {name: stored[name] for name in SCORES}


def describe_folder(folder: Path) -> str:
    """Two lines on a bank whose kinds of rows are not known beforehand.

    UserError where its files are not what they should be.
    """
    key = read_key(folder)
    if wrong := wrong_in(key, DESCRIBED):
        raise UserError(
            f"{folder / KEY_FILE} describes no bank ({wrong}): delete the folder {folder}"
        )
    rows = key["samples"] * key["views"]
    whose = f"{key['network']} {key['teacher'][:8]}, {key['type']}, {key['image_size']} pixels"
    counts, used = {}, 0
    for file in sorted(folder.glob("*.rows")):
        flags_at = file.stat().st_size - rows if file.is_file() else 0
        if flags_at <= 0 or flags_at % (rows * TYPES[key["type"]].itemsize):
            raise UserError(
                f"{file} is no whole file of {rows:,} rows: drop {folder} with tools/bank.py, or "
                "delete it"
            )
        with open(file, "rb") as opened:
            opened.seek(flags_at)
            counts[file.stem] = opened.read().count(1)
        used += file.stat().st_blocks * 512 if os.name == "posix" else file.stat().st_size
    return f"{describe_rows(folder, rows, counts)}\n    {whose}, {used / 1e6:,.1f} MB on disk"


def describe_rows(folder: Path, rows: int, counts: Mapping[str, int]) -> str:
    """How many rows of each kind are there."""
    there = ", ".join(f"{kind} {100 * n / rows:.1f} %" for kind, n in counts.items())
    return f"{folder}: {there or 'nothing'} of {rows:,} views"


def check_key(folder: Path, key: Mapping[str, Any]) -> None:
    """Write down whose rows a folder has; UserError where they are another's."""
    file = folder / KEY_FILE
    known = read_key(folder) if file.exists() else None
    if known is None:
        with contextlib.suppress(OSError):  # the files of rows tell of what cannot be written
            write_json(file, key)
    elif known != json.loads(json.dumps(key)):
        other = sorted(k for k in known.keys() | key.keys() if known.get(k) != key.get(k))
        raise UserError(
            f"the bank {folder} is of another {', '.join(other)}: drop it with tools/bank.py, or "
            "delete it"
        )


def read_key(folder: Path) -> dict[str, Any]:
    """Whose rows a folder has; UserError where its file does not say."""
    file = folder / KEY_FILE
    try:
        key = json.loads(read_regular(file))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({error}): delete the folder {folder}") from None
    if not isinstance(key, dict):
        raise UserError(f"{file} describes no bank: delete the folder {folder}")
    return key

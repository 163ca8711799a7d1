"""Which image files a data set on disk has, and the class and the split of each.

DIR/train/CLASS/IMAGE with val/ or test/ or both; DIR/CLASS/IMAGE, which is split here; or a file of
path,label or path,label,split. N files of a split.
"""

import contextlib
import csv
import hashlib
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from helper.errors import UserError, one_line
from helper.options import at_most, option, positive_share, seed

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
SPLITS = ("train", "val", "test")
UNSPLIT = ""  # stands for the name of a split where there is none
COLUMNS = {"path", "label"}  # of a CSV file; and `split`, which may be absent


class Paths(Sequence[str]):
    """Names of files as one block of bytes that all processes share.

    A list of a million strings becomes each worker's own: to read one is to count a reference.
    """

    def __init__(self, paths: Iterable[str]):
        text = os.fsencode("".join(f"{path}\0" for path in paths))
        self._text = torch.from_numpy(np.frombuffer(bytearray(text), np.uint8))
        self._ends = (self._text == 0).nonzero()[:, 0]  # (N,)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = self._ends[index - 1] + 1 if index else 0
        return os.fsdecode(self._text[start : self._ends[index]].numpy().tobytes())

    def __iter__(self) -> Iterator[str]:
        return iter(os.fsdecode(self._text.numpy().tobytes()).split("\0")[:-1])


class Files(NamedTuple):
    """The image files of a split and the class of each."""

    paths: Paths
    labels: Tensor  # (N,) int64
    root: str = ""  # folder with which each path begins


class Part(NamedTuple):
    """The image files of a split by the names of their classes."""

    classes: dict[str, list[str]]
    root: str  # folder with which each path begins


class Layout(NamedTuple):
    """A data set's classes and files."""

    classes: tuple[str, ...]
    train: Files
    test: Files
    val: Files | None = None  # where there are val/ and test/: the best epoch is chosen on val/


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """Options of data that may come without a split."""

    test_fraction: float = option(
        0.2, "share of the images to test on, of each class alike, where the data has no split",
        parse=at_most(0.9, positive_share), added=True,
    )  # fmt: skip
    test_seed: int = option(0, "which of them", parse=seed, added=True)


def find_files(data_dir: str, how: SplitOptions) -> Layout:
    """The files of a folder or a CSV file; UserError where they are no data set."""
    root = Path(data_dir)
    with reading(root):
        parts = read_csv(root) if is_csv(root) else read_folders(root)
    if UNSPLIT in parts:
        parts = divide(parts[UNSPLIT], how)
        train, test = (sum(map(len, part.classes.values())) for part in parts.values())
        print_note(
            f"{root} has no split: {train:,} images to train and {test:,} to test on, of each "
            f"class alike (--test_fraction {how.test_fraction:g} --test_seed {how.test_seed})"
        )
    else:
        for name in ("test_fraction", "test_seed"):
            if getattr(how, name) != getattr(SplitOptions, name):
                raise UserError(
                    f"--{name}: {root} has a split ({', '.join(parts)}): leave the flag out"
                )
    check_classes(root, parts)
    classes = tuple(sorted(parts["train"].classes))
    test = parts.pop("test") if "test" in parts else parts.pop("val")
    ordered = [parts["train"], test, *([parts["val"]] if "val" in parts else [])]
    return Layout(classes, *(files_of(part, classes) for part in ordered))


def is_csv(path: Path) -> bool:
    return path.suffix.lower() == ".csv" and not path.is_dir()


def name_of(data_dir: str) -> str:
    """What a data set is called: its folder, or its CSV file without the suffix."""
    path = Path(data_dir).resolve()
    return path.stem if is_csv(path) else path.name


_said: ContextVar[set[str] | None] = ContextVar("said", default=None)


def print_note(text: str) -> None:
    """A line for the user that is no warning."""
    line, said = one_line(text), _said.get()
    if said is None or line not in said:
        print(line, file=sys.stderr)
    if said is not None:
        said.add(line)


@contextlib.contextmanager
def notes_once(said: set[str]) -> Iterator[None]:
    """Leave out lines that are in `said`, and add the others to it."""
    token = _said.set(said)
    try:
        yield
    finally:
        _said.reset(token)


@contextlib.contextmanager
def reading(path: str | Path):
    """Turn an OSError about a file or a folder, `path` or below, into a line for the user."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot read {error.filename or path}: {error.strerror}") from error


def read_folders(root: Path) -> dict[str, Part]:
    """The parts of ROOT/SPLIT/CLASS/IMAGE by name; of ROOT/CLASS/IMAGE the one UNSPLIT."""
    if not root.is_dir():
        raise UserError(
            f"no folder {root}: name the one that holds train/ and val/, or a folder a class, with "
            "--data_dir"
        )
    found = [name for name in SPLITS if (root / name).is_dir()]
    if not found:
        return {UNSPLIT: read_unsplit(root)}
    if "train" not in found:
        raise UserError(
            f"no train/ in {root}: it needs train/CLASS/IMAGE and val/CLASS/IMAGE; "
            "--data_dir names the folder that has them"
        )
    if found == ["train"]:
        raise UserError(
            f"neither val/ nor test/ in {root}: one of them is needed to test on; "
            f"--data_dir {root / 'train'} has its images split"
        )
    if len(found) == 3 and not set(class_folders(root / "test")) & set(class_folders(root / "val")):
        print_note(f"{root / 'test'} has none of the classes of val/: it is not looked at")
        found.remove("test")  # as published, without labels
    return {name: read_part(root / name) for name in found}


def read_unsplit(root: Path) -> Part:
    """ROOT/CLASS/IMAGE; folders without images, such as a cache, are no classes."""
    for folder in class_folders(root):
        if (root / folder / "train").is_dir():
            raise UserError(f"no train/ in {root}, but in {folder}/: --data_dir {root / folder}")
    part = read_part(root, optional=True)
    if not part.classes:
        loose = sum(is_image(entry.name) for entry in os.scandir(root))
        there = f"{loose:,} images lie there, and" if loose else "and"
        raise UserError(
            f"no train/ in {root}, {there} no folder of images: sort them into a folder a class, "
            "or give a CSV file of path,label; --data_dir names the folder or the file"
        )
    return part


def read_part(folder: Path, optional: bool = False) -> Part:
    """Every image below each class folder; where they are `optional`, empty ones are left out."""
    classes = {name: sorted(image_files(folder / name)) for name in class_folders(folder)}
    for name in [name for name, paths in classes.items() if not paths]:
        if not optional:
            raise UserError(
                f"no images in {folder / name}: looked for {', '.join(sorted(SUFFIXES))}"
            )
        print_note(f"no images in {folder / name}: it is no class")
        del classes[name]
    return Part(classes, str(folder))


def class_folders(folder: Path) -> list[str]:
    """Names of the folders inside a folder; nothing hidden."""
    inside = (entry for entry in os.scandir(folder) if os.path.isdir(entry.path))
    return sorted(entry.name for entry in inside if not entry.name.startswith("."))


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image; hidden ones are none."""
    return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")


def image_files(folder: Path) -> Iterator[str]:
    """Every image below a folder; nothing hidden, and no link to a folder that it lies in."""

    def refuse(error: OSError) -> None:
        raise error

    for where, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        inside = [(name, Path(where, name)) for name in folders if not name.startswith(".")]
        folders[:] = [name for name, path in inside if not leads_back(path)]
        yield from (os.path.join(where, file) for file in files if is_image(file))


def leads_back(path: Path) -> bool:
    """Whether it is a link to a folder around it, and following it would never end."""
    return path.is_symlink() and any(path.samefile(parent) for parent in path.parents)


def read_csv(path: Path) -> dict[str, Part]:
    """The parts of a file of path,label,split by name; without `split` the one UNSPLIT.

    Paths begin at the folder of the file.
    """
    parts: dict[str, dict[str, list[str]]] = {}
    seen: set[str] = set()
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, strict=True)
            columns = rows.fieldnames or []
            if not set(columns) >= COLUMNS:
                raise UserError(
                    f"{path} begins with {','.join(columns)[:80]!r}: its first line has to be "
                    "path,label or path,label,split"
                )
            for row in rows:
                where = f"{path}, line {rows.line_num}"
                if problem := wrong_in_row(row, columns, path.parent):
                    raise UserError(f"{where}: {problem}")
                image = os.path.join(path.parent, row["path"])
                if (known_as := os.path.abspath(image)) in seen:
                    raise UserError(f"{where}: {row['path']} is there twice")
                seen.add(known_as)
                files = parts.setdefault(row.get("split", UNSPLIT), defaultdict(list))
                files[row["label"]].append(image)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no CSV file in UTF-8: {error}") from error
    if not parts:
        raise UserError(f"{path} names no images")
    if UNSPLIT not in parts and (len(parts) < 2 or "train" not in parts):
        raise UserError(
            f"{path} has split {', '.join(parts)} alone: it needs train, and val or test"
        )
    by_name = {name: parts[name] for name in (UNSPLIT, *SPLITS) if name in parts}
    return {
        name: Part({label: sorted(classes[label]) for label in sorted(classes)}, str(path.parent))
        for name, classes in by_name.items()
    }


def wrong_in_row(row: dict[str, str], columns: Sequence[str], folder: Path) -> str:
    """What is wrong with a row of a CSV file in this folder; '' where nothing is."""
    if None in row or None in row.values() or not (row["path"] and row["label"]):
        return f"it needs {','.join(columns)}, a value each"
    if "split" in columns and row["split"] not in SPLITS:
        return f"split is {row['split']!r}, and none of {', '.join(SPLITS)}"
    if "\0" in row["path"]:
        return f"{row['path']!r} is no name of a file"
    if os.path.isdir(os.path.join(folder, row["path"])):
        return f"{row['path']!r} is a folder"
    return ""


def divide(part: Part, how: SplitOptions) -> dict[str, Part]:
    """A random part of each class to test on, the rest to train on.

    Which is which follows from the seed and a file's name, so that files that are added move few of
    the others.
    """
    train, test = {}, {}
    for name, paths in part.classes.items():
        if len(paths) < 2:
            raise UserError(
                f"class {name} has one image ({paths[0]}): it needs one to train and one to test on"
            )
        n = min(max(1, round(how.test_fraction * len(paths))), len(paths) - 1)
        chosen = set(sorted(paths, key=lambda path: rank_of(path, part.root, how.test_seed))[:n])
        train[name] = [path for path in paths if path not in chosen]
        test[name] = sorted(chosen)
    return {"train": Part(train, part.root), "test": Part(test, part.root)}


def rank_of(path: str, root: str, seed: int) -> bytes:
    """A random number of a file that follows from the seed and its name."""
    return hashlib.sha256(b"%d\0" % seed + os.fsencode(os.path.relpath(path, root))).digest()


def check_classes(root: Path, parts: dict[str, Part]) -> None:
    """UserError unless there are two classes or more, the same in each part."""
    ours = parts["train"].classes.keys()
    if not ours:
        where = root / "train"
        raise UserError(f"no class folders in {where}: images belong in {where}/CLASS/IMAGE")
    for name, part in parts.items():
        theirs = part.classes.keys()
        sides = {"train": ours - theirs, name: theirs - ours}
        if only := [
            f"only in {side}: {shortened(names)}" for side, names in sides.items() if names
        ]:
            raise UserError(
                f"train and {name} of {root} differ in their classes ({'; '.join(only)})"
            )
    if len(ours) < 2:
        raise UserError(f"one class in {root} ({', '.join(ours)}): there is nothing to tell apart")


def shortened(names: set[str], limit: int = 5) -> str:
    """'a, b, c, d, e and 7 more'"""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(sorted(names)[:limit]) + more


def files_of(part: Part, classes: tuple[str, ...]) -> Files:
    """The files in the order of their classes, each with the number of its class."""
    paths = Paths(path for name in classes for path in part.classes[name])
    sizes = torch.tensor([len(part.classes[name]) for name in classes])
    return Files(paths, torch.arange(len(classes)).repeat_interleave(sizes), part.root)

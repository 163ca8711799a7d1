"""A hash of a data set: two runs on data of the same fingerprint see the same images and labels."""

import hashlib
import json
import os

from torch import Tensor

from dataset.base import DataSet, StreamedSet
from dataset.folder import content_hashes
from dataset.layout import Files, reading


def fingerprint(data: DataSet | StreamedSet) -> str:
    """sha256 (hex) of everything in the data that changes a number; where it lies does not count.

    Images in memory: pixels and labels of all splits, class names, mean, std, padding, flip.
    Image files: the names, sizes in bytes and labels of all splits, class names, mean, std,
    image_size. The files are not read, so a change that keeps a file's name and size goes unseen;
    with `hash_content` they are, and their contents stand in the place of sizes.
    """
    digest, splits = hashlib.sha256(), list(filter(None, (data.train, data.test, data.val)))
    if isinstance(data, DataSet):
        _add(digest, "in memory", data.padding, data.flip)
        for split in splits:
            _add_tensor(digest, split.images)
            _add_tensor(digest, split.labels)
    else:
        _add(digest, "files", data.image_size)
        for split in splits:
            _add_files(digest, split, data.hash_content)
    _add(digest, data.classes, *([float(x) for x in values] for values in (data.mean, data.std)))
    return digest.hexdigest()


def fingerprint_of_images(data: DataSet | StreamedSet) -> str:
    """sha256 (hex) of what tells these images from others, however they are kept and augmented.

    Labels of all splits, class names, image size, and of the pixels their mean and std.
    """
    digest = hashlib.sha256()
    for split in filter(None, (data.train, data.test, data.val)):
        _add_tensor(digest, split.labels)
    _add(digest, data.classes, data.image_size, *map(list, (data.mean, data.std)))
    return digest.hexdigest()


def _add(digest, *values) -> None:
    digest.update(json.dumps(values).encode() + b"\n")


def _add_tensor(digest, tensor: Tensor) -> None:
    _add(digest, tuple(tensor.shape), str(tensor.dtype))
    digest.update(memoryview(tensor.detach().cpu().contiguous().numpy()))


def _add_files(digest, files: Files, hash_content: bool) -> None:
    _add(digest, len(files.paths))
    with reading(files.root):
        marks = content_hashes(files.paths) if hash_content else map(size_of, files.paths)
        for path, label, mark in zip(files.paths, files.labels.tolist(), marks, strict=True):
            name = path.removeprefix(files.root).lstrip(os.sep).replace(os.sep, "/")
            digest.update(b"%b\0%d %b\n" % (os.fsencode(name), label, mark))


def size_of(path: str) -> bytes:
    return b"%d" % os.stat(path).st_size

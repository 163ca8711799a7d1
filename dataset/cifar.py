"""CIFAR-10 and CIFAR-100: 60,000 colour images of 32 x 32, downloaded when they are not there.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

import http.client
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from dataset import DATASETS
from dataset.base import DataSet, DataSource, Split
from helper.errors import UserError
from helper.options import option

# What reading or fetching a data set raises where a file or the connection is broken
BROKEN = (OSError, RuntimeError, EOFError, http.client.HTTPException)


@dataclass(frozen=True)
class CifarOptions:
    data_dir: str = option("./data", "folder where data sets lie or are downloaded to")


@DATASETS.register("cifar10")
class Cifar10(DataSource):
    """60,000 photographs of 32x32 in 10 classes (Krizhevsky 2009), downloaded."""

    Options = CifarOptions

    @staticmethod
    def load(options: CifarOptions) -> DataSet:
        mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
        return load_cifar("CIFAR10", options, mean, std)


@DATASETS.register("cifar100")
class Cifar100(DataSource):
    """60,000 photographs of 32x32 in 100 classes (Krizhevsky 2009), downloaded."""

    Options = CifarOptions

    @staticmethod
    def load(options: CifarOptions) -> DataSet:
        mean, std = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
        return load_cifar("CIFAR100", options, mean, std)


def load_cifar(kind: str, options: CifarOptions, mean, std) -> DataSet:
    """Read torchvision's CIFAR10 or CIFAR100; UserError if it is neither there nor to be had."""
    from helper.vision import torchvision  # a second to import: only when asked for

    source = getattr(torchvision.datasets, kind)
    try:
        # Checks every file; what is there and whole is not downloaded again.
        train = source(options.data_dir, train=True, download=True)
        test = source(options.data_dir, train=False)
    except BROKEN as error:
        raise UserError(explain_failure(source, Path(options.data_dir), error)) from error
    return DataSet(kind.lower(), to_split(train), to_split(test), tuple(train.classes), mean, std)


def to_split(source) -> Split:
    """torchvision's CIFAR split, whose images are (N, 32, 32, 3), as ours."""
    images = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()  # (N, 3, 32, 32)
    return Split(images, torch.tensor(source.targets))


def explain_failure(source, root: Path, error: Exception) -> str:
    """Which file is missing or damaged, why no other could be had, and the ways out."""
    from torchvision.datasets.utils import check_integrity

    if isinstance(error, PermissionError):
        return (
            f"{source.__name__}: cannot use {error.filename} ({error.strerror}): allow it, or name "
            "another folder with --data_dir"
        )
    wanted = dict(source.train_list + source.test_list) | {
        source.meta["filename"]: source.meta["md5"]
    }
    bad = next(
        (
            name
            for name, md5 in wanted.items()
            if not check_integrity(root / source.base_folder / name, md5)
        ),
        "",
    )
    path = root / source.base_folder / bad
    state = "is damaged" if os.path.isfile(path) else "is missing"
    why = " ".join(str(error).split())
    return (
        f"{source.__name__}: {path} {state} and downloading failed ({why}); put {source.filename} "
        f"into {root}, or name its folder with --data_dir, or try --dataset digits or fake"
    )

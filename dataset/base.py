"""What a data set is, how one is registered, and what a batch is. N samples, K classes, B batch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dataset.layout import Files
from helper.errors import UserError

MIN_SIZE = 8  # pixels a side; the networks halve an image at least twice
CROP_PCT = 224 / 256  # of a test image beside random resized crops, see `DataSet.crop_pct`
LARGEST_SIZE = 8192  # pixels a side: a batch of one such image takes gigabytes


class Batch(NamedTuple):
    """What the networks and losses of one step see.

    Where a run has several processes, each has its own share b of the B images, and all labels.
    """

    # (b, 3, H, W), augmented and normalised; (2, b, 3, H, W) where a weak and a strong view of each
    # image are asked for.
    images: Tensor
    labels: Tensor  # (B,)
    index: Tensor  # (B,) number of each sample in its split

    @property
    def views(self) -> tuple[Tensor, ...]:
        """The images in each view, weak and strong, (b, 3, H, W) each; one where there is one."""
        return self.images.unbind() if self.images.ndim == 5 else (self.images,)


@dataclass(frozen=True)
class Split:
    """All images of a split, of one size, and their labels."""

    images: Tensor  # (N, 3, H, W) uint8
    labels: Tensor  # (N,) int64


@dataclass(frozen=True)
class DataSet:
    """A data set in memory: a training and a test split, and how the images are augmented."""

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]  # K names
    mean: tuple[float, float, float]  # of images in [0, 1]
    std: tuple[float, float, float]
    padding: int = 4  # black border from which a training crop of the image's size is cut
    flip: bool = True  # whether half of the training images are flipped
    resized: bool = False  # whether training crops are parts of any size, scaled, without a border
    networks: Mapping[str, str] = field(default_factory=dict)  # see `DataSource`
    val: Split | None = None  # held out of the training split, see `subset.hold_out`

    crop_pct = 1.0  # of a test image: side of the center crop / shorter side after resizing

    @property
    def image_size(self) -> int:
        return self.train.images.shape[-1]


@dataclass(frozen=True)
class StreamedSet:
    """A data set on disk: the image files of a training and a test split, read as a run trains."""

    name: str
    train: Files
    test: Files
    classes: tuple[str, ...]  # K names
    mean: tuple[float, float, float]  # of images in [0, 1]
    std: tuple[float, float, float]
    image_size: int
    padding: int = 0  # border of the scaled image that crops are cut from; 0: random resized crops
    flip: bool = True  # whether half of the training images are flipped
    networks: Mapping[str, str] = field(default_factory=dict)  # see `DataSource`
    hash_content: bool = False  # whether the content of its files is part of its fingerprint
    val: Files | None = None  # held out of the training split, see `subset.hold_out`

    @property
    def crop_pct(self) -> float:
        return 1.0 if self.padding else CROP_PCT


class DataSource:
    """Base of what is registered in DATASETS: a subclass has `Options` and implements `load`.

    The other attributes are this data's own defaults for options that the user did not give; those
    here change nothing.
    """

    networks: Mapping[str, str] = {}  # name on the command line -> network built for this data
    teacher: str | None = None  # network to take where no teacher is named
    student: str | None = None  # network to train where none is named
    warmup: int | None = None  # epochs, for methods that have a warm-up

    @dataclass(frozen=True)
    class Options:
        """Flags of this data set, see `helper.options.option`."""

    @staticmethod
    def load(options: Any) -> Any:
        """Its Options -> a DataSet or a StreamedSet. Raises UserError where the data is missing."""
        raise NotImplementedError("a data set implements load(options)")

    @staticmethod
    def recipe(typed: Mapping[str, Any]) -> dict[str, Any]:
        """Training options and their values for this data, given those typed by the user."""
        return {}

    @staticmethod
    def called(options: Any) -> str | None:
        """The data's name, where its Options say it; None where it is that of the registry."""
        return None

    @staticmethod
    def has_pretrained(name: str) -> bool:
        """Whether there are published weights of a network for this data."""
        return False

    @staticmethod
    def pretrained(name: str) -> Path | None:
        """Checkpoint with published weights of a network; None for data without any.

        Raises UserError where the weights exist and cannot be had.
        """
        return None


def check_image_size(image_size: int) -> None:
    """UserError unless images of this size can be trained on."""
    if image_size < MIN_SIZE:
        raise UserError(
            f"images of {image_size} x {image_size} are too small: use at least {MIN_SIZE}"
        )
    if image_size > LARGEST_SIZE:
        raise UserError(
            f"images of {image_size} x {image_size} are too large: use at most {LARGEST_SIZE}"
        )


def mean_and_std(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of each channel over all pixels of images (N, 3, H, W) uint8."""
    counts = torch.zeros(3, 256, dtype=torch.int64)
    for part in images.split(1024):
        for channel, pixels in enumerate(part.unbind(1)):
            counts[channel] += torch.bincount(pixels.reshape(-1), minlength=256)
    return mean_and_std_of(counts)


def mean_and_std_of(counts: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of each channel, scaled to [0, 1], of a histogram (3, 256); exact.

    A channel of one value gets a std of 1/255 instead of 0.
    """
    share = counts.double() / counts.sum(dim=1, keepdim=True)  # (3, 256)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ values  # (3,)
    variance = (share * (values - mean[:, None]) ** 2).sum(dim=1)
    return tuple(mean.tolist()), tuple(variance.sqrt().clamp(min=1 / 255).tolist())

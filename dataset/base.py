"""What a data set is, and what a batch of one is. N samples, K classes, B batch."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    images: Tensor  # (B, 3, H, W), augmented and normalised
    labels: Tensor  # (B,)
    index: Tensor  # (B,) place of each sample in its split


@dataclass(frozen=True)
class Split:
    """Images of one size and their labels."""

    images: Tensor  # (N, 3, H, W) uint8
    labels: Tensor  # (N,) int64


@dataclass(frozen=True)
class DataSet:
    """A training and a test split, and how their images are shown to a network."""

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]  # K names
    mean: tuple[float, float, float]  # of images in [0, 1]
    std: tuple[float, float, float]
    padding: int = 4  # black border from which a training crop of the image's size is cut
    flip: bool = True  # whether half of the training images are mirrored

    @property
    def image_size(self) -> int:
        return self.train.images.shape[-1]

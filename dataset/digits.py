"""Handwritten digits that come with scikit-learn: 1,797 grey images of 8 x 8, no download.

E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from dataset import DATASETS
from dataset.base import DataSet, DataSource, Split, check_image_size, mean_and_std
from helper.errors import UserError
from helper.options import option, positive

MAX_PIXEL = 16  # pixels are 0..16


@DATASETS.register("digits")
class Digits(DataSource):
    """1,797 handwritten digits that come with scikit-learn (UCI, 1998), no download.

    The first half trains and the second half, by other writers, tests.
    """

    @dataclass(frozen=True)
    class Options:
        image_size: int = option(32, "width and height the digits are scaled to", parse=positive)

    @staticmethod
    def load(options: Options) -> DataSet:
        size = options.image_size
        check_image_size(size)
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise UserError("the digits come with scikit-learn: pip install scikit-learn") from None
        digits = load_digits()
        grey = torch.from_numpy(digits.images).float()[:, None] * (255 / MAX_PIXEL)  # (N, 1, 8, 8)
        grey = F.interpolate(grey, (size, size), mode="bilinear", align_corners=False)
        images = grey.round().to(torch.uint8).repeat(1, 3, 1, 1)  # (N, 3, S, S)
        labels = torch.from_numpy(digits.target).long()
        half = len(labels) // 2
        train, test = Split(images[:half], labels[:half]), Split(images[half:], labels[half:])
        mean, std = mean_and_std(train.images)
        names = tuple(map(str, digits.target_names))
        # The border is one of the 8 pixels wide; a flipped digit is no digit.
        return DataSet("digits", train, test, names, mean, std, padding=size // 8, flip=False)

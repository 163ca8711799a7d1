"""Random images that can be learned, for tests and trials: nothing to download, nothing to read."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from dataset import DATASETS
from dataset.base import DataSet, DataSource, Split, check_image_size, mean_and_std
from helper.errors import UserError
from helper.options import option, positive

SEED = 20_200_501  # of the images; neither the run's seed nor the global generator matters


@DATASETS.register("fake")
class Fake(DataSource):
    """Invented images that can be learned, for tests.

    Each class has a colour and a coarse pattern; noise hides them in part.
    """

    @dataclass(frozen=True)
    class Options:
        fake_size: int = option(
            512, "training images to invent; a quarter as many to test", parse=positive
        )
        fake_classes: int = option(10, "classes to invent", parse=positive)
        image_size: int = option(32, "width and height in pixels", parse=positive)

    @staticmethod
    def load(options: Options) -> DataSet:
        size, classes = options.image_size, options.fake_classes
        check_image_size(size)
        if options.fake_size < classes:
            raise UserError(
                f"--fake_size {options.fake_size} is fewer than --fake_classes {classes}: "
                "each class needs an image"
            )
        generator = torch.Generator().manual_seed(SEED)
        pattern = torch.rand(classes, 3, 4, 4, generator=generator)
        pattern = F.interpolate(pattern, (size, size), mode="bilinear", align_corners=False)
        colour = torch.rand(classes, 3, 1, 1, generator=generator)
        typical = 48 + 80 * colour + 80 * pattern  # (K, 3, S, S) in [48, 208]

        def split(n: int) -> Split:
            labels = torch.arange(n) % classes
            noise = torch.randn(n, 3, size, size, generator=generator)
            return Split((typical[labels] + 40 * noise).clamp(0, 255).to(torch.uint8), labels)

        train, test = split(options.fake_size), split(max(1, options.fake_size // 4))
        mean, std = mean_and_std(train.images)
        names = tuple(f"class {k}" for k in range(classes))
        return DataSet("fake", train, test, names, mean, std, padding=size // 8)

"""STL-10: 13,000 labelled colour images of 96 x 96, downloaded when they are not there.

A. Coates, H. Lee and A. Y. Ng, "An Analysis of Single Layer Networks in Unsupervised Feature
Learning", AISTATS 2011. N images of S x S.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dataset import DATASETS
from dataset.base import DataSet, DataSource, Split, check_image_size
from dataset.cifar import BROKEN, explain_failure
from dataset.folder import resize_and_center_crop
from helper.errors import UserError
from helper.options import option, positive

MEAN, STD = (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2712)
# Of labels 1 to 10, as the published class_names.txt has them.
CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


@DATASETS.register("stl10")
class Stl10(DataSource):
    """13,000 labelled photographs of 96x96 in 10 classes (Coates et al. 2011), downloaded.

    The download has 2.6 GB, most of them unlabelled photographs. Those are not used: once unpacked,
    unlabeled_X.bin may be removed.
    """

    @dataclass(frozen=True)
    class Options:
        data_dir: str = option("./data", "folder where data sets lie or are downloaded to")
        image_size: int = option(32, "width and height the images are scaled to", parse=positive)

    @staticmethod
    def load(options: Options) -> DataSet:
        size = options.image_size
        check_image_size(size)
        source = labelled_stl10()
        try:
            # Checks every file; what is there and whole is not downloaded again.
            train = source(options.data_dir, split="train", download=True)
            test = source(options.data_dir, split="test")
        except BROKEN as error:
            raise UserError(explain_failure(source, Path(options.data_dir), error)) from error
        splits = (to_split(part, size) for part in (train, test))
        return DataSet("stl10", *splits, CLASSES, MEAN, STD, padding=size // 8)


def labelled_stl10() -> type:
    """torchvision's STL10, which asks for the unlabelled images as well, without them."""
    from helper.vision import torchvision  # a second to import: only when asked for

    class STL10(torchvision.datasets.STL10):
        train_list = torchvision.datasets.STL10.train_list[:2]  # images, labels
        meta = {"filename": torchvision.datasets.STL10.class_names_file, "md5": None}

    return STL10


def to_split(source, size: int) -> Split:
    """The images of a split scaled to `size`, antialiased, as transforms.Resize does it."""
    from PIL import Image

    images = np.empty((len(source.data), 3, size, size), dtype=np.uint8)  # (N, 3, S, S)
    for i, pixels in enumerate(source.data):
        image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        images[i] = np.asarray(resize_and_center_crop(image, size)).transpose(2, 0, 1)
    return Split(torch.from_numpy(images), torch.from_numpy(source.labels).long())

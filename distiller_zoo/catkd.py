from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from helper.options import at_most, option, positive
from models.base import Features

from . import METHODS
from .base import Distiller, Recipe
from .rows import normalize_rows
from .views import LARGEST_GRID

# (teacher, student) -> weight, grid, whether maps are normalised (published configurations).
SETTINGS = {
    ("resnet32x4", "resnet8x4"): (15.0, 2, False),
    ("wrn_40_2", "wrn_16_2"): (12.0, 2, False),
    ("wrn_40_2", "wrn_40_1"): (1.5, 2, False),
    ("resnet56", "resnet20"): (0.7, 2, False),
    ("resnet110", "resnet32"): (1.8, 2, False),
    ("vgg13", "vgg8"): (4.5, 2, False),
    ("resnet32x4", "ShuffleV1"): (600.0, 4, True),
    ("resnet32x4", "ShuffleV2"): (600.0, 4, True),
    ("wrn_40_2", "ShuffleV1"): (80.0, 4, True),
    ("ResNet50", "MobileNetV2"): (40.0, 2, True),
    ("vgg13", "MobileNetV2"): (15.0, 2, True),
    ("ResNet34", "ResNet18"): (0.5, 4, False),
    ("ResNet50", "MobileNetV1"): (10.0, 2, True),
}


@METHODS.register("catkd")
class CATKD(Distiller):
    """Guo et al., Class Attention Transfer Based Knowledge Distillation, CVPR 2023.

    Mean squared error between the class activation maps of student and teacher, average-pooled to
    grid x grid places. A class's map is what its row of the classifier says of each place of the
    last map, without the bias; `--catkd_normalize` divides it by its length over the places. The
    gradient reaches the student's classifier.

    The published networks have no bias in their classifiers; here they keep it. The default weight
    and grid are those of resnet32x4 -> resnet8x4.
    Raises ValueError where a classifier does not read the mean of a map.
    Reference: GzyAftermath/CAT-KD, mdistiller/distillers/CAT_KD.py.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=15.0)
    reads = frozenset({"last_map", "head"})

    @dataclass(frozen=True)
    class Options:
        catkd_grid: int = option(
            2, "places on a side of a class's map", parse=at_most(LARGEST_GRID, positive)
        )
        catkd_normalize: bool = option(False, "scale each class's map to unit length")

    def __init__(self, options, setup):
        super().__init__(options, setup)
        for who in (setup.student, setup.teacher):
            self.class_maps(who)

    @staticmethod
    def pair_defaults(teacher, student, views, data):
        if (teacher, student) not in SETTINGS:
            return {}
        weight, grid, normalize = SETTINGS[teacher, student]
        return {"beta": weight, "catkd_grid": grid, "catkd_normalize": normalize}

    def forward(self, student, teacher, batch):
        return F.mse_loss(self.class_maps(student), self.class_maps(teacher))

    def class_maps(self, features: Features) -> Tensor:
        """Features of B images -> (B * K, places). ValueError where there is no map."""
        regions = features.region_logits((self.options.catkd_grid,))  # (places, B, K)
        bias = features.head(features.last_map.new_zeros(features.last_map.shape[1]))  # (K,)
        maps = (regions - bias).flatten(1).T
        return normalize_rows(maps, eps=1e-12) if self.options.catkd_normalize else maps

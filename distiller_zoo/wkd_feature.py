import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from helper.options import at_most, not_negative, option, positive, share
from models.adapters import Regressor

from . import METHODS
from .base import Distiller, Recipe

EPS = 1e-5  # added to a variance
# (teacher, student) -> beta, weight of the means, grid (published configurations).
SETTINGS = {
    ("resnet32x4", "resnet8x4"): (0.08, 4.0, 1),
    ("wrn_40_2", "ShuffleV1"): (0.3, 3.0, 4),
}
# The same on ImageNet, and the share of the epochs after which the weight falls.
SETTINGS_IMAGENET = {
    ("ResNet34", "ResNet18"): (0.02, 2.0, 4, 0.0),
    ("ResNet50", "MobileNetV1"): (0.005, 2.0, 4, 0.3),
}


@METHODS.register("wkd_feature")
class WKDFeature(Distiller):
    """Lv et al., Wasserstein Distance Rivals Kullback-Leibler Divergence, NeurIPS 2024 (WKD-F).

    The places of a block of the last map are taken for samples of a Gaussian, channel by channel:
    squared differences of the means, weighted by `wkd_mean`, and of the standard deviations,
    summed over the channels, mean over the blocks and the batch. The student's map goes through a
    convolutional regressor first. The weight falls to 0 along a cosine.

    On ImageNet the paper's regressor is a bottleneck; here it is one convolution everywhere.
    Settings of pairs that the paper does not name are those of resnet32x4 -> resnet8x4.
    Raises ValueError without a last map, or where no convolution joins the sizes.
    Reference: JiamingLv/WKD, mdistiller/distillers/WKD.py.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=0.08)
    reads = frozenset({"last_map"})

    @dataclass(frozen=True)
    class Options:
        wkd_mean: float = option(4.0, "weight of the means", parse=not_negative)
        wkd_grid: int = option(1, "blocks a side of the last map", parse=at_most(64, positive))
        wkd_decay_from: float = option(
            0.625, "share of the epochs after which the weight falls to 0", parse=share
        )

    def __init__(self, options, setup):
        super().__init__(options, setup)
        for who, shown in (("student", setup.student), ("teacher", setup.teacher)):
            if shown.last_map is None:
                raise ValueError(
                    f"the {who} has no last map, only a vector of {tuple(shown.pooled.shape[1:])} "
                    "and logits: choose a method that reads those"
                )
        size = tuple(setup.teacher.last_map.shape[2:])
        if options.wkd_grid >= max(size):
            warnings.warn(
                f"a last map of {size[0]}x{size[1]} in {options.wkd_grid}x{options.wkd_grid} "
                "blocks has blocks of one place, which have no deviation: --wkd_grid sets another",
                stacklevel=2,
            )
        self.projector = Regressor(setup.student.last_map.shape, setup.teacher.last_map.shape)
        self.register_buffer("share", torch.ones(()), persistent=False)  # of the weight, now

    @staticmethod
    def variant(options):
        return describe_decay("falls", options.wkd_decay_from)

    @staticmethod
    def pair_defaults(teacher, student, views, data):
        pair = teacher, student
        table = SETTINGS_IMAGENET if data == "imagenet" else SETTINGS
        names = "beta", "wkd_mean", "wkd_grid", "wkd_decay_from"
        return dict(zip(names, table.get(pair, ())))

    def begin(self, epoch, epochs):
        self.share.fill_(decayed(epoch, epochs, self.options.wkd_decay_from))

    def forward(self, student, teacher, batch):
        projected = self.projector(student.last_map)
        mean, deviation = moment_losses(projected, teacher.last_map, self.options.wkd_grid)
        self.parts = {"mean": mean.detach(), "deviation": deviation.detach()}
        return self.share * (self.options.wkd_mean * mean + deviation)


def moment_losses(student: Tensor, teacher: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """Two maps (B, C, H, W) -> squared differences of the blocks' means, of their deviations:
    summed over the channels, mean over the grid^2 blocks and the batch."""
    moments = zip(block_moments(student, grid), block_moments(teacher, grid), strict=True)
    return tuple((s - t).square().sum(dim=1).mean() for s, t in moments)


def block_moments(x: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of the blocks of a map: (B, C, H, W) -> (B, C, grid^2) each.

    Blocks are those of adaptive pooling. One place has the variance 0.
    """
    rows, columns = (bounds(size, grid) for size in x.shape[2:])
    blocks = [x[:, :, a:b, c:d].flatten(2) for a, b in rows for c, d in columns]
    means = torch.stack([block.mean(dim=2) for block in blocks], dim=2)
    variances = [block.var(dim=2, correction=min(1, block.shape[2] - 1)) for block in blocks]
    return means, (torch.stack(variances, dim=2) + EPS).sqrt()


def bounds(size: int, parts: int) -> list[tuple[int, int]]:
    """Where each part of a side begins and ends, as in adaptive pooling."""
    return [(size * i // parts, -(-size * (i + 1) // parts)) for i in range(parts)]


def decayed(epoch: int, epochs: int, start: float) -> float:
    """Share of a weight in an epoch counted from 1: whole up to the share `start` of the epochs,
    then along a cosine, 0 in the last one."""
    begun = (epoch - start * epochs) / ((1 - start) * epochs) if start < 1 else 0.0
    return (1 + math.cos(math.pi * max(0.0, begun))) / 2


def describe_decay(what: str, start: float) -> str:
    """What an objective says of it: 'transport falls to 0 behind 0.625 of the epochs'."""
    return f"{what} to 0 behind {start:g} of the epochs" if start < 1 else ""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.options import option, positive
from models.adapters import pool_to
from models.base import Features

from . import METHODS
from .base import Distiller, Recipe, count_stage_pairs

POOL_SIZES = (4, 2, 1)  # sides of the pooled maps that are compared as well
MAX_CHANNELS = 512  # in which maps are fused
# (teacher, student) -> weight of the loss where it is not 1 (published configurations).
WEIGHT = {
    ("resnet32x4", "resnet8x4"): 5.0,
    ("resnet32x4", "ShuffleV1"): 5.0,
    ("resnet32x4", "ShuffleV2"): 8.0,
    ("resnet56", "resnet20"): 0.6,
    ("wrn_40_2", "wrn_16_2"): 5.0,
    ("wrn_40_2", "wrn_40_1"): 5.0,
    ("wrn_40_2", "ShuffleV1"): 5.0,
}
# The same on ImageNet, where the student's stages are read before the activation.
WEIGHT_IMAGENET = {("ResNet34", "ResNet18"): 1.0, ("ResNet50", "MobileNetV1"): 8.0}


@METHODS.register("reviewkd")
class ReviewKD(Distiller):
    """Chen et al., Distilling Knowledge via Knowledge Review, CVPR 2021.

    From the deepest stage of the student on, each is fused with the next shallower one by attention
    (attention-based fusion, ABF). Each fused map is compared with the teacher's stage by the
    hierarchical context loss (HCL): mean squared error of the maps and of poolings of them. The
    pooled vector is the deepest stage.

    As in the published code the teacher's stages are read before their activation, and the
    student's behind it, but on ImageNet before it as well (`--review_preacts`, which the published
    pairs of ImageNet set).

    Raises ValueError where a network has no maps.
    Reference: megvii-research/mdistiller, mdistiller/distillers/ReviewKD.py.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=1.0, warmup=20)
    reads = frozenset({"stages", "preacts", "pooled"})

    @dataclass(frozen=True)
    class Options:
        review_channels: int = option(
            MAX_CHANNELS, "most channels in which stages are fused", parse=positive
        )
        review_preacts: bool = option(
            False, "the student's stages before their activation too, as published for ImageNet"
        )

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.stages = count_stage_pairs(setup)
        s, t = self.levels_of_student(setup.student), self.levels_of_teacher(setup.teacher)
        mid_channels = min(options.review_channels, s[-1].shape[1])
        self.fusions = fusions([x.shape[1] for x in s], [x.shape[1] for x in t], mid_channels)

    @staticmethod
    def pair_defaults(teacher, student, views, data):
        """Published weights; on ImageNet also which of the student's maps are read."""
        pair = teacher, student
        if data == "imagenet" and pair in WEIGHT_IMAGENET:
            return {"beta": WEIGHT_IMAGENET[pair], "review_preacts": True, "batch_size": 256}
        return {"beta": WEIGHT[pair]} if pair in WEIGHT else {}

    def levels_of_student(self, student: Features) -> list[Tensor]:
        """What is fused, (B, C, H, W) each, from shallow to deep."""
        maps = student.preacts if self.options.review_preacts else student.stages
        return levels(maps[: self.stages], student.pooled)

    def levels_of_teacher(self, teacher: Features) -> list[Tensor]:
        """What the fused maps are compared with, (B, C, H, W) each, from shallow to deep."""
        return levels(teacher.preacts[: self.stages], teacher.pooled)

    def forward(self, student, teacher, batch):
        s, t = self.levels_of_student(student), self.levels_of_teacher(teacher)
        return sum(hcl_losses(fuse_levels(self.fusions, s, t), t))


def levels(maps: Sequence[Tensor], pooled: Tensor) -> list[Tensor]:
    """Maps (B, C, H, W) each, then the pooled vector (B, C) as a map of one place."""
    return [*maps, pooled[:, :, None, None]]


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm that uses its running statistics where a batch has one value a channel."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)"""
        if self.training and x[:, 0].numel() == 1:
            mean, var = self.running_mean, self.running_var
            return F.batch_norm(x, mean, var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class Fusion(nn.Module):
    """Attention-based fusion (ABF) of a stage with the fused map of the next deeper stage."""

    def __init__(self, c_in: int, c_mid: int, c_out: int, fuse: bool):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(c_in, c_mid, 1, bias=False), BatchNorm(c_mid))
        self.conv2 = nn.Sequential(
            nn.Conv2d(c_mid, c_out, 3, padding=1, bias=False), BatchNorm(c_out)
        )
        self.att_conv = None
        if fuse:
            self.att_conv = nn.Sequential(nn.Conv2d(2 * c_mid, 2, 1), nn.Sigmoid())
        for convolution in (self.conv1[0], self.conv2[0]):  # as published; att_conv as PyTorch does
            nn.init.kaiming_uniform_(convolution.weight, a=1)

    def forward(self, x: Tensor, deeper: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        """Stage x (B, C, H, W), the deeper fused map (B, M, h, w), size (H', W') of the teacher's.

        -> (B, C', H', W') for the loss, (B, M, H', W') for the next fusion. M middle channels.
        """
        x = self.conv1(x)  # (B, M, H, W)
        if self.att_conv is not None:
            deeper = F.interpolate(deeper, x.shape[2:])
            attention = self.att_conv(torch.cat([x, deeper], dim=1))  # (B, 2, H, W)
            x = x * attention[:, :1] + deeper * attention[:, 1:]
        if x.shape[2:] != size:
            x = F.interpolate(x, size)
        return self.conv2(x), x


def fusions(c_in: list[int], c_out: list[int], c_mid: int) -> nn.ModuleList:
    """One for each level, from deep to shallow; the deepest has no deeper map to fuse with."""
    levels = list(zip(c_in, c_out, strict=True))[::-1]
    return nn.ModuleList(Fusion(a, c_mid, b, fuse=i > 0) for i, (a, b) in enumerate(levels))


def fuse_levels(fusions: nn.ModuleList, s: list[Tensor], t: list[Tensor]) -> list[Tensor]:
    """Levels (B, C, H, W) from shallow to deep -> the student's, fused, in the teacher's shapes."""
    fused, deeper = [], None
    for fusion, x, target in zip(fusions, s[::-1], t[::-1], strict=True):
        y, deeper = fusion(x, deeper, target.shape[2:])
        fused.append(y)
    return fused[::-1]


def hcl_losses(student: list[Tensor], teacher: list[Tensor]) -> list[Tensor]:
    """Hierarchical context loss of each pair of maps: (B, C, H, W) each -> scalars"""
    return [hcl_loss(s, t) for s, t in zip(student, teacher, strict=True)]


def hcl_loss(s: Tensor, t: Tensor) -> Tensor:
    """Hierarchical context loss: (B, C, H, W), (B, C, H, W) -> scalar

    Weighted mean of the mean squared errors of the maps and of their poolings to smaller sides;
    each pooling weighs half of the one before.
    """
    loss, weight, total = F.mse_loss(s, t), 1.0, 1.0
    for side in POOL_SIZES:
        if side < s.shape[2]:
            weight /= 2
            pooled = (pool_to(x, (side, side)) for x in (s, t))
            loss = loss + weight * F.mse_loss(*pooled)
            total += weight
    return loss / total

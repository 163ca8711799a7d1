from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.options import option, positive
from models.base import Features

from . import METHODS
from .base import Distiller, Recipe, count_stage_pairs

POOL_SIZES = (4, 2, 1)  # sides of the pooled maps that are compared as well
MAX_CHANNELS = 512  # in which maps are fused


@METHODS.register("reviewkd")
class ReviewKD(Distiller):
    """Chen et al., Distilling Knowledge via Knowledge Review, CVPR 2021.

    From the deepest stage of the student on, each is fused with the next shallower one by attention
    (attention-based fusion, ABF). Each fused map is compared with the teacher's stage by the
    hierarchical context loss (HCL): mean squared error of the maps and of poolings of them. The
    pooled vector is the deepest stage.

    Raises ValueError where a network has no maps.
    Reference: megvii-research/mdistiller, mdistiller/distillers/ReviewKD.py.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=1.0, warmup=20)

    @dataclass(frozen=True)
    class Options:
        review_channels: int = option(
            MAX_CHANNELS, "most channels in which stages are fused", parse=positive
        )

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.stages = count_stage_pairs(setup)
        s, t = self.levels(setup.student), self.levels(setup.teacher)
        mid_channels = min(options.review_channels, s[-1].shape[1])
        self.fusions = fusions([x.shape[1] for x in s], [x.shape[1] for x in t], mid_channels)

    @staticmethod
    def pair_defaults(teacher, student, views):
        return {"beta": 5.0} if (teacher, student) == ("resnet32x4", "resnet8x4") else {}

    def levels(self, features: Features) -> list[Tensor]:
        """Stages, then the pooled vector as a 1x1 map: (B, C, H, W) each, from shallow to deep."""
        return [*features.stages[: self.stages], features.pooled[:, :, None, None]]

    def forward(self, student, teacher, batch):
        s, t = self.levels(student), self.levels(teacher)
        return sum(hcl_losses(fuse_levels(self.fusions, s, t), t))


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
            pooled = (F.adaptive_avg_pool2d(x, side) for x in (s, t))
            loss = loss + weight * F.mse_loss(*pooled)
            total += weight
    return loss / total

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.options import option, positive
from models.base import Features

from . import METHODS
from .base import Distiller, Recipe, check_stages

LEVELS = (4, 2, 1)  # sides of the pooled maps that are compared as well
WIDEST = 512  # channels in which maps are fused


@METHODS.register("reviewkd")
class ReviewKD(Distiller):
    """Chen et al., Distilling Knowledge via Knowledge Review, CVPR 2021.

    The student's stages, from the deepest on, are fused one into the next shallower by attention;
    each fusion is to equal the teacher's stage, on the map and on poolings of it (hierarchical
    context loss). The pooled vector is the deepest stage.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=1.0, warmup=20)

    @dataclass(frozen=True)
    class Options:
        review_channels: int = option(
            WIDEST, "most channels in which stages are fused", parse=positive
        )

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.stages = check_stages(setup)
        s, t = self.levels(setup.student), self.levels(setup.teacher)
        middle = min(options.review_channels, s[-1].shape[1])
        self.fusions = fusions([x.shape[1] for x in s], [x.shape[1] for x in t], middle)

    @staticmethod
    def pair_defaults(teacher, student, views):
        return {"beta": 5.0} if (teacher, student) == ("resnet32x4", "resnet8x4") else {}

    def levels(self, shown: Features) -> list[Tensor]:
        """Stages and the pooled vector as a 1x1 map: (B, C, H, W) each, from shallow to deep."""
        return [*shown.stages[: self.stages], shown.pooled[:, :, None, None]]

    def forward(self, student, teacher, batch):
        wanted = self.levels(teacher)
        return sum(context_losses(review(self.fusions, self.levels(student), wanted), wanted))


class Norm(nn.BatchNorm2d):
    """BatchNorm that takes its running statistics where a batch has one value a channel."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)"""
        if self.training and x[:, 0].numel() == 1:
            mean, var = self.running_mean, self.running_var
            return F.batch_norm(x, mean, var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class Fusion(nn.Module):
    """Attention-based fusion of a stage with what came from the stage below it."""

    def __init__(self, c_in: int, middle: int, c_out: int, fuse: bool):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(c_in, middle, 1, bias=False), Norm(middle))
        self.conv2 = nn.Sequential(nn.Conv2d(middle, c_out, 3, padding=1, bias=False), Norm(c_out))
        self.att_conv = None
        if fuse:
            self.att_conv = nn.Sequential(nn.Conv2d(2 * middle, 2, 1), nn.Sigmoid())

    def forward(self, x: Tensor, below: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        """Stage (B, C, H, W), fused (B, M, h, w), wanted size -> for the loss, to hand on."""
        x = self.conv1(x)  # (B, M, H, W)
        if self.att_conv is not None:
            below = F.interpolate(below, x.shape[2:])
            share = self.att_conv(torch.cat([x, below], dim=1))  # (B, 2, H, W)
            x = x * share[:, :1] + below * share[:, 1:]
        if x.shape[2:] != size:
            x = F.interpolate(x, size)
        return self.conv2(x), x


def fusions(c_in: list[int], c_out: list[int], middle: int) -> nn.ModuleList:
    """One for each level, from deep to shallow; the deepest has nothing to fuse with."""
    levels = list(zip(c_in, c_out, strict=True))[::-1]
    return nn.ModuleList(Fusion(a, middle, b, fuse=i > 0) for i, (a, b) in enumerate(levels))


def review(fusions: nn.ModuleList, student: list[Tensor], teacher: list[Tensor]) -> list[Tensor]:
    """Levels (B, C, H, W) from shallow to deep -> the student's, fused, in the teacher's shapes."""
    fused, below = [], None
    for fusion, x, wanted in zip(fusions, student[::-1], teacher[::-1], strict=True):
        y, below = fusion(x, below, wanted.shape[2:])
        fused.append(y)
    return fused[::-1]


def context_losses(student: list[Tensor], teacher: list[Tensor]) -> list[Tensor]:
    """Maps (B, C, H, W) -> for each: mean squared differences of it and of its poolings."""
    return [context_loss(s, t) for s, t in zip(student, teacher, strict=True)]


def context_loss(s: Tensor, t: Tensor) -> Tensor:
    """(B, C, H, W), (B, C, H, W) -> scalar: half the weight from each pooling to the next."""
    loss, weight, total = F.mse_loss(s, t), 1.0, 1.0
    for side in LEVELS:
        if side < s.shape[2]:
            weight /= 2
            pooled = (F.adaptive_avg_pool2d(x, side) for x in (s, t))
            loss = loss + weight * F.mse_loss(*pooled)
            total += weight
    return loss / total

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.options import option, positive, positive_number
from models.adapters import to_smaller

from . import METHODS
from .attention import attention
from .base import Distiller, Recipe, check_stages

SLOPE = 0.1  # of the leaky ReLU below zero
RATE_OF_RESNETS = 0.01  # learning rate of the paraphraser beside a resnet or wrn student


@METHODS.register("factor")
class FactorTransfer(Distiller):
    """Kim et al., Paraphrasing Complex Network: Network Compression via FT, NeurIPS 2018.

    First stage: a paraphraser learns to reconstruct the teacher's last map from fewer channels,
    the teacher's factor. Afterwards it is frozen, and a translator beside the student makes
    a factor of the student's last map: mean of |difference|^p2 of the unit attention maps (power
    p1) of both factors.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=200.0)

    @dataclass(frozen=True)
    class Options:
        ft_k: float = option(
            0.5, "channels of a factor, in shares of the teacher's", parse=positive_number
        )
        ft_p1: int = option(2, "power of an activation in a factor's attention", parse=positive)
        ft_p2: int = option(1, "power of the difference of factors", parse=positive)

    def __init__(self, options, setup):
        super().__init__(options, setup)
        check_stages(setup)
        c_s, c_t = setup.student.stages[-1].shape[1], setup.teacher.stages[-1].shape[1]
        factors = max(1, int(c_t * options.ft_k))
        self.paraphraser = Paraphraser(c_t, factors)
        self.translator = Translator(c_s, factors)
        self.slow = type(setup.student_net).__name__ in ("ResNet", "WideResNet")

    def forward(self, student, teacher, batch):
        with torch.no_grad():
            factor_t = self.paraphraser.encoder(teacher.stages[-1])
        factor_s = self.translator(student.stages[-1])
        return distance(factor_s, factor_t, self.options.ft_p1, self.options.ft_p2)

    def first_stage(self, student):
        return self.paraphraser.parameters()

    def first_stage_rate(self, rate):
        return RATE_OF_RESNETS if self.slow else rate

    def first_stage_loss(self, student, teacher, batch):
        return self.paraphraser.error(teacher.stages[-1])


def distance(factor_s: Tensor, factor_t: Tensor, p1: int = 2, p2: int = 1) -> Tensor:
    """Factors (B, C, H, W), (B, C', H', W') -> scalar, on the smaller of the two sizes."""
    factor_s, factor_t = to_smaller(factor_s, factor_t)
    difference = attention(factor_s, p1) - attention(factor_t, p1)  # (B, H * W)
    return difference.abs().pow(p2).mean()


class Paraphraser(nn.Module):
    """Three convolutions to a factor, three transposed ones back; no BatchNorm."""

    def __init__(self, channels: int, factors: int):
        super().__init__()
        self.encoder = stack(nn.Conv2d, channels, channels, factors, factors)
        self.decoder = stack(nn.ConvTranspose2d, factors, factors, channels, channels)

    def error(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> scalar: mean squared error of its reconstruction."""
        return F.mse_loss(self.decoder(self.encoder(x)), x)


class Translator(nn.Module):
    """Three convolutions and BatchNorms from a student's map to a factor."""

    def __init__(self, channels: int, factors: int):
        super().__init__()
        self.encoder = stack(nn.Conv2d, channels, channels, factors, factors, norm=nn.BatchNorm2d)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)"""
        return self.encoder(x)


def stack(kind: type, *channels: int, norm: type = nn.Identity) -> nn.Sequential:
    """3x3 convolutions of that kind from each number of channels to the next."""
    layers = []
    for c_in, c_out in zip(channels, channels[1:], strict=False):
        layers += [kind(c_in, c_out, 3, padding=1), norm(c_out), nn.LeakyReLU(SLOPE, inplace=True)]
    return nn.Sequential(*layers)

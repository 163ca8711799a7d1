import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.options import option, positive

from . import METHODS
from .base import Distiller, Recipe, check_stages

UNLIKELY = 0.001  # share of negative values below which the margin is three deviations


@METHODS.register("ofd")
class OFD(Distiller):
    """Heo et al., A Comprehensive Overhaul of Feature Distillation, ICCV 2019.

    The student's pre-activations, through a connector, follow the teacher's, cut off below at a
    margin a channel: what its BatchNorm gives on average where it gives less than 0. Where both lie
    below, nothing is asked. Squared difference summed over the map, mean over the batch; half the
    weight from each stage to the one before it.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=0.001)

    @dataclass(frozen=True)
    class Options:
        ofd_kernel: int = option(1, "size of the connectors' convolution", parse=positive)

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.stages = check_stages(setup)
        pairs = zip(setup.student.preacts, setup.teacher.preacts)
        self.connectors = nn.ModuleList(
            connector(s.shape[1], t.shape[1], options.ofd_kernel) for s, t in pairs
        )
        for i, norm in enumerate(setup.teacher_net.preact_norms()[: self.stages]):
            self.register_buffer(f"margin_{i}", margin(norm.weight, norm.bias).float())

    def forward(self, student, teacher, batch):
        margins = [getattr(self, f"margin_{i}") for i in range(self.stages)]
        connected = [f(s) for f, s in zip(self.connectors, student.preacts)]
        return ofd(connected, teacher.preacts[: self.stages], margins)


def connector(c_s: int, c_t: int, kernel: int) -> nn.Sequential:
    """(B, C, H, W) -> (B, C', H, W)"""
    convolution = nn.Conv2d(c_s, c_t, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(c_t))


def margin(weight: Tensor, bias: Tensor) -> Tensor:
    """Mean of N(bias, weight^2) where it is below 0: (C,), (C,) -> (1, C, 1, 1)

    Where it hardly ever is, three deviations below 0. A weight of 0 gives the bias, or 0.
    """
    mean, std = bias.detach().double(), weight.detach().double().abs()
    ratio = mean / std.clamp_min(1e-12)
    log_below = torch.special.log_ndtr(-ratio)
    # sqrt(2 pi) * density / probability, in logarithms: both underflow together
    hazard = (-0.5 * ratio.square() - 0.5 * math.log(2 * math.pi) - log_below).exp()
    below = mean - std * hazard.where(std > 0, torch.zeros_like(std))
    values = torch.where(log_below.exp() > UNLIKELY, below, -3 * std)
    return values.to(weight.dtype)[None, :, None, None]


def ofd(student: list[Tensor], teacher: list[Tensor], margins: list[Tensor]) -> Tensor:
    """Connected and teacher's pre-activations (B, C, H, W), margins (1, C, 1, 1) -> scalar"""
    loss, last = 0.0, len(student) - 1
    for i, (s, t, low) in enumerate(zip(student, teacher, margins, strict=True)):
        if t.shape[2:] != s.shape[2:]:
            t = F.adaptive_avg_pool2d(t, s.shape[2:])
        loss = loss + partial_l2(s, t, low) / 2 ** (last - i)
    return loss


def partial_l2(s: Tensor, t: Tensor, low: Tensor) -> Tensor:
    """(B, C, H, W) twice, (1, C, 1, 1) -> scalar, summed over a map, mean of the batch."""
    t = torch.maximum(t, low)
    asked = (s > t) | (t > 0)
    return ((s - t) * asked).square().sum() / len(s)

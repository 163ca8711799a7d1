from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.options import option, positive, positive_number
from models.adapters import to_smaller

from . import METHODS
from .base import Distiller, Recipe, check_stages

SLOPE = 0.1  # of the leaky ReLUs
SLOW = {"ResNet", "WideResNet"}  # students whose first stage has the rate 0.01


@METHODS.register("factor")
class FactorTransfer(Distiller):
    """Kim et al., Paraphrasing Complex Network: ... via Factor Transfer, NeurIPS 2018.

    A paraphraser squeezes the teacher's last stage into factors, learned in a first stage by
    reconstruction; a translator of the student's last stage learns the same factors (eq. 4): mean
    difference of their attention maps.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=200.0)

    @dataclass(frozen=True)
    class Options:
        ft_k: float = option(0.5, "channels of a factor over the teacher's", parse=positive_number)
        ft_p1: int = option(2, "power of a factor in its attention", parse=positive)
        ft_p2: int = option(1, "power of the difference", parse=positive)

    def __init__(self, options, setup):
        super().__init__(options, setup)
        check_stages(setup)
        c_s, c_t = (f.stages[-1].shape[1] for f in (setup.student, setup.teacher))
        self.paraphraser = Paraphraser(c_t, options.ft_k)
        self.translator = Translator(c_s, self.paraphraser.factors)
        self.slow = type(setup.student_net).__name__ in SLOW

    def forward(self, student, teacher, batch):
        with torch.no_grad():  # the paraphraser has learned; it has no BatchNorm that could move
            wanted = self.paraphraser.encoder(teacher.stages[-1])
        factor = self.translator.encoder(student.stages[-1])
        return difference(factor, wanted, self.options.ft_p1, self.options.ft_p2)

    def first_stage(self, student):
        return self.paraphraser.parameters()

    def first_stage_rate(self, rate):
        return 0.01 if self.slow else rate

    def first_stage_loss(self, student, teacher, batch):
        last = teacher.stages[-1]
        return F.mse_loss(self.paraphraser.decoder(self.paraphraser.encoder(last)), last)


class Paraphraser(nn.Module):
    """(B, C, H, W) -> factors (B, k * C, H, W), and back. Without BatchNorm, as published."""

    def __init__(self, channels: int, k: float):
        super().__init__()
        self.factors = int(channels * k)
        widths = (channels, channels, self.factors, self.factors)
        self.encoder = stack(nn.Conv2d, widths)
        self.decoder = stack(nn.ConvTranspose2d, widths[::-1])


class Translator(nn.Module):
    """(B, C, H, W) -> factors (B, F, H, W)"""

    def __init__(self, channels: int, factors: int):
        super().__init__()
        self.encoder = stack(nn.Conv2d, (channels, channels, factors, factors), norm=nn.BatchNorm2d)


def stack(convolution: type, widths: tuple[int, ...], norm: type | None = None) -> nn.Sequential:
    """3x3 convolutions from each width to the next, each behind it: a norm and a leaky ReLU."""
    layers = []
    for c_in, c_out in zip(widths, widths[1:], strict=False):
        after = norm(c_out) if norm else nn.Identity()
        layers += [convolution(c_in, c_out, 3, padding=1), after, nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers)


def difference(s: Tensor, t: Tensor, p1: int, p2: int) -> Tensor:
    """Factors (B, C, H, W), (B, C', H', W') -> scalar, on the smaller of the two sizes."""
    s, t = (F.normalize(x.pow(p1).mean(dim=1).flatten(1), dim=1) for x in to_smaller(s, t))
    return (s - t).abs().pow(p2).mean()

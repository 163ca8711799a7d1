from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.options import at_most, option, positive, positive_number
from models.adapters import to_smaller

from . import METHODS
from .attention import attention_map
from .base import Distiller, Recipe, count_stage_pairs

NEGATIVE_SLOPE = 0.1  # of the leaky ReLUs
RESNET_LEARNING_RATE = 0.01  # of the first stage, for a resnet or wrn student


@METHODS.register("factor")
class FactorTransfer(Distiller):
    """Kim et al., Paraphrasing Complex Network: Network Compression via FT, NeurIPS 2018.

    First stage: a paraphraser, an autoencoder of the teacher's last map, is trained; its code is
    the teacher's factor. Afterwards it is frozen, and a translator, trained with the student, gives
    a factor of the student's last map. Loss: mean of |difference|^p2 of the unit attention maps
    (power p1) of both factors.

    Raises ValueError where a network has no maps.
    Reference: HobbitLong/RepDistiller, distiller_zoo/FT.py and models/util.py.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=200.0)
    reads = frozenset({"stages"})

    @dataclass(frozen=True)
    class Options:
        ft_k: float = option(
            0.5,
            "channels of a factor, in shares of the teacher's",
            parse=at_most(100, positive_number),
        )
        ft_p1: int = option(2, "power of an activation in a factor's attention", parse=positive)
        ft_p2: int = option(1, "power of the difference of factors", parse=positive)

    def __init__(self, options, setup):
        super().__init__(options, setup)
        count_stage_pairs(setup)
        sizes = [tuple(f.stages[-1].shape[2:]) for f in (setup.student, setup.teacher)]
        if (1, 1) in sizes:
            raise ValueError(
                "factors are compared place by place, and the last map of student and teacher is "
                f"{sizes[0]} and {sizes[1]}: a map of one place says nothing; give larger images"
            )
        c_s, c_t = setup.student.stages[-1].shape[1], setup.teacher.stages[-1].shape[1]
        factors = max(1, int(c_t * options.ft_k))
        self.paraphraser = Paraphraser(c_t, factors)
        self.translator = Translator(c_s, factors)
        self.resnet_student = type(setup.student_net).__name__ in ("ResNet", "WideResNet")

    def forward(self, student, teacher, batch):
        with torch.no_grad():
            factor_t = self.paraphraser.encoder(teacher.stages[-1])
        factor_s = self.translator(student.stages[-1])
        return factor_loss(factor_s, factor_t, self.options.ft_p1, self.options.ft_p2)

    def first_stage(self, student):
        return self.paraphraser.parameters()

    def first_stage_rate(self, rate):
        return RESNET_LEARNING_RATE if self.resnet_student else rate

    def first_stage_loss(self, student, teacher, batch):
        return self.paraphraser.reconstruction_loss(teacher.stages[-1])


def factor_loss(factor_s: Tensor, factor_t: Tensor, p1: int = 2, p2: int = 1) -> Tensor:
    """Factors (B, C, H, W), (B, C', H', W') -> scalar, on the smaller of the two sizes."""
    factor_s, factor_t = to_smaller(factor_s, factor_t)
    difference = attention_map(factor_s, p1) - attention_map(factor_t, p1)  # (B, H * W)
    return difference.abs().pow(p2).mean()


class Paraphraser(nn.Module):
    """Autoencoder without BatchNorm: three convolutions to the factor, three transposed back."""

    def __init__(self, channels: int, factors: int):
        super().__init__()
        self.encoder = conv_stack(nn.Conv2d, channels, channels, factors, factors)
        self.decoder = conv_stack(nn.ConvTranspose2d, factors, factors, channels, channels)

    def reconstruction_loss(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> scalar: mean squared error of the reconstruction."""
        return F.mse_loss(self.decoder(self.encoder(x)), x)


class Translator(nn.Module):
    """Three convolutions with BatchNorm, from the student's map to its factor."""

    def __init__(self, channels: int, factors: int):
        super().__init__()
        self.encoder = conv_stack(
            nn.Conv2d, channels, channels, factors, factors, norm=nn.BatchNorm2d
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)"""
        return self.encoder(x)


def conv_stack(kind: type, *channels: int, norm: type = nn.Identity) -> nn.Sequential:
    """3x3 layers of that kind, each with norm and leaky ReLU, from each width to the next."""
    layers = []
    for c_in, c_out in zip(channels, channels[1:], strict=False):
        layers += [
            kind(c_in, c_out, 3, padding=1),
            norm(c_out),
            nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True),
        ]
    return nn.Sequential(*layers)

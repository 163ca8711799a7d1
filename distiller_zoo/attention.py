from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from helper.options import option, positive
from models.adapters import to_smaller

from . import METHODS
from .base import Distiller, Recipe, count_stage_pairs, warn_of_one_place


@METHODS.register("attention")
class Attention(Distiller):
    """Zagoruyko & Komodakis, Paying More Attention to Attention, ICLR 2017 (eq. 2).

    An attention map is the mean of activation^p over the channels, normalised to unit length.
    Mean squared difference of the student's and the teacher's, summed over the stages.

    Raises ValueError where a network has no maps.
    Reference: HobbitLong/RepDistiller, distiller_zoo/AT.py.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=1000.0)
    reads = frozenset({"stages"})

    @dataclass(frozen=True)
    class Options:
        at_p: int = option(2, "power of an activation in its attention", parse=positive)

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.stages = count_stage_pairs(setup)
        warn_of_one_place(setup, self.stages)

    def forward(self, student, teacher, batch):
        pairs = zip(student.stages[: self.stages], teacher.stages[: self.stages], strict=True)
        return sum(stage_loss(s, t, self.options.at_p) for s, t in pairs)


def stage_loss(s: Tensor, t: Tensor, p: int = 2) -> Tensor:
    """(B, C, H, W), (B, C', H', W') -> scalar, on the smaller of the two sizes."""
    s, t = to_smaller(s, t)
    return F.mse_loss(attention_map(s, p), attention_map(t, p))


def attention_map(x: Tensor, p: int) -> Tensor:
    """(B, C, H, W) -> (B, H * W): mean of x^p over channels, unit length."""
    return F.normalize(x.pow(p).mean(dim=1).flatten(1), dim=1)

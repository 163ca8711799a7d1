from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from helper.options import not_negative, option

from . import METHODS
from .base import Distiller, Recipe

LEAST = 1e-12  # of a squared distance, before its root
TINY = 1e-30  # keeps the slope of a root that is not used finite


@METHODS.register("rkd")
class RKD(Distiller):
    """Park et al., Relational Knowledge Distillation, CVPR 2019 (eq. 4-8).

    Distances between samples, in units of their mean, and angles between triples of samples:
    smooth-L1 differences of the student's and the teacher's, means over all pairs and triples.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=1.0)

    @dataclass(frozen=True)
    class Options:
        rkd_distance: float = option(25.0, "weight of the distances", parse=not_negative)
        rkd_angle: float = option(50.0, "weight of the angles", parse=not_negative)

    def forward(self, student, teacher, batch):
        return rkd(
            student.pooled, teacher.pooled, self.options.rkd_distance, self.options.rkd_angle
        )


def rkd(s: Tensor, t: Tensor, w_d: float, w_a: float) -> Tensor:
    """(B, C), (B, C') -> scalar"""
    loss = w_d * F.smooth_l1_loss(distances(s), distances(t))
    return loss + w_a * F.smooth_l1_loss(angles(s), angles(t))


def squared_distances(gram: Tensor) -> Tensor:
    """Of all rows of x, from x @ x.T: (B, B) -> (B, B).

    What rounding leaves of equal rows is 0: it has no meaning, and would have a huge gradient.
    """
    length = gram.diagonal()
    both = length[:, None] + length
    squared = both - 2 * gram
    rounding = 16 * torch.finfo(gram.dtype).eps * both
    return torch.where(squared > rounding, squared, squared.new_zeros(()))


def distances(x: Tensor) -> Tensor:
    """(B, C) -> (B, B), divided by the mean of those above 0; the diagonal is 0."""
    x = x - x.mean(dim=0)  # moves nothing, and keeps digits
    distance = squared_distances(x @ x.T).clamp_min(LEAST).sqrt()
    distance = distance * (1 - torch.eye(len(x), dtype=x.dtype, device=x.device))
    above = distance > 0
    return distance / (distance.sum() / above.sum().clamp_min(1)).clamp_min(LEAST)


def angles(x: Tensor) -> Tensor:
    """Cosines at sample i between the ways to j and to k: (B, C) -> (B, B, B)

    (x_j - x_i) . (x_k - x_i) from the Gram matrix of centred rows, over both lengths; 0 where there
    is no way to go.
    """
    x = x - x.mean(dim=0)
    gram = x @ x.T
    squared = squared_distances(gram)
    per_length = squared.clamp_min(TINY).rsqrt().where(squared > 0, squared.new_zeros(()))
    ways = gram - gram[:, :, None] - gram[:, None, :] + gram.diagonal()[:, None, None]
    return ways * (per_length[:, :, None] * per_length[:, None, :])

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from helper.options import not_negative, option

from . import METHODS
from .base import Distiller, Recipe

EPS = 1e-12  # least squared distance under a root
TINY = 1e-30  # keeps the gradient of an unused root finite


@METHODS.register("rkd")
class RKD(Distiller):
    """Park et al., Relational Knowledge Distillation, CVPR 2019 (eq. 4-8).

    Distance loss: smooth L1 between the student's and the teacher's distances of all pairs of
    samples, each divided by their mean. Angle loss: smooth L1 between the cosines of the angles of
    all triples. Both are means.

    Reference: HobbitLong/RepDistiller, distiller_zoo/RKD.py.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=1.0)
    reads = frozenset({"pooled"})

    @dataclass(frozen=True)
    class Options:
        rkd_distance: float = option(25.0, "weight of the distances", parse=not_negative)
        rkd_angle: float = option(50.0, "weight of the angles", parse=not_negative)

    def forward(self, student, teacher, batch):
        distance, angle = rkd_losses(student.pooled, teacher.pooled)
        self.parts = {"distance": distance.detach(), "angle": angle.detach()}
        return self.options.rkd_distance * distance + self.options.rkd_angle * angle


def rkd_losses(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C), (B, C') -> distance loss, angle loss, each a scalar without its weight"""
    (distances_s, angles_s), (distances_t, angles_t) = relations(s), relations(t)
    return F.smooth_l1_loss(distances_s, distances_t), F.smooth_l1_loss(angles_s, angles_t)


def relations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Distances of all pairs and cosines of the angles of all triples of rows.

    (B, C) -> (B, B), (B, B, B)
    """
    x = x - x.mean(dim=0)  # leaves both as they are, with less rounding error
    gram = x @ x.T
    squared = squared_distances(gram)
    return distances(squared), angles(gram, squared)


def squared_distances(gram: Tensor) -> Tensor:
    """Between all rows of x, from the Gram matrix x @ x.T: (B, B) -> (B, B)

    Values within rounding error of 0 (equal rows) are set to 0, else they had a huge gradient.
    """
    squared_norm = gram.diagonal()
    both = squared_norm[:, None] + squared_norm
    squared = both - 2 * gram
    rounding = 16 * torch.finfo(gram.dtype).eps * both
    return torch.where(squared > rounding, squared, squared.new_zeros(()))


def distances(squared: Tensor) -> Tensor:
    """(B, B) -> (B, B), divided by the mean of those above 0; the diagonal is 0."""
    distance = squared.clamp_min(EPS).sqrt()
    distance = distance * (1 - torch.eye(len(squared), dtype=squared.dtype, device=squared.device))
    positive = distance > 0
    return distance / (distance.sum() / positive.sum().clamp_min(1)).clamp_min(EPS)


def angles(gram: Tensor, squared: Tensor) -> Tensor:
    """Cosines of the angles at sample i between samples j and k: (B, B), (B, B) -> (B, B, B)

    (x_j - x_i) . (x_k - x_i) from the Gram matrix, over both distances; 0 where a distance is 0.
    """
    inverse_distance = squared.clamp_min(TINY).rsqrt().where(squared > 0, squared.new_zeros(()))
    products = gram - gram[:, :, None] - gram[:, None, :] + gram.diagonal()[:, None, None]
    return products * (inverse_distance[:, :, None] * inverse_distance[:, None, :])

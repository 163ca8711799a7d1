from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from helper.options import option, positive_number

from . import METHODS
from .base import LogitDistiller, Recipe
from .mlkd import share_below_median
from .rows import kl


@METHODS.register("skd")
class SKD(LogitDistiller):
    """Streamlined Knowledge Distillation (SKD), CVPR 2026.

    KL of the probabilities at temperature T, times T^2, plus the direction loss: the Mahalanobis
    length of each row of D, mean over the rows. D is the difference of the student's and the
    teacher's matrices of cosines between the samples' logits, over the number of classes; its
    covariance over the rows plus tik times the identity is the metric. As in the published code, KL
    is multiplied by the share of samples whose confidence is not above the median, and the
    direction by that of classes whose summed probability is not: about 1/2 each.

    The published accuracies are those of another protocol: weak and RandAugment images in one
    epoch, the rate 0.1, twice the steps.
    Reference: HyunJunSik/StreamLined, Distiller/SKD.py.
    """

    recipe = Recipe(gamma=0.1, alpha=0.0, beta=0.9)

    @dataclass(frozen=True)
    class Options:
        kd_T: float = option(4.0, "temperature of both softmaxes", parse=positive_number)
        skd_tik: float = option(
            0.1, "Tikhonov term: what is added to each variance", parse=positive_number
        )

    @staticmethod
    def pair_defaults(teacher, student, views, data):
        """The weights that a comment of the published code has for this pair."""
        pair = teacher, student
        return {"gamma": 0.5, "beta": 0.5} if pair == ("resnet32x4", "resnet8x4") else {}

    def loss(self, rows, labels):
        classes = rows.student.shape[2]
        q = F.softmax(rows.raw[1], dim=2)  # (V, B, K)
        divergence = kl(*(x.flatten(0, 1) for x in rows[:2]), self.options.kd_T)
        divergence = (rows.weight * divergence.view_as(rows.weight)).mean(dim=1)  # (V,)
        directions = direction_losses(*rows[:2], self.options.skd_tik, classes)  # (V, B)
        direction = (rows.weight * directions).mean(dim=1)  # (V,)
        divergence = share_below_median(q.amax(dim=2)) @ divergence
        direction = share_below_median(q.sum(dim=1)) @ direction
        self.parts = {"kl": divergence.detach(), "direction": direction.detach()}
        return divergence + direction


def direction_losses(s: Tensor, t: Tensor, tik: float, divisor: int) -> Tensor:
    """Mahalanobis length of each row of (cosines of s - cosines of t) / divisor.

    (V, B, K), (V, B, K) -> (V, B)
    """
    s, t = F.normalize(s, dim=2), F.normalize(t, dim=2)
    d = (s @ s.mT - t @ t.mT) / divisor  # (V, B, B)
    centred = d - d.mean(dim=1, keepdim=True)
    covariance = centred.mT @ centred / max(d.shape[1] - 1, 1)
    metric = covariance + tik * torch.eye(d.shape[1], dtype=d.dtype, device=d.device)
    # Positive definite: no check, for which the host would wait.
    root = torch.linalg.cholesky_ex(metric).L
    return torch.linalg.solve_triangular(root, d.mT, upper=False).norm(dim=1)

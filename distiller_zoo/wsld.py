from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from helper.options import option, positive_number

from . import METHODS
from .base import LogitDistiller, Recipe


@METHODS.register("wsld")
class WSLD(LogitDistiller):
    """Zhou et al., Rethinking Soft Labels for KD: A Bias-Variance Tradeoff, ICLR 2021.

    Cross-entropy of the student's probabilities with the teacher's at temperature T, times T^2,
    mean over the batch. A sample has weight 1 - exp(-loss_s / loss_t), the cross-entropies of
    student and teacher with the label at temperature 1, so that samples on which the student is
    better than the teacher weigh little. The weights have no gradient; they come from the plain
    logits where a view adds noise or standardises, and of scale decoupling's regions from those of
    the region.

    Reference: giakoumoglou/distillers, WSLD.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=2.5)
    reads_samples = True

    @dataclass(frozen=True)
    class Options:
        kd_T: float = option(2.0, "temperature of both softmaxes", parse=positive_number)

    def per_row(self, student, teacher, labels):
        """Without the weights of samples: (M, K), (M, K), (M,) -> (M,)"""
        T = self.options.kd_T
        soft = F.cross_entropy(student / T, F.softmax(teacher / T, dim=1), reduction="none")
        return T**2 * soft

    def row_losses(self, rows, labels):
        student, teacher = (x.flatten(0, 1) for x in rows.plain)  # (M, K)
        weight = weights(student.detach(), teacher, labels.expand_as(rows.weight).flatten())
        return weight.view_as(rows.weight) * super().row_losses(rows, labels)


def weights(student: Tensor, teacher: Tensor, labels: Tensor, eps: float = 1e-7) -> Tensor:
    """Weights of samples: logits (M, K), (M, K), labels (M,) -> (M,), each from 0 to 1"""
    loss_s = F.cross_entropy(student, labels, reduction="none")
    loss_t = F.cross_entropy(teacher, labels, reduction="none")
    return -torch.expm1(-loss_s / (loss_t + eps))

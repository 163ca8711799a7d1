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

    Cross-entropy against the teacher's probabilities, both softened, times T^2; each sample weighs
    1 - exp(-c_s / c_t), c_s and c_t the cross-entropies of student and teacher with the label at
    temperature 1: what the student knows better than the teacher counts little. No gradient goes
    through the weights; mean over the batch.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=2.5)

    @dataclass(frozen=True)
    class Options:
        kd_T: float = option(4.0, "temperature of both softmaxes", parse=positive_number)

    def per_row(self, student, teacher, labels):
        """(M, K), (M, K), (M,) -> (M,)"""
        T = self.options.kd_T
        soft = F.cross_entropy(student / T, F.softmax(teacher / T, dim=1), reduction="none")
        return T**2 * weights(student.detach(), teacher, labels) * soft


def weights(student: Tensor, teacher: Tensor, labels: Tensor, eps: float = 1e-7) -> Tensor:
    """(M, K), (M, K), (M,) -> (M,), each from 0 to 1."""
    cost_s = F.cross_entropy(student, labels, reduction="none")
    cost_t = F.cross_entropy(teacher, labels, reduction="none")
    return -torch.expm1(-cost_s / (cost_t + eps))

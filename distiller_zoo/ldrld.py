from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from helper.options import not_negative, option, positive, positive_number

from . import METHODS
from .base import LogitDistiller, Recipe
from .rows import kl


@METHODS.register("ldrld")
class LDRLD(LogitDistiller):
    """Xu et al., Local Dense Logit Relations for Enhanced Knowledge Distillation, ICCV 2025.

    KL of probabilities within subsets of the classes at temperature T, times T^2, mean over the
    batch. Local loss: of each pair of the student's top k classes, and of all k together; ranks
    i < j from 1 on weigh 2 / (1.5 + j - i) * exp(-0.05 (i + j)), all k weigh 1, and the sum is over
    the number of subsets. Remaining loss: of the other K - k classes.

    The weights are those of resnet32x4 -> resnet8x4; none are published for other pairs.
    Raises ValueError where k leaves no pair or no other class.
    Reference: yema-web/LDRLD, distiller_zoo/LDRLD.py.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=1.0)

    @dataclass(frozen=True)
    class Options:
        kd_T: float = option(4.0, "temperature of both softmaxes", parse=positive_number)
        ldrld_k: int = option(7, "how many of the student's top classes", parse=positive)
        ldrld_alpha: float = option(10.5, "weight of the local loss", parse=not_negative)
        ldrld_beta: float = option(7.0, "weight of the remaining classes", parse=not_negative)

    def __init__(self, options, setup):
        super().__init__(options, setup)
        k, classes = options.ldrld_k, setup.student.logits.shape[1]
        if not 1 < k < classes - 1:
            raise ValueError(
                f"of {classes} classes, the top {k} and the others have to be at least two each: "
                + (f"--ldrld_k takes 2 to {classes - 2}" if classes > 3 else "use --distill kd")
            )
        rank = torch.arange(1, k + 1, dtype=torch.float64)
        gap, total = (rank[:, None] - rank).abs(), rank[:, None] + rank
        weight = (2 / (1.5 + gap) * torch.exp(-0.05 * total)).fill_diagonal_(0)
        self.register_buffer("pair_weight", weight, persistent=False)  # (k, k), symmetric

    def per_row(self, student, teacher, labels):
        """(M, K), (M, K), (M,) -> (M,)"""
        local, remaining = self.losses(student, teacher)
        return self.options.ldrld_alpha * local + self.options.ldrld_beta * remaining

    def losses(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Local and remaining loss of each row, unweighted: (M, K), (M, K) -> (M,), (M,)"""
        T, k = self.options.kd_T, self.options.ldrld_k
        order = student.argsort(dim=1, descending=True, stable=True)  # (M, K)
        s, t = student.gather(1, order), teacher.gather(1, order)
        pairs = T**2 * pair_losses(s[:, :k] / T, t[:, :k] / T, self.pair_weight.to(s.dtype))
        local = (pairs + kl(s[:, :k], t[:, :k], T)) / (k * (k - 1) / 2 + 1)
        return local, kl(s[:, k:], t[:, k:], T)


def pair_losses(s: Tensor, t: Tensor, weight: Tensor) -> Tensor:
    """Weighted sum of the KL of each pair of classes: (M, k), (M, k), (k, k) -> (M,)

    A pair's probabilities are sigmoids of the difference of its logits, and of minus that: its two
    terms lie on either side of the diagonal.
    """
    s, t = s[:, :, None] - s[:, None, :], t[:, :, None] - t[:, None, :]  # (M, k, k)
    return (weight * t.sigmoid() * (F.logsigmoid(t) - F.logsigmoid(s))).sum(dim=(1, 2))

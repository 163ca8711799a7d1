from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from helper.options import option, positive_number

from . import METHODS
from .base import LogitDistiller, Recipe, logits_of, seen
from .rows import kl
from .views import LogitStandardization

MORE_TEMPERATURES = (3.0, 5.0, 2.0, 6.0)  # beside --kd_T


@METHODS.register("mlkd")
class MLKD(LogitDistiller):
    """Jin et al., Multi-Level Logit Distillation, CVPR 2023.

    Three levels, each summed over five temperatures: KL (instance), the products of samples'
    probabilities (batch), the products of classes' (class); the last two as squared differences,
    over the number of samples or classes.

    The paper augments each image twice; the loader has one view of it, which is taken for both:
    the KL counts once for each, and so does cross-entropy, hence the recipe's 0.2. As in the
    published code, the levels of the weakly augmented view count only for the share of samples
    (classes, at class level) in which the teacher is no surer than in the median one. Logit
    standardization changes the instance level alone. The class level grows with the square of
    batch / classes: the weights are for batches of 64 and 100 classes, and too large for 10.
    """

    recipe = Recipe(gamma=0.2, alpha=0.0, beta=0.9)

    @dataclass(frozen=True)
    class Options:
        kd_T: float = option(4.0, "temperature beside 2, 3, 5 and 6", parse=positive_number)

    def forward(self, student, teacher, batch):
        of_all = [view for view in self.views if not isinstance(view, LogitStandardization)]
        of_instances = self.views[len(of_all) :]  # it is the last of the chain
        shown = student, teacher, batch.labels
        plain = seen(of_all, logits_of(student, teacher), *shown)
        rows = seen(of_instances, plain, *shown)
        q = F.softmax(plain.teacher, dim=2)  # (V, B, K)
        unsure, rare = share_below_median(q.amax(dim=2)), share_below_median(q.sum(dim=1))  # (V,)
        loss = 0
        for T in (self.options.kd_T, *MORE_TEMPERATURES):
            instances = kl(rows.student.flatten(0, 1), rows.teacher.flatten(0, 1), T)
            instances = instances.view_as(weight := rows.weight)  # (V, B)
            p, q = F.softmax(plain.student / T, dim=2), F.softmax(plain.teacher / T, dim=2)
            samples, classes = product_gap(p, q), product_gap(p.mT, q.mT)  # (V, B), (V, K)
            loss = loss + (1 + unsure) @ (weight * instances).mean(dim=1)
            loss = loss + unsure @ (weight * samples).mean(dim=1)
            loss = loss + rare @ (weight.mean(dim=1) * classes.mean(dim=1))
        return loss


def product_gap(p: Tensor, q: Tensor) -> Tensor:
    """How the products of each vector with all others differ: (V, n, d), (V, n, d) -> (V, n)"""
    return (p @ p.mT - q @ q.mT).square().sum(dim=2)


def share_below_median(x: Tensor) -> Tensor:
    """Share of each row that is no greater than its median: (V, n) -> (V,), about a half."""
    return (x <= x.median(dim=1, keepdim=True).values).to(x.dtype).mean(dim=1)

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from helper.options import option, positive_number

from . import METHODS
from .base import LogitDistiller, Recipe, Rows
from .rows import kl

EXTRA_TEMPERATURES = (3.0, 5.0, 2.0, 6.0)  # beside --kd_T
ON_WEAK_VIEW = (2.0, 6.0)  # those of them at which the published code takes the weak view twice


@METHODS.register("mlkd")
class MLKD(LogitDistiller):
    """Jin et al., Multi-Level Logit Distillation, CVPR 2023.

    Three levels, each summed over five temperatures. Instance: KL of the probabilities, on the weak
    and on the strong view of an image. Batch: squared difference of the student's and the teacher's
    Gram matrices of samples, over the number of samples. Class: the same with the Gram matrices of
    classes, over the number of classes. Of the weak view all three are multiplied by the share of
    samples (class level: of classes) whose confidence is not above the median, of the strong one
    the first alone is added, and at T = 2 and 6 it is the weak one's again, as in the published
    code. Logit standardization changes the instance level alone.

    Two views, as published, are those of --mlkd_strong. Without it the one view of the plain recipe
    is taken for both. Cross-entropy is the mean of both views, so gamma is twice the published 0.1.
    The class level grows with (batch / classes)^2: its weight is for batches of 64 and 100 classes,
    and too large for 10 classes.

    Reference: sunshangquan/logit-standardization-KD, mdistiller/distillers (MLKD).
    """

    recipe = Recipe(gamma=0.2, alpha=0.0, beta=0.9)

    @dataclass(frozen=True)
    class Options:
        kd_T: float = option(4.0, "temperature beside 2, 3, 5 and 6", parse=positive_number)
        mlkd_strong: bool = option(
            False, "a strong view of each image beside the weak one, as published", added=True
        )

    @staticmethod
    def views_per_image(options):
        return 2 if options.mlkd_strong else 1

    def forward(self, student, teacher, batch):
        pairs = zip(student.views, teacher.views, strict=True)
        weak, *strong = (self.rows(s, t, batch.labels) for s, t in pairs)
        (strong,) = strong or (weak,)
        loss = self.levels(weak)
        for T in (self.options.kd_T, *EXTRA_TEMPERATURES[:2]):
            loss = loss + (strong.weight * instance(strong, T)).mean(dim=1).sum()
        for T in ON_WEAK_VIEW:
            loss = loss + (weak.weight * instance(weak, T)).mean(dim=1).sum()
        return loss

    def levels(self, rows: Rows) -> Tensor:
        """The three levels of the weak view -> scalar"""
        student, teacher = rows.raw  # (V, B, K) each
        weight = rows.weight  # (V, B)
        q = F.softmax(teacher, dim=2)  # (V, B, K)
        sample_share = share_below_median(q.amax(dim=2))  # (V,)
        class_share = share_below_median(q.sum(dim=1))  # (V,)
        loss = 0
        for T in (self.options.kd_T, *EXTRA_TEMPERATURES):
            p, q = F.softmax(student / T, dim=2), F.softmax(teacher / T, dim=2)
            samples = instance(rows, T) + gram_difference(p, q)  # (V, B)
            classes = gram_difference(p.mT, q.mT)  # (V, K)
            loss = loss + sample_share @ (weight * samples).mean(dim=1)
            loss = loss + class_share @ (weight.mean(dim=1) * classes.mean(dim=1))
        return loss


def instance(rows: Rows, temperature: float) -> Tensor:
    """T^2 * KL of each row: (V, B)"""
    loss = kl(rows.student.flatten(0, 1), rows.teacher.flatten(0, 1), temperature)
    return loss.view_as(rows.weight)


def gram_difference(p: Tensor, q: Tensor) -> Tensor:
    """Squared difference of two Gram matrices, summed by row: (V, n, d), (V, n, d) -> (V, n)"""
    return (p @ p.mT - q @ q.mT).square().sum(dim=2)


def share_below_median(x: Tensor) -> Tensor:
    """Share of the values of each row that are <= its median, about 1/2: (V, n) -> (V,)"""
    # `median` has no deterministic kernel on a GPU.
    median = x.sort(dim=1).values[:, (x.shape[1] - 1) // 2, None]  # (V, 1)
    return (x <= median).to(x.dtype).mean(dim=1)

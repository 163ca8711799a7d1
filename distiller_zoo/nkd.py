from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from helper.options import not_negative, option, positive_number

from . import METHODS
from .base import LogitDistiller, Recipe
from .rows import check_class_count, mask_class


@METHODS.register("nkd")
class NKD(LogitDistiller):
    """Yang et al., From Knowledge Distillation to Self-Knowledge Distillation, ICCV 2023.

    Target term: cross-entropy with the label times the teacher's probability of it, at T = 1. That
    probability comes from the plain logits where a view adds noise or standardises.
    Other-classes term, times gamma * T^2: cross-entropy between the teacher's and the student's
    probabilities among the other classes at T. Mean over the batch.

    The published code leaves the target among the others: `--nkd_keep_target` does so.
    Raises ValueError where there are fewer than three classes.
    Reference: shicaiwei123/SDD-CVPR2024, mdistiller/distillers (nkd).
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=1.0, warmup=20)
    temperature = "nkd_T"
    reads_samples = True

    @dataclass(frozen=True)
    class Options:
        # Not --kd_T: the other-classes term has a temperature of its own, 1.
        nkd_T: float = option(1.0, "temperature of the other-classes term", parse=positive_number)
        nkd_gamma: float = option(1.5, "weight of the other-classes term", parse=not_negative)
        nkd_keep_target: bool = option(False, "keep the target among the others, as published code")

    def __init__(self, options, setup):
        super().__init__(options, setup)
        check_class_count(setup.student.logits.shape[1])

    @staticmethod
    def pair_defaults(teacher, student, views, data):
        """The published settings behind scale decoupling (Wei et al., CVPR 2024), for any pair."""
        return {"nkd_T": 4.0, "nkd_gamma": 8.0} if "sdd" in views else {}

    def row_losses(self, rows, labels):
        labels = labels.expand_as(rows.weight).flatten()  # (M,)
        student, teacher, plain_teacher = (
            x.flatten(0, 1) for x in (rows.student, rows.teacher, rows.plain[1])
        )  # (M, K)
        q = F.softmax(plain_teacher, dim=1).gather(1, labels[:, None])[:, 0]
        target = q * F.cross_entropy(student, labels, reduction="none")
        others = self.others_losses(student, teacher, labels)
        return (target + self.options.nkd_gamma * others).view_as(rows.weight)

    def others_losses(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """The other-classes term, unweighted: (M, K), (M, K), (M,) -> (M,)"""
        o = self.options
        s, t = student / o.nkd_T, teacher / o.nkd_T
        if not o.nkd_keep_target:
            s, t = mask_class(s, labels), mask_class(t, labels)
        return -(o.nkd_T**2) * (F.softmax(t, dim=1) * F.log_softmax(s, dim=1)).sum(dim=1)

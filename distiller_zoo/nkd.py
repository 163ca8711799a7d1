from dataclasses import dataclass

import torch.nn.functional as F

from helper.options import not_negative, option, positive_number

from . import METHODS
from .base import LogitDistiller, Recipe
from .rows import check_others, without


@METHODS.register("nkd")
class NKD(LogitDistiller):
    """Yang et al., From Knowledge Distillation to Self-Knowledge Distillation, ICCV 2023.

    Cross-entropy of the target, weighed by the teacher's probability of it at T = 1, plus gamma *
    T^2 * the cross-entropy between both distributions over the other classes; mean over the batch.

    The published code forgets to drop the target from the second part: `--nkd_keep_target`.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=1.0, warmup=20)
    temperature = "nkd_T"

    @dataclass(frozen=True)
    class Options:
        # Not --kd_T: the paper's second part has a temperature of its own, 1.
        nkd_T: float = option(1.0, "temperature of the other-classes term", parse=positive_number)
        nkd_gamma: float = option(1.5, "weight of the other-classes term", parse=not_negative)
        nkd_keep_target: bool = option(False, "keep the target among the others, as published code")

    def __init__(self, options, setup):
        super().__init__(options, setup)
        check_others(setup.student.logits.shape[1])

    def per_row(self, student, teacher, labels):
        """(M, K), (M, K), (M,) -> (M,)"""
        o, at_label = self.options, labels[:, None]
        log_p = F.log_softmax(student, dim=1).gather(1, at_label)[:, 0]
        target = -F.softmax(teacher, dim=1).gather(1, at_label)[:, 0] * log_p
        s, t = student / o.nkd_T, teacher / o.nkd_T
        if not o.nkd_keep_target:
            s, t = without(s, labels), without(t, labels)
        others = -(F.softmax(t, dim=1) * F.log_softmax(s, dim=1)).sum(dim=1)
        return target + o.nkd_gamma * o.nkd_T**2 * others

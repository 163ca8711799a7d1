from dataclasses import dataclass

import torch.nn.functional as F

from helper.options import option, positive_number

from . import METHODS
from .base import LogitDistiller, Recipe
from .rows import kl_from_log_probs
from .ttm import power_transform


@METHODS.register("wttm")
class WTTM(LogitDistiller):
    """Zheng & Yang, Transformed Teacher Matching, ICLR 2024: weighted by sample.

    TTM, where the KL of a sample is times U, the sum over the classes of the teacher's
    probabilities to the power l: from 1, where it is certain, to K^(1 - l), where it is uniform.

    l and the weight are those which the authors' repository prints for vgg13 -> vgg8 beside CRD.
    Reference: zkxufo/TTM, distiller_zoo/wttm.py.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=4.0)

    @dataclass(frozen=True)
    class Options:
        ttm_l: float = option(0.2, "power of the teacher's probabilities", parse=positive_number)

    def per_row(self, student, teacher, labels):
        """(M, K), (M, K), (M,) -> (M,)"""
        log_q, log_sum = power_transform(teacher, self.options.ttm_l)
        return log_sum.exp() * kl_from_log_probs(F.log_softmax(student, dim=1), log_q)

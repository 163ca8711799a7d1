from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from helper.options import option, positive_number

from . import METHODS
from .abkd import DivergenceOptions, divergence_of
from .base import LogitDistiller, Recipe


@METHODS.register("ttm")
class TTM(LogitDistiller):
    """Zheng & Yang, Knowledge Distillation Based on Transformed Teacher Matching, ICLR 2024.

    KL(transformed teacher || student), mean over the batch. The transformed teacher has its
    probabilities to the power l, normalised anew, which is a temperature of 1/l; the student has
    none, and there is no factor T^2.

    l and the weight are those of vgg13 -> vgg8, the one pair whose setting the authors' repository
    prints; the weight of wrn_40_2 -> wrn_40_1 is that of ghwang-s/abkd, and so are the powers of
    `--divergence ab` there.
    Reference: zkxufo/TTM, distiller_zoo/ttm.py.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=45.0)

    @dataclass(frozen=True)
    class Options(DivergenceOptions):
        ttm_l: float = option(0.1, "power of the teacher's probabilities", parse=positive_number)

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.divergence = divergence_of(options)

    @staticmethod
    def variant(options):
        return options.divergence_name

    @staticmethod
    def pair_defaults(teacher, student, views, data):
        return {"beta": 76.0} if (teacher, student) == ("wrn_40_2", "wrn_40_1") else {}

    @staticmethod
    def option_defaults(options, teacher, student, views):
        here = options.divergence == "ab" and (teacher, student) == ("wrn_40_2", "wrn_40_1")
        settings = {"ab_alpha": 0.5, "ab_beta": 0.6} if here else {}
        return {name: ("divergence", value) for name, value in settings.items()}

    def per_row(self, student, teacher, labels):
        """(M, K), (M, K), (M,) -> (M,)"""
        log_q, _ = power_transform(teacher, self.options.ttm_l)
        return self.divergence(F.log_softmax(student, dim=1), log_q)


def power_transform(logits: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """Logarithms of p^power / U and of U, the sum of p^power: (M, K) -> (M, K), (M,)"""
    log_p = power * F.log_softmax(logits, dim=1)
    log_sum = log_p.logsumexp(dim=1)
    return log_p - log_sum[:, None], log_sum

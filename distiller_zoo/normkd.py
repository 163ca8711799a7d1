from dataclasses import dataclass
from math import sqrt

from torch import Tensor

from helper.options import option, positive_number

from . import METHODS
from .base import LogitDistiller, Recipe
from .rows import center_and_normalize, kl


@METHODS.register("normkd")
class NormKD(LogitDistiller):
    """Chi et al., NormKD: Normalized Logits for Knowledge Distillation, arXiv 2308.00520 (2023).

    KD whose temperature is T_norm times the sample standard deviation of a row of logits, each
    network's own. The KL of a row is times the square of the teacher's temperature, mean over the
    batch. A row of equal logits has uniform probabilities, and no gradient.

    Behind `--logit_stand` every deviation is 1, and the loss KD's.
    Raises ValueError where there are fewer than three classes.
    Reference: gizi1/NormKD, mdistiller/distillers/NormKD.py.
    """

    recipe = Recipe(gamma=0.1, alpha=0.0, beta=0.9)
    temperature = "normkd_T_norm"

    @dataclass(frozen=True)
    class Options:
        normkd_T_norm: float = option(
            2.0, "temperature of logits whose standard deviation is 1", parse=positive_number
        )

    def __init__(self, options, setup):
        super().__init__(options, setup)
        classes = setup.student.logits.shape[1]
        if classes < 3:
            raise ValueError(
                f"{classes} logits over their standard deviation are always the same numbers but "
                "for the sign, which teach nothing: use --distill kd"
            )

    @staticmethod
    def pair_defaults(teacher, student, views, data):
        """The published setting on ImageNet, for any pair."""
        on_imagenet = {"gamma": 0.5, "beta": 0.5, "normkd_T_norm": 1.0}
        return on_imagenet if data == "imagenet" else {}

    def per_row(self, student, teacher, labels):
        """(M, K), (M, K), (M,) -> (M,)"""
        return teacher.var(dim=1) * kl(
            *map(over_std, (student, teacher)), self.options.normkd_T_norm
        )


def over_std(logits: Tensor) -> Tensor:
    """(M, K) -> (M, K): rows of mean 0 and sample standard deviation 1; 0 where all are equal."""
    differences = logits - logits[:, :1].detach()  # exactly 0 where they are
    return sqrt(logits.shape[1] - 1) * center_and_normalize(differences, eps=1e-15)

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from helper.options import not_negative, option, positive_number

from . import METHODS
from .base import Distiller, Recipe
from .rows import unit


@METHODS.register("itrd")
class ITRD(Distiller):
    """Miles et al., Information Theoretic Representation Distillation, BMVC 2022.

    Correlation: a trained linear map of the student's pooled features should correlate with the
    teacher's, dimension by dimension over the batch: log2 of the sum of |1 - correlation|^(2 *
    alpha). Mutual information, from matrices of cosines between samples at trace 1: |student|^2 -
    |student * teacher|^2. It reads the student's own features where they are as wide as the
    teacher's, else the mapped ones.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=1.0)

    @dataclass(frozen=True)
    class Options:
        itrd_alpha: float = option(1.5, "order of the correlation part", parse=positive_number)
        itrd_correlation: float = option(1.0, "weight of the correlation part", parse=not_negative)
        itrd_mutual: float = option(1.0, "weight of the mutual information", parse=not_negative)

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.embed = nn.Linear(setup.student.pooled.shape[1], setup.teacher.pooled.shape[1])

    def forward(self, student, teacher, batch):
        mutual, correlation = self.parts(student.pooled, teacher.pooled)
        return self.options.itrd_mutual * mutual + self.options.itrd_correlation * correlation

    def parts(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C_s), (B, C_t) -> both parts before their weights, each a scalar."""
        mapped = self.embed(s)  # (B, C_t)
        same_width = s.shape[1] == t.shape[1]
        missing = decorrelation(mapped, t, self.options.itrd_alpha)
        return mutual_information(s if same_width else mapped, t), missing


def mutual_information(s: Tensor, t: Tensor) -> Tensor:
    """(B, C), (B, C') -> scalar, what the student's samples share with each other alone."""
    s, t = unit(s), unit(t)
    gram_s, gram_t = s @ s.T, t @ t.T  # (B, B)
    return concentration(gram_s) - concentration(gram_s * gram_t)


def concentration(gram: Tensor) -> Tensor:
    """(B, B) -> sum of squares at trace 1, which is 2^-(Renyi's entropy of order 2); 0 for zeros.

    The trace counts the rows that are not zero.
    """
    return (gram / gram.trace().clamp_min(1)).square().sum()


def decorrelation(s: Tensor, t: Tensor, alpha: float) -> Tensor:
    """(B, C), (B, C) -> scalar"""
    missing = 1 - (standardized(s) * standardized(t)).mean(dim=0)  # (C,)
    return missing.abs().pow(2 * alpha).sum().log2()


def standardized(x: Tensor, least: float = 1e-6) -> Tensor:
    """(B, C) -> (B, C): each column to mean 0 and standard deviation 1 (divisor B - 1).

    A column that does not vary becomes 0, as in a batch of one.
    """
    x = x - x.mean(dim=0)
    variance = x.square().sum(dim=0) / max(len(x) - 1, 1)  # (C,)
    per_std = variance.clamp_min(least**2).rsqrt()
    return x * torch.where(variance > least**2, per_std, 0)

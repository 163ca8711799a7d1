from dataclasses import dataclass

import torch
from torch import Tensor, nn

from helper.options import not_negative, option, positive_number

from . import METHODS
from .base import Distiller, Recipe
from .rows import normalize_rows


@METHODS.register("itrd")
class ITRD(Distiller):
    """Miles et al., Information Theoretic Representation Distillation, BMVC 2022.

    Correlation loss: log2 of the sum over dimensions of |1 - r|^(2 * alpha), r the correlation over
    the batch between a trained linear map of the student's pooled features and the teacher's.
    Mutual information loss: |G_s|^2 - |G_s * G_t|^2 (elementwise product, Frobenius norms), G the
    matrices of cosines between samples, scaled to trace 1. It reads the student's own features
    where they are as wide as the teacher's, else the mapped ones.

    The weights are the paper's. Reference: giakoumoglou/distillers, ITRD, which names them and adds
    both losses without (`--itrd_correlation 1 --itrd_mutual 1`).
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=1.0)
    reads = frozenset({"pooled"})

    @dataclass(frozen=True)
    class Options:
        itrd_alpha: float = option(1.5, "order of the correlation part", parse=positive_number)
        itrd_correlation: float = option(2.0, "weight of the correlation part", parse=not_negative)
        itrd_mutual: float = option(0.05, "weight of the mutual information", parse=not_negative)

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.embed = nn.Linear(setup.student.pooled.shape[1], setup.teacher.pooled.shape[1])

    def forward(self, student, teacher, batch):
        mutual, correlation = self.losses(student.pooled, teacher.pooled)
        self.parts = {"mutual": mutual.detach(), "correlation": correlation.detach()}
        return self.options.itrd_mutual * mutual + self.options.itrd_correlation * correlation

    def losses(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C_s), (B, C_t) -> unweighted mutual information and correlation loss, scalars"""
        mapped = self.embed(s)  # (B, C_t)
        same_width = s.shape[1] == t.shape[1]
        correlation = correlation_loss(mapped, t, self.options.itrd_alpha)
        return mutual_information_loss(s if same_width else mapped, t), correlation


def mutual_information_loss(s: Tensor, t: Tensor) -> Tensor:
    """(B, C), (B, C') -> scalar"""
    s, t = normalize_rows(s), normalize_rows(t)
    gram_s, gram_t = s @ s.T, t @ t.T  # (B, B)
    return information_potential(gram_s) - information_potential(gram_s * gram_t)


def information_potential(gram: Tensor) -> Tensor:
    """(B, B) -> scalar: sum of squares at trace 1, 2^-(Renyi entropy of order 2); 0 for zeros.

    The trace is the number of rows that are not zero.
    """
    return (gram / gram.trace().clamp_min(1)).square().sum()


def correlation_loss(s: Tensor, t: Tensor, alpha: float) -> Tensor:
    """(B, C), (B, C) -> scalar"""
    correlation = (standardize(s) * standardize(t)).mean(dim=0)  # (C,)
    return (1 - correlation).abs().pow(2 * alpha).sum().log2()


def standardize(x: Tensor, eps: float = 1e-6) -> Tensor:
    """(B, C) -> (B, C): each column to mean 0 and standard deviation 1 (divisor B - 1).

    A constant column becomes 0, as in a batch of one.
    """
    x = x - x.mean(dim=0)
    variance = x.square().sum(dim=0) / max(len(x) - 1, 1)  # (C,)
    inverse_std = variance.clamp_min(eps**2).rsqrt()
    return x * torch.where(variance > eps**2, inverse_std, 0)

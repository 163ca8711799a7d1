"""The alpha-beta divergence in the place of KL: an option of losses that are a divergence of rows.

M rows, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from helper.options import not_negative, option

from .rows import kl_from_log_probs

Divergence = Callable[[Tensor, Tensor], Tensor]  # log-probabilities of student, teacher -> (M,)
PUBLISHED = 0.5  # both of the published parser's defaults


@dataclass(frozen=True, kw_only=True)
class DivergenceOptions:
    """Flags of every method that can have another divergence than KL."""

    divergence: str = option(
        "kl",
        "between the teacher's and the student's probabilities: KL, or the alpha-beta divergence "
        "(ABKD: Wang et al., ICML 2025)",
        choices=("kl", "ab"),
        added=True,
    )
    ab_alpha: float = option(
        PUBLISHED, "its power of the teacher's probabilities", parse=not_negative, added=True
    )
    ab_beta: float = option(
        PUBLISHED, "its power of the student's probabilities", parse=not_negative, added=True
    )

    @property
    def divergence_name(self) -> str:
        """'AB(0.5, 0.5)'; empty of KL."""
        return "" if self.divergence == "kl" else f"AB({self.ab_alpha:g}, {self.ab_beta:g})"


def divergence_of(options: DivergenceOptions) -> Divergence:
    """The divergence of a method. ValueError where its powers are given and it is KL."""
    if options.divergence == "ab":
        return partial(ab_from_log_probs, alpha=options.ab_alpha, beta=options.ab_beta)
    if (options.ab_alpha, options.ab_beta) != (PUBLISHED, PUBLISHED):
        raise ValueError("--ab_alpha and --ab_beta are of --divergence ab: KL has no such powers")
    return kl_from_log_probs


def ab_from_log_probs(log_p: Tensor, log_q: Tensor, alpha: float, beta: float) -> Tensor:
    """Alpha-beta divergence of log-probabilities, log_p the student's: (M, K), (M, K) -> (M,)

    -1 / (a b) * sum of (q^a p^b - a / (a + b) * q^(a + b) - b / (a + b) * p^(a + b)). Where a power
    is 0 it is the limit, which is KL at (1, 0) and the reverse KL at (0, 1); the published code
    divides these limits by the other power and not by its square, so that they are no limits but
    at 1. Reference: ghwang-s/abkd, standard_classification/distiller_zoo/abkl.py.
    """
    a, b, ratio = alpha, beta, log_q - log_p
    if a == b == 0:
        terms = ratio.square() / 2
    elif b == 0:
        terms = (torch.exp(a * log_q) * (a * ratio - 1) + torch.exp(a * log_p)) / a**2
    elif a == 0:
        terms = (torch.exp(b * log_q) - torch.exp(b * log_p) * (b * ratio + 1)) / b**2
    else:
        total = a * torch.exp((a + b) * log_q) + b * torch.exp((a + b) * log_p)
        terms = (total / (a + b) - torch.exp(a * log_q + b * log_p)) / (a * b)
    return terms.sum(dim=1)

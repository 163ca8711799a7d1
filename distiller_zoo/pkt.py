import torch
from torch import Tensor

from . import METHODS
from .base import Distiller, Recipe

EPS = 1e-7


@METHODS.register("pkt")
class PKT(Distiller):
    """Passalis & Tefas, Probabilistic Knowledge Transfer, ECCV 2018.

    Cosine similarities between the samples of a batch, scaled to [0, 1] and normalised to a sum of
    1 a row, are conditional probabilities p(j | i) of neighbouring samples. Loss: KL divergence of
    the student's from the teacher's, mean over all B^2 entries.

    Reference: HobbitLong/RepDistiller, distiller_zoo/PKT.py.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=30000.0)
    reads = frozenset({"pooled"})

    def forward(self, student, teacher, batch):
        return pkt_loss(student.pooled, teacher.pooled)


def pkt_loss(s: Tensor, t: Tensor) -> Tensor:
    """(B, C), (B, C') -> scalar"""
    p, q = conditional_probs(s), conditional_probs(t)
    return (q * ((q + EPS).log() - (p + EPS).log())).mean()


def conditional_probs(x: Tensor) -> Tensor:
    """(B, C) -> (B, B), each row of which sums to 1. A zero row has cosine 0 with all."""
    # vector_norm has gradient 0 for a zero row, where that of the root of a sum is NaN.
    x = x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + EPS)
    similarity = x @ x.T + 1  # twice a value in [0, 1]; the factor cancels
    return similarity / similarity.sum(dim=1, keepdim=True)

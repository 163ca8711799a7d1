import torch
from torch import Tensor

from . import METHODS
from .base import Distiller, Recipe

EPS = 1e-7


@METHODS.register("pkt")
class PKT(Distiller):
    """Passalis & Tefas, Probabilistic Knowledge Transfer, ECCV 2018.

    Cosine similarities of a batch, moved to [0, 1], rows summing to 1, are read as probabilities
    that one sample neighbours another: teacher * log(teacher / student), mean over B^2.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=30000.0)

    def forward(self, student, teacher, batch):
        return pkt(student.pooled, teacher.pooled)


def pkt(s: Tensor, t: Tensor) -> Tensor:
    """(B, C), (B, C') -> scalar"""
    p, q = neighbours(s), neighbours(t)
    return (q * ((q + EPS).log() - (p + EPS).log())).mean()


def neighbours(x: Tensor) -> Tensor:
    """(B, C) -> (B, B), rows of probabilities. A zero row is like nothing."""
    # The norm of a zero row has gradient 0, where that of a root of its square is NaN.
    x = x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + EPS)
    similar = x @ x.T + 1  # half of it is in [0, 1], and the half cancels
    return similar / similar.sum(dim=1, keepdim=True)

import torch
import torch.nn.functional as F
from torch import Tensor

from models.adapters import to_smaller

from . import METHODS
from .base import Distiller, Recipe, check_stages


@METHODS.register("nst")
class NST(Distiller):
    """Huang & Wang, Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, 2017.

    Maximum mean discrepancy between the channels of both maps, each channel of unit length, with
    the kernel (a . b)^2; mean over the batch, sum over the stages. The term of the teacher alone
    is counted and has no gradient.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=50.0)

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.stages = check_stages(setup)

    def forward(self, student, teacher, batch):
        pairs = zip(student.stages[: self.stages], teacher.stages[: self.stages], strict=True)
        return sum(stage_loss(s, t) for s, t in pairs)


def stage_loss(s: Tensor, t: Tensor) -> Tensor:
    """(B, C, H, W), (B, C', H', W') -> scalar, on the smaller of the two sizes."""
    s, t = (F.normalize(x.flatten(2), dim=2) for x in to_smaller(s, t))  # (B, C, H * W)
    return mean_kernel(t, t).detach() + mean_kernel(s, s) - 2 * mean_kernel(s, t)


def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
    """Mean of (a_i . b_j)^2 over all pairs of rows: (B, C, D), (B, C', D) -> scalar

    The sum over pairs is the squared Frobenius norm of a @ b.T, and also the inner product of
    a.T @ a and b.T @ b: whichever matrices are smaller.
    """
    pairs = a.shape[0] * a.shape[1] * b.shape[1]
    if a.shape[1] * b.shape[1] <= a.shape[2] ** 2:
        return torch.bmm(a, b.mT).square().sum() / pairs
    return (torch.bmm(a.mT, a) * torch.bmm(b.mT, b)).sum() / pairs

import torch.nn.functional as F
from torch import Tensor

from . import METHODS
from .base import Distiller, Recipe, check_stages


@METHODS.register("similarity")
class Similarity(Distiller):
    """Tung & Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019 (eq. 4).

    Which samples of a batch look alike in the last stage? Squared difference of both Gram matrices,
    rows of unit length, over B^2.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=3000.0)

    def __init__(self, options, setup):
        super().__init__(options, setup)
        check_stages(setup)

    def forward(self, student, teacher, batch):
        return stage_loss(student.stages[-1], teacher.stages[-1])


def stage_loss(s: Tensor, t: Tensor) -> Tensor:
    """(B, ...), (B, ...) -> scalar"""
    return F.mse_loss(similarity(s), similarity(t))


def similarity(x: Tensor) -> Tensor:
    """(B, ...) -> (B, B): how alike each two samples are, rows of unit length."""
    x = x.flatten(1)
    return F.normalize(x @ x.T, dim=1)

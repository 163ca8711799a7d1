import torch.nn.functional as F
from torch import Tensor

from . import METHODS
from .base import Distiller, Recipe, count_stage_pairs


@METHODS.register("similarity")
class Similarity(Distiller):
    """Tung & Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019 (eq. 4).

    Squared difference of the student's and the teacher's similarity matrices, over B^2. These are
    Gram matrices of the samples' last maps, rows normalised to unit length.

    Raises ValueError where a network has no maps.
    Reference: HobbitLong/RepDistiller, distiller_zoo/SP.py.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=3000.0)
    reads = frozenset({"stages"})

    def __init__(self, options, setup):
        super().__init__(options, setup)
        count_stage_pairs(setup)

    def forward(self, student, teacher, batch):
        return stage_loss(student.stages[-1], teacher.stages[-1])


def stage_loss(s: Tensor, t: Tensor) -> Tensor:
    """(B, ...), (B, ...) -> scalar"""
    return F.mse_loss(similarity_matrix(s), similarity_matrix(t))


def similarity_matrix(x: Tensor) -> Tensor:
    """(B, ...) -> (B, B): inner products of the samples, rows of unit length"""
    x = x.flatten(1)
    return F.normalize(x @ x.T, dim=1)

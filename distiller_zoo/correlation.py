from dataclasses import dataclass

from torch import Tensor, nn

from helper.options import option, positive

from . import METHODS
from .base import Distiller, Recipe


@METHODS.register("correlation")
class Correlation(Distiller):
    """Peng et al., Correlation Congruence for Knowledge Distillation, ICCV 2019.

    Both pooled features are embedded linearly. With d_i = |student_i - teacher_i|, the loss is the
    inner product of d_i and d_i+1, mean over these pairs of neighbours in the batch. (This is the
    published code; the paper compares correlation matrices.)

    Reference: HobbitLong/RepDistiller, distiller_zoo/CC.py.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=0.02)
    reads = frozenset({"pooled"})

    @dataclass(frozen=True)
    class Options:
        feat_dim: int = option(128, "dimensions of the shared space", parse=positive)

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.embed_s = nn.Linear(setup.student.pooled.shape[1], options.feat_dim)
        self.embed_t = nn.Linear(setup.teacher.pooled.shape[1], options.feat_dim)

    def forward(self, student, teacher, batch):
        return correlation_loss(self.embed_s(student.pooled), self.embed_t(teacher.pooled))


def correlation_loss(s: Tensor, t: Tensor) -> Tensor:
    """(B, D), (B, D) -> scalar; 0 for a batch of one, which has no pair."""
    distance = (s - t).abs()
    return (distance[:-1] * distance[1:]).sum() / max(1, len(s) - 1)

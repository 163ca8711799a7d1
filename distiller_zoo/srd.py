from dataclasses import dataclass

import torch
from torch import Tensor, nn

from helper.options import option, positive

from . import METHODS
from .base import Distiller, Recipe
from .rows import kl


@METHODS.register("srd")
class SRD(Distiller):
    """Miles & Mikolajczyk, Understanding the Role of the Projector in KD, AAAI 2024.

    2 ln(sum of |a - b|^exponent) + KL(teacher || student) of the logits at temperature 1. a is the
    student's pooled vector through a trained linear layer, b the teacher's, either normalised over
    the batch (BatchNorm without weights); the sum is over the batch and the dimensions. A batch of
    one has no statistics, and KL alone.

    Its gradient does not depend on the batch's size. Reference: roymiles/Simple-Recipe-Distillation
    and torchdistill, losses/mid_level.py.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=1.0)
    reads = frozenset({"pooled", "logits"})

    @dataclass(frozen=True)
    class Options:
        srd_exponent: int = option(4, "power of a difference of features", parse=positive)

    def __init__(self, options, setup):
        super().__init__(options, setup)
        c_s, c_t = setup.student.pooled.shape[1], setup.teacher.pooled.shape[1]
        self.embed_s = nn.Linear(c_s, c_t)
        self.bn_s, self.bn_t = (nn.BatchNorm1d(c_t, eps=1e-4, affine=False) for _ in range(2))

    @staticmethod
    def pair_defaults(teacher, student, views, data):
        """The published batch on ImageNet."""
        return {"batch_size": 256} if data == "imagenet" else {}

    def forward(self, student, teacher, batch):
        divergence = kl(student.logits, teacher.logits, temperature=1).mean()
        feature = self.feature_loss(student.pooled, teacher.pooled)
        self.parts = {"feature": feature.detach(), "kl": divergence.detach()}
        return feature + divergence

    def feature_loss(self, s: Tensor, t: Tensor) -> Tensor:
        """Pooled vectors (B, C), (B, C') -> scalar"""
        if len(s) == 1:
            return s.new_zeros(())
        distance = self.bn_s(self.embed_s(s)) - self.bn_t(t)  # (B, C')
        return 2 * torch.log(distance.abs().pow(self.options.srd_exponent).sum().clamp_min(1e-30))

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, log1p

import torch.nn.functional as F
from torch import Tensor

from crd.memory import Memory, MemoryOptions, Negatives
from helper.options import option
from models.base import Features

from . import METHODS
from .base import Distiller, Recipe
from .embeddings import Embedding

EPS = 1e-7


@METHODS.register("crd")
class CRD(Distiller):
    """Tian et al., Contrastive Representation Distillation, ICLR 2020.

    A student's vector has to tell the teacher's vector of the same sample from those of k samples
    of other classes, and a teacher's vector the student's, by noise-contrastive estimation. Vectors
    are pooled features in a linear embedding of unit length; those of the k come from memories of
    all N samples, which follow what was seen by a moving average. Sum over the candidates, mean
    over the batch, sum of both directions.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=0.8)

    @dataclass(frozen=True)
    class Options(MemoryOptions):
        crd_mode: str = option(
            "exact",
            "the positive: the sample itself (exact) or one of its class (relax)",
            "--mode",
            choices=("exact", "relax"),
        )

    def __init__(self, options, setup):
        super().__init__(options, setup)
        dim, labels = options.feat_dim, setup.labels
        self.negatives = Negatives(labels, options.nce_k)
        self.embed_s = Embedding(setup.student.pooled.shape[1], dim)
        self.embed_t = Embedding(setup.teacher.pooled.shape[1], dim)
        self.memory_s = Memory(len(labels), dim, options.nce_t, options.nce_m)
        self.memory_t = Memory(len(labels), dim, options.nce_t, options.nce_m)

    def candidates(self, batch) -> Tensor:
        """Samples that each is compared with, the positive first: (B, 1 + k)"""
        positive = batch.index
        if self.options.crd_mode == "relax":
            positive = self.negatives.of_same_class(batch.labels)
        return self.negatives(batch.labels, positive)

    def forward(self, student, teacher, batch):
        return self.of_teachers(student, [teacher], batch)

    def of_teachers(self, student: Features, teachers: Sequence[Features], batch) -> Tensor:
        """Sum of the losses on versions of one teacher -> scalar.

        All share the candidates. The student is scored once, before the memories move: that score
        does not depend on the version. The memories move once for each version.
        """
        index = self.candidates(batch)
        z_s = self.embed_s(student.pooled)  # (B, D)
        loss = len(teachers) * self.memory_t.price(z_s, index, self.cost)
        for teacher in teachers:
            z_t = self.embed_t(teacher.pooled)  # (B, D)
            loss = loss + self.memory_s.price(z_t, index, self.cost)
            self.memory_s.update(batch.index, z_s)
            self.memory_t.update(batch.index, z_t)
        return loss

    def cost(self, log_score: Tensor) -> Tensor:
        """Logarithms of scores, the positive's first: (B, 1 + k) -> scalar.

        With c = k/N: -log(p / (p + c + eps)) of the positive, -log(c / (p + c + eps)) of the rest.
        """
        k = log_score.shape[1] - 1
        chance = k / len(self.memory_s.bank)
        odds = log_score - log(chance + EPS)
        # softplus(-x) = softplus(x) - x; the threshold is where float64 no longer sees a difference
        total = F.softplus(odds, threshold=40).sum() - odds[:, 0].sum()
        return total / len(odds) + k * log1p(EPS / chance)

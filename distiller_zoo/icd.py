from dataclasses import dataclass
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.options import not_negative, option, positive, positive_number

from . import METHODS
from .base import Distiller, Recipe
from .embeddings import Embedding


@METHODS.register("icd", "dcd")
class ICD(Distiller):
    """Giakoumoglou, Stathaki, Discriminative and Consistent Distillation, arXiv 2407.11802 (2024).

    Registered as icd, its older name, and dcd. Logits are the inner products of each student's
    vector with each teacher's vector of the batch, times a scale, plus b; vectors are pooled
    features after a linear embedding to unit length. Discriminative loss: cross-entropy with the
    teacher's vector of the same sample as the target. Consistency loss, weighted by `consistency`:
    KL(teachers over students || students over teachers). Both are means over the batch.

    The scale is exp(tau), at most `max_tau`, and tau and b are trained; with `--fixed_tau` it is
    1 / nce_t and b is 0. The published code multiplies by nce_t = 0.07 there, which makes the
    softmax nearly uniform; `--nce_t 14.2857` gives its numbers.
    Reference: giakoumoglou/distillers, ICD and DCD.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=1.0)
    reads = frozenset({"pooled"})

    @dataclass(frozen=True)
    class Options:
        feat_dim: int = option(128, "dimensions of the shared space", parse=positive)
        consistency: float = option(0.5, "weight of the consistency term", parse=not_negative)
        max_tau: float = option(10.0, "largest scale of similarities", parse=positive_number)
        fixed_tau: bool = option(False, "keep the temperature at nce_t instead of training it")
        nce_t: float = option(0.07, "temperature where it is fixed", parse=positive_number)

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.embed_s = Embedding(setup.student.pooled.shape[1], options.feat_dim)
        self.embed_t = Embedding(setup.teacher.pooled.shape[1], options.feat_dim)
        if not options.fixed_tau:
            self.tau = nn.Parameter(torch.tensor(1.0))
            self.b = nn.Parameter(torch.tensor(0.0))

    def forward(self, student, teacher, batch):
        z_s, z_t = self.embed_s(student.pooled), self.embed_t(teacher.pooled)  # (B, D)
        discriminate, consistent = dcd_losses(self.similarity(z_s, z_t))
        self.parts = {"discriminate": discriminate.detach(), "consistent": consistent.detach()}
        return discriminate + self.options.consistency * consistent

    def similarity(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        """Scaled inner products: students (B, D), teachers (B, D) -> (B, B)"""
        if self.options.fixed_tau:
            return z_s @ z_t.T / self.options.nce_t
        scale = self.tau.clamp(max=log(self.options.max_tau)).exp()
        return z_s @ z_t.T * scale + self.b


def dcd_losses(similarity: Tensor) -> tuple[Tensor, Tensor]:
    """Similarities of students (rows) with teachers (B, B) -> discriminative, consistency loss."""
    log_p = F.log_softmax(similarity, dim=1)  # of each student over the teachers
    log_q = F.log_softmax(similarity, dim=0).T  # of each teacher over the students
    kl = F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
    return -log_p.diagonal().mean(), kl

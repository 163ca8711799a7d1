from collections.abc import Sequence
from dataclasses import dataclass
from math import log, log1p

import torch
import torch.nn.functional as F
from torch import Tensor

from crd.memory import Memory, MemoryOptions, Negatives, Queue, similarity
from helper.options import option
from models.base import Features

from . import METHODS
from .base import Distiller, Recipe
from .embeddings import Embedding

EPS = 1e-7


@METHODS.register("crd")
class CRD(Distiller):
    """Tian et al., Contrastive Representation Distillation, ICLR 2020.

    Noise-contrastive estimation in both directions: a student's vector has to tell the teacher's
    vector of the same sample (the positive) from those of k samples of other classes (the
    negatives), and a teacher's vector the student's. Vectors are pooled features after a linear
    embedding to unit length. Negatives come from memories of all N training samples, which are
    exponential moving averages of the vectors. Sum over the candidates, mean over the batch, sum of
    both directions.

    `--crd_memory queue` is what the code of ICD and RRD calls CRD: InfoNCE of the student's vectors
    alone. Softmax cross-entropy at temperature nce_t; the positive is the teacher's vector of the
    same sample, with a gradient to both embeddings, the negatives are the teacher's last nce_k
    vectors, with those of this batch among them.

    Raises ValueError where all samples are of one class, or a queue has no use for an option.
    Reference: HobbitLong/RepDistiller, crd/criterion.py and crd/memory.py; giakoumoglou/distillers.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=0.8)
    reads = frozenset({"pooled"})
    reads_samples = True

    @dataclass(frozen=True)
    class Options(MemoryOptions):
        crd_mode: str = option(
            "exact",
            "the positive: the sample itself (exact) or one of its class (relax)",
            "--mode",
            choices=("exact", "relax"),
        )
        crd_memory: str = option(
            "momentum",
            "where negatives come from: memories of all samples (momentum), or the teacher's last "
            "vectors, with InfoNCE (queue)",
            choices=("momentum", "queue"),
            added=True,
        )

    @staticmethod
    def variant(options):
        return "queue" if options.crd_memory == "queue" else ""

    @staticmethod
    def pair_defaults(teacher, student, views, data):
        """The published batch on ImageNet."""
        return {"batch_size": 256} if data == "imagenet" else {}

    def __init__(self, options, setup):
        super().__init__(options, setup)
        dim, labels = options.feat_dim, setup.labels
        self.embed_s = Embedding(setup.student.pooled.shape[1], dim)
        self.embed_t = Embedding(setup.teacher.pooled.shape[1], dim)
        if options.crd_memory == "queue":
            if options.crd_mode == "relax":
                raise ValueError("in a queue no sample has a class: --mode relax needs memories")
            if options.nce_m != MemoryOptions.nce_m:
                raise ValueError("a queue moves no vector: --nce_m needs memories")
            self.queue = Queue(options.nce_k, dim)
            return
        self.negatives = Negatives(labels, options.nce_k, setup.generator)
        self.memory_s = Memory(len(labels), dim, options.nce_t, options.nce_m)
        self.memory_t = Memory(len(labels), dim, options.nce_t, options.nce_m)

    def candidates(self, batch) -> Tensor:
        """Indices of the samples that each is compared with, the positive first: (B, 1 + k)"""
        positive = batch.index
        if self.options.crd_mode == "relax":
            positive = self.negatives.same_class(batch.labels)
        return self.negatives(batch.labels, positive)

    def forward(self, student, teacher, batch):
        return self.of_teachers(student, [teacher], batch)

    def of_teachers(self, student: Features, teachers: Sequence[Features], batch) -> Tensor:
        """Sum of the losses on versions of one teacher -> scalar.

        All share the candidates. The student's direction does not depend on the version: it is
        computed once, before the memories are updated. They are updated once for each version.
        """
        z_s = self.embed_s(student.pooled)  # (B, D)
        if self.options.crd_memory == "queue":
            return sum(self.queue_loss(z_s, self.embed_t(teacher.pooled)) for teacher in teachers)
        index = self.candidates(batch)
        loss = len(teachers) * self.memory_t.loss(z_s, index, self.nce_loss)
        for teacher in teachers:
            z_t = self.embed_t(teacher.pooled)  # (B, D)
            loss = loss + self.memory_s.loss(z_t, index, self.nce_loss)
            self.memory_s.update(batch.index, z_s)
            self.memory_t.update(batch.index, z_t)
        return loss

    def queue_loss(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        """(B, D), (B, D) -> scalar. The batch enters the queue first."""
        self.queue.enqueue(z_t)
        positive = (z_s * z_t).sum(dim=1, keepdim=True)  # (B, 1)
        # A copy: the queue may move on before `backward`.
        candidates = torch.cat([positive, similarity(z_s, self.queue.bank.clone())], dim=1)
        log_p = F.log_softmax(candidates / self.options.nce_t, dim=1)  # (B, 1 + k)
        return -log_p[:, 0].mean()

    def nce_loss(self, log_score: Tensor) -> Tensor:
        """Log-scores log p, the positive's first: (B, 1 + k) -> scalar, mean over B.

        With c = k / N, the negatives under the noise distribution: -log(p / (p + c + eps)) of the
        positive, -log(c / (p + c + eps)) of each negative.
        """
        k = log_score.shape[1] - 1
        c = k / len(self.memory_s.bank)
        odds = log_score - log(c + EPS)
        # softplus(-x) = softplus(x) - x; beyond the threshold both are equal in float64
        loss = F.softplus(odds, threshold=40).sum() - odds[:, 0].sum()
        return loss / len(odds) + k * log1p(EPS / c)

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from crd.memory import Memory, MemoryOptions, Negatives, Queue, bank_loss, similarity
from helper.options import option, positive_number

from . import METHODS
from .base import Distiller, Recipe
from .embeddings import Embedding


@METHODS.register("rrd")
class RRD(Distiller):
    """Giakoumoglou, Stathaki, Relational Representation Distillation, arXiv 2407.12073 (2024).

    Cross-entropy, mean over the batch, between softmax(teacher's similarities / nce_t_t) and
    softmax(student's similarities / nce_t_s). Similarities are inner products with a queue of the
    teacher's last nce_k vectors, or (`--rrd_memory momentum`) scores against CRD's memories and
    negatives: exp(inner product / nce_t) / Z. Vectors are pooled features after a linear embedding
    to unit length.

    Only the student's side has a gradient: the teacher's embedding stays as it was initialised, as
    in the published code. Its first version had nce_t_s 0.04, nce_t_t 0.1, and enqueued after the
    loss. Raises ValueError where there are memories and all samples are of one class.
    Reference: giakoumoglou/distillers, RRD.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=1.0)
    reads = frozenset({"pooled"})
    reads_samples = True

    @dataclass(frozen=True)
    class Options(MemoryOptions):
        rrd_memory: str = option(
            "queue",
            "what similarities are with: the teacher's last vectors (queue) or a memory of all "
            "samples (momentum)",
            choices=("queue", "momentum"),
        )
        enqueue: str = option(
            "before",
            "whether the batch enters the queue before or after the loss",
            choices=("before", "after"),
        )
        nce_t_s: float = option(0.1, "the student's temperature", parse=positive_number)
        nce_t_t: float = option(0.02, "the teacher's temperature", parse=positive_number)

    def __init__(self, options, setup):
        super().__init__(options, setup)
        dim, labels = options.feat_dim, setup.labels
        self.embed_s = Embedding(setup.student.pooled.shape[1], dim)
        self.embed_t = Embedding(setup.teacher.pooled.shape[1], dim).requires_grad_(False)
        if options.rrd_memory == "queue":
            self.queue = Queue(options.nce_k, dim)
        else:
            self.negatives = Negatives(labels, options.nce_k, setup.generator)
            self.memory_s = Memory(len(labels), dim, options.nce_t, options.nce_m)
            self.memory_t = Memory(len(labels), dim, options.nce_t, options.nce_m)

    def forward(self, student, teacher, batch):
        z_s, z_t = self.embed_s(student.pooled), self.embed_t(teacher.pooled)  # (B, D)
        if self.options.rrd_memory == "queue":
            return self.queue_loss(z_s, z_t)
        return self.memory_loss(z_s, z_t, batch)

    def queue_loss(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        """(B, D), (B, D) -> scalar"""
        if self.options.enqueue == "before":
            self.queue.enqueue(z_t)
        target = self.teacher_probs(similarity(z_t, self.queue.bank))
        loss = bank_loss(z_s, self.queue.bank, None, lambda s: self.relation_loss(s, target))
        if self.options.enqueue == "after":
            self.queue.enqueue(z_t)
        return loss

    def memory_loss(self, z_s: Tensor, z_t: Tensor, batch) -> Tensor:
        """(B, D), (B, D) -> scalar"""
        index = self.candidates(batch)
        target = self.teacher_probs(clamped_exp(self.memory_s.log_scores(z_t, index)))
        loss = self.memory_t.loss(
            z_s, index, lambda log_score: self.relation_loss(clamped_exp(log_score), target)
        )
        self.memory_s.update(batch.index, z_s)
        self.memory_t.update(batch.index, z_t)
        return loss

    def candidates(self, batch) -> Tensor:
        """Indices of the samples that each is compared with, itself first: (B, 1 + k)"""
        return self.negatives(batch.labels, batch.index)

    def teacher_probs(self, similarity: Tensor) -> Tensor:
        """Softmax of the teacher's similarities at its temperature: (B, C) -> (B, C)"""
        return F.softmax(similarity / self.options.nce_t_t, dim=1)

    def relation_loss(self, similarity: Tensor, target: Tensor) -> Tensor:
        """Student's similarities (B, C), teacher's probabilities (B, C) -> scalar"""
        return F.cross_entropy(similarity / self.options.nce_t_s, target)


def clamped_exp(log_score: Tensor) -> Tensor:
    """exp, at most exp(60), which only an nce_t below 0.03 can reach: (B, C) -> (B, C)"""
    return log_score.clamp(max=60).exp()

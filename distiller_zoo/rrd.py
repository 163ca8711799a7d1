from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crd.memory import Memory, MemoryOptions, Negatives, price, scores
from helper.options import option, positive_number

from . import METHODS
from .base import Distiller, Recipe
from .embeddings import Embedding


@METHODS.register("rrd")
class RRD(Distiller):
    """Giakoumoglou, Stathaki, Relational Representation Distillation, arXiv 2407.12073 (2024).

    Cross-entropy, mean over the batch, between softmax(teacher's similarities / nce_t_t) and
    softmax(student's similarities / nce_t_s). Similarities are those with a queue of the teacher's
    last nce_k vectors, or (`--rrd_memory momentum`) scores against CRD's memories and negatives:
    exp(similarity / nce_t) / Z. Vectors are pooled features in linear embeddings of unit length.

    Only the student's side has a gradient: the teacher's embedding stays as it was initialised, as
    in the published code. The seed's first version had nce_t_s 0.04, nce_t_t 0.1, enqueue after.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=1.0)

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
            self.negatives = Negatives(labels, options.nce_k)
            self.memory_s = Memory(len(labels), dim, options.nce_t, options.nce_m)
            self.memory_t = Memory(len(labels), dim, options.nce_t, options.nce_m)

    def forward(self, student, teacher, batch):
        z_s, z_t = self.embed_s(student.pooled), self.embed_t(teacher.pooled)  # (B, D)
        if self.options.rrd_memory == "queue":
            return self.against_queue(z_s, z_t)
        return self.against_memories(z_s, z_t, batch)

    def against_queue(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        """(B, D), (B, D) -> scalar"""
        if self.options.enqueue == "before":
            self.queue.push(z_t)
        bank = self.queue.bank
        target = self.target(scores(z_t, bank, None))
        loss = price(z_s, bank, None, lambda score: self.cost(score, target))
        if self.options.enqueue == "after":
            self.queue.push(z_t)
        return loss

    def against_memories(self, z_s: Tensor, z_t: Tensor, batch) -> Tensor:
        """(B, D), (B, D) -> scalar"""
        index = self.candidates(batch)
        target = self.target(not_overflown(self.memory_s.log_score(z_t, index)))
        loss = self.memory_t.price(
            z_s, index, lambda log_score: self.cost(not_overflown(log_score), target)
        )
        self.memory_s.update(batch.index, z_s)
        self.memory_t.update(batch.index, z_t)
        return loss

    def candidates(self, batch) -> Tensor:
        """Samples that each is compared with, itself first: (B, 1 + k)"""
        return self.negatives(batch.labels, batch.index)

    def target(self, similarity: Tensor) -> Tensor:
        """The teacher's similarities -> its probabilities: (B, C) -> (B, C)"""
        return F.softmax(similarity / self.options.nce_t_t, dim=1)

    def cost(self, similarity: Tensor, target: Tensor) -> Tensor:
        """The student's similarities, the teacher's probabilities: (B, C), (B, C) -> scalar"""
        return F.cross_entropy(similarity / self.options.nce_t_s, target)


def not_overflown(log_score: Tensor) -> Tensor:
    """Scores from their logarithms, at most exp(60): only nce_t below 0.03 can reach it."""
    return log_score.clamp(max=60).exp()


class Queue(nn.Module):
    """The last vectors that were pushed, the oldest overwritten first. C length, D dimensions."""

    def __init__(self, length: int, dim: int):
        super().__init__()
        self.register_buffer("bank", F.normalize(torch.randn(length, dim), dim=1))  # (C, D)
        self.register_buffer("next", torch.tensor(0))  # place of the next vector

    @torch.no_grad()
    def push(self, z: Tensor) -> None:
        """Vectors (B, D), any number of them; of more than C the last C stay."""
        length = len(self.bank)
        skipped = max(0, len(z) - length)
        place = (self.next + torch.arange(skipped, len(z), device=z.device)) % length
        self.bank[place] = z[skipped:].to(self.bank.dtype)
        self.next.copy_((self.next + len(z)) % length)

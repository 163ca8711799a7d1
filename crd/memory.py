"""CRD's memory of every training sample, the draw of its negatives, and losses against a bank.

A bank is a matrix of vectors that is updated in place as a run trains.
N rows of a bank (training samples), D dimensions, B batch, k negatives, K classes, C columns: 1 + k
candidates of each sample, or all rows of the bank.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import log

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from helper.options import option, positive, positive_number, share


@dataclass(frozen=True)
class MemoryOptions:
    """Flags of every method that compares with a bank of vectors."""

    feat_dim: int = option(128, "dimensions of the shared space", parse=positive)
    nce_k: int = option(16384, "negatives of each sample, or length of the queue", parse=positive)
    nce_t: float = option(0.07, "temperature of a memory's scores", parse=positive_number)
    nce_m: float = option(0.5, "share of the old vector in a memory's update", parse=share)


LossFn = Callable[[Tensor], Tensor]  # similarities (B, C) -> scalar

# Bytes of the largest product with a whole bank, B * N numbers; above it rows are gathered, as many
# at a time. On a CPU the product takes a quarter of the time with CIFAR's 50,000 samples, and 2.6
# times as long, in 2.5 GB instead of 0.24, with ImageNet's 1,281,167 (benchmarks/README.md).
BUDGET = 256 * 10**6


def similarity(z: Tensor, bank: Tensor, index: Tensor | None = None) -> Tensor:
    """Inner products with all rows of a bank, or with those of an index; a gradient for z alone.

    z (B, D), bank (N, D), index (B, C) -> (B, C), or (B, N) without an index.
    """
    if index is None:
        return z @ bank.T
    if len(z) * len(bank) * bank.element_size() <= BUDGET:
        return (z @ bank.T).gather(1, index)
    return GatheredSimilarity.apply(z, bank, index)


class GatheredSimilarity(torch.autograd.Function):
    """(z @ bank.T).gather(1, index) from the rows of the index, as many at a time as BUDGET holds.

    By autograd all gathered rows, B * C * D numbers, would be kept for the gradient.
    """

    @staticmethod
    def forward(ctx, z: Tensor, bank: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(bank, index)
        columns, dim = index.shape[1], bank.shape[1]
        block = max(1, BUDGET // (columns * dim * bank.element_size()))  # samples
        # One space for all blocks: memory that is fresh in each would take 1.7 times as long.
        space = bank.new_empty(min(block, len(z)) * columns, dim)
        found = []
        for vectors, places in zip(z.split(block), index.split(block), strict=True):
            out = space[: places.numel()]
            rows = torch.index_select(bank, 0, places.flatten(), out=out).view(*places.shape, dim)
            found.append(torch.bmm(rows, vectors[:, :, None])[:, :, 0])  # (block, C)
        return torch.cat(found)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        bank, index = ctx.saved_tensors
        return F.embedding_bag(index, bank, mode="sum", per_sample_weights=gradient), None, None


def bank_loss(z: Tensor, bank: Tensor, index: Tensor | None, loss_fn: LossFn) -> Tensor:
    """`loss_fn` of the similarities of z with a bank; the gradient reaches z alone.

    z (B, D), bank (N, D), index (B, C) or None for all rows -> scalar. The plain form is

        return loss_fn(similarity(z, bank.clone(), index))

    with a copy of the bank, since the bank is updated in place before `backward` runs. With that
    copy the loss of CRD takes 23 % more time, and 70 MB instead of 20 (benchmarks/README.md). So
    autograd computes the gradient for z at once, before the bank can change.
    """
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        loss = loss_fn(similarity(leaf, bank, index))
        (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach() + ((z - z.detach()) * gradient).sum()  # in value the loss, plus zero


class Memory(nn.Module):
    """One unit vector a training sample, and the constant Z that normalises its scores.

    A score is exp(z . row / temperature) / Z. Z = N * mean(exp) of the first batch that is scored,
    and constant afterwards. Scores are kept as logarithms.
    """

    def __init__(self, size: int, dim: int, temperature: float, momentum: float):
        super().__init__()
        self.temperature, self.momentum = temperature, momentum
        self.register_buffer("bank", F.normalize(torch.randn(size, dim), dim=1))  # (N, D)
        self.register_buffer("log_z", torch.tensor(torch.inf))  # infinite: not set yet

    def loss(self, z: Tensor, index: Tensor, loss_fn: LossFn) -> Tensor:
        """`loss_fn` of log-scores: z (B, D), index (B, C) -> scalar, with a gradient for z."""
        return bank_loss(
            z / self.temperature, self.bank, index, lambda logits: loss_fn(self.normalize(logits))
        )

    @torch.no_grad()
    def log_scores(self, z: Tensor, index: Tensor) -> Tensor:
        """Log-scores without a gradient: z (B, D), index (B, C) -> (B, C)"""
        return self.normalize(similarity(z / self.temperature, self.bank, index))

    def normalize(self, logits: Tensor) -> Tensor:
        """logits - log Z: (B, C) -> (B, C). The first call sets Z."""
        with torch.no_grad():
            first = logits.flatten().logsumexp(dim=0) + log(len(self.bank) / logits.numel())
            self.log_z.copy_(self.log_z.where(self.log_z.isfinite(), first))
        return logits - self.log_z

    @torch.no_grad()
    def update(self, index: Tensor, z: Tensor) -> None:
        """Exponential moving average of the vectors of samples: index (B,), z (B, D)"""
        rows = self.bank[index].lerp_(z.to(self.bank.dtype), 1 - self.momentum)
        self.bank[index] = F.normalize(rows, dim=1)


class Negatives(nn.Module):
    """Draws negatives: samples of other classes, uniformly, with replacement, on the device.

    `labels` (N,) are those of the training set; they are drawn from `generator`, else from torch's
    own. Raises ValueError where they are all of one class; warns where k is more than the samples
    of other classes.
    """

    def __init__(self, labels: Tensor, k: int, generator: Generator | None = None):
        super().__init__()
        self.k, self.generator = k, generator
        class_size = labels.bincount()  # (K,)
        fewest = len(labels) - int(class_size.max())
        if fewest == 0:
            raise ValueError(
                f"all {len(labels)} samples are of class {int(labels[0])}: negatives are drawn "
                "from other classes, so the data set needs at least two"
            )
        if k > fewest:
            warnings.warn(
                f"--nce_k {k} is more than the {fewest} samples of other classes that some samples "
                "have: they are drawn several times",
                stacklevel=2,
            )
        # Samples sorted by class, twice over: those of all other classes are N - class_size places
        # in a row, from the end of the class on.
        by_class = labels.argsort(stable=True).repeat(2)
        self.register_buffer("by_class", by_class, persistent=False)  # (2N,)
        self.register_buffer("class_size", class_size, persistent=False)  # (K,)
        self.register_buffer("class_end", class_size.cumsum(0), persistent=False)  # (K,)

    def forward(self, labels: Tensor, positive: Tensor) -> Tensor:
        """Indices of the positive, then of k negatives: labels (B,), positive (B,) -> (B, 1 + k)"""
        others = len(self.by_class) // 2 - self.class_size[labels, None]  # (B, 1)
        uniform = self.rand(len(labels), 1 + self.k)
        place = uniform.mul_(others).long().add_(self.class_end[labels, None])
        index = self.by_class.index_select(0, place.flatten()).view_as(place)
        index[:, 0] = positive
        return index

    def same_class(self, labels: Tensor) -> Tensor:
        """Index of a random sample of each class given: (B,) -> (B,)"""
        size = self.class_size[labels]
        place = self.rand(len(labels)).mul_(size).long()
        return self.by_class[self.class_end[labels] - size + place]

    def rand(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1)."""
        return torch.rand(shape, generator=self.generator, device=self.by_class.device)


class Queue(nn.Module):
    """First-in-first-out queue of `length` vectors of `dim` dimensions, at first random units."""

    def __init__(self, length: int, dim: int):
        super().__init__()
        self.register_buffer("bank", F.normalize(torch.randn(length, dim), dim=1))
        self.register_buffer("next", torch.tensor(0))  # place of the next vector

    @torch.no_grad()
    def enqueue(self, z: Tensor) -> None:
        """Add vectors (B, D), overwriting the oldest; of more than fit the last ones stay."""
        length = len(self.bank)
        skipped = max(0, len(z) - length)
        place = (self.next + torch.arange(skipped, len(z), device=z.device)) % length
        self.bank[place] = z[skipped:].to(self.bank.dtype)
        self.next.copy_((self.next + len(z)) % length)

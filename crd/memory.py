"""A memory of every training sample, the draw of negatives, and prices of scores against a bank.

N samples, D dimensions, B batch, k negatives, C columns: 1 + k candidates, or every row of a bank.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.options import option, positive, positive_number, share


@dataclass(frozen=True)
class MemoryOptions:
    """Flags of every method that compares with a bank of vectors."""

    feat_dim: int = option(128, "dimensions of the shared space", parse=positive)
    nce_k: int = option(16384, "negatives of each sample, or length of the queue", parse=positive)
    nce_t: float = option(0.07, "temperature of a memory's scores", parse=positive_number)
    nce_m: float = option(0.5, "share of the old vector in a memory's update", parse=share)


Cost = Callable[[Tensor], Tensor]  # scores (B, C) -> scalar

BLOCK = 2**20  # numbers in the largest tensor that gathered rows may fill
PRODUCT = 2**27  # numbers in the largest product with a whole bank
GATHERED = 24  # a gathered row costs about as much as this many rows of a product


def price(z: Tensor, bank: Tensor, index: Tensor | None, cost: Cost) -> Tensor:
    """What `cost` asks for the scores of z against the bank: (B, D), (N, D), (B, C) -> scalar.

    Without an index, every row of the bank is a column. The gradient reaches z alone. It is worked
    out here and now, so the bank may change before `backward`.
    """
    return _Price.apply(z, bank, index, cost)


class _Price(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, bank, index, cost):
        score = scores(z, bank, index)
        if not ctx.needs_input_grad[0]:
            return cost(score)
        with torch.enable_grad():
            total = cost(score.requires_grad_())
            (slope,) = torch.autograd.grad(total, score)
        ctx.save_for_backward(weighted_sum(slope, bank, index))
        return total.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None, None, None


def scores(z: Tensor, bank: Tensor, index: Tensor | None) -> Tensor:
    """Inner products with the rows of the bank: (B, D), (N, D), (B, C) -> (B, C)"""
    if index is None:
        return z @ bank.T
    if is_product(bank, index):
        blocks = in_blocks(z, index, PRODUCT // len(bank))
        return joined([(part @ bank.T).gather(1, place) for part, place in blocks])
    blocks = in_blocks(z, index, BLOCK // (index.shape[1] * bank.shape[1]))
    return joined(
        [torch.bmm(rows(bank, place), part[:, :, None])[:, :, 0] for part, place in blocks]
    )


def weighted_sum(weight: Tensor, bank: Tensor, index: Tensor | None) -> Tensor:
    """Rows of the bank, weighed and added up: (B, C), (N, D), (B, C) -> (B, D)"""
    if index is None:
        return weight @ bank
    if is_product(bank, index):
        blocks = in_blocks(weight, index, PRODUCT // len(bank))
        return joined([spread(part, place, len(bank)) @ bank for part, place in blocks])
    blocks = in_blocks(weight, index, BLOCK // (index.shape[1] * bank.shape[1]))
    return joined([torch.bmm(part[:, None], rows(bank, place))[:, 0] for part, place in blocks])


def in_blocks(x: Tensor, index: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Two tensors with the same rows, so many of them at a time, at least one."""
    return zip(x.split(max(1, size)), index.split(max(1, size)))


def rows(bank: Tensor, index: Tensor) -> Tensor:
    """(N, D), (B, C) -> (B, C, D)"""
    return bank.index_select(0, index.flatten()).view(*index.shape, -1)


def is_product(bank: Tensor, index: Tensor) -> bool:
    """Whether one product with the whole bank is cheaper than gathering rows of it."""
    return len(bank) <= GATHERED * index.shape[1]


def spread(weight: Tensor, index: Tensor, size: int) -> Tensor:
    """Weights put where they belong, those of one place added up: (B, C), (B, C) -> (B, N)"""
    return weight.new_zeros(len(weight), size).scatter_add_(1, index, weight)


def joined(parts: list[Tensor]) -> Tensor:
    """Blocks of rows -> all rows; one block is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class Memory(nn.Module):
    """One unit vector a training sample, and the constant Z that scales its scores.

    A score is exp(z . row / temperature) / Z. Z = N * mean(exp) of the first batch that is scored,
    and stays. All is kept as logarithms.
    """

    def __init__(self, size: int, dim: int, temperature: float, momentum: float):
        super().__init__()
        self.temperature, self.momentum = temperature, momentum
        self.register_buffer("bank", F.normalize(torch.randn(size, dim), dim=1))  # (N, D)
        self.register_buffer("log_z", torch.tensor(torch.inf))  # infinite: not set yet

    def price(self, z: Tensor, index: Tensor, cost: Cost) -> Tensor:
        """What `cost` asks for the logarithms of the scores: (B, D), (B, C) -> scalar"""
        return price(z / self.temperature, self.bank, index, lambda score: cost(self.scaled(score)))

    @torch.no_grad()
    def log_score(self, z: Tensor, index: Tensor) -> Tensor:
        """(B, D), (B, C) -> (B, C)"""
        return self.scaled(scores(z / self.temperature, self.bank, index))

    def scaled(self, score: Tensor) -> Tensor:
        """Logarithms of exp(score) / Z: (B, C) -> (B, C). The first call sets Z."""
        with torch.no_grad():
            first = score.flatten().logsumexp(dim=0) + log(len(self.bank) / score.numel())
            self.log_z.copy_(self.log_z.where(self.log_z.isfinite(), first))
        return score - self.log_z

    @torch.no_grad()
    def update(self, index: Tensor, z: Tensor) -> None:
        """Move the samples that were just seen towards what was seen: (B,), (B, D)"""
        moved = self.bank[index].lerp_(z.to(self.bank.dtype), 1 - self.momentum)
        self.bank[index] = F.normalize(moved, dim=1)


class Negatives(nn.Module):
    """Draws samples of other classes on the device, each alike likely, with replacement.

    Raises ValueError where there is no other class.
    """

    def __init__(self, labels: Tensor, k: int):
        super().__init__()
        self.k = k
        count = labels.bincount()
        fewest = len(labels) - int(count.max())
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
        # Twice around, so that the samples after a class and before it are one stretch.
        around = labels.argsort(stable=True).repeat(2)
        self.register_buffer("around", around, persistent=False)  # (2N,)
        self.register_buffer("count", count, persistent=False)  # (K,)
        self.register_buffer("end", count.cumsum(0), persistent=False)  # (K,)

    def forward(self, labels: Tensor, positive: Tensor) -> Tensor:
        """The positive, then k negatives: (B,), (B,) -> (B, 1 + k)"""
        others = len(self.around) // 2 - self.count[labels, None]  # (B, 1)
        draw = torch.rand(len(labels), 1 + self.k, device=labels.device)
        place = draw.mul_(others).long().add_(self.end[labels, None])
        index = self.around.index_select(0, place.flatten()).view_as(place)
        index[:, 0] = positive
        return index

    def of_same_class(self, labels: Tensor) -> Tensor:
        """A sample of each class given: (B,) -> (B,)"""
        count = self.count[labels]
        place = torch.rand(len(labels), device=labels.device).mul_(count).long()
        return self.around[self.end[labels] - count + place]

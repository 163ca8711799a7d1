"""Arithmetic on rows, shared by several methods. M rows, K classes, C channels.

All of it stays in log space: a probability that underflows costs what its logarithm says.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

NEVER = -1e9  # a logit this low has no probability, and stays finite where -inf gives NaN


def kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(teacher || student) at temperature T: (M, K), (M, K) -> (M,)"""
    log_p = F.log_softmax(student / temperature, dim=1)
    log_q = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * divergence(log_p, log_q)


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(q || p) of logarithms of probabilities: (M, K), (M, K) -> (M,)"""
    return F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(dim=1)


def without(logits: Tensor, index: Tensor) -> Tensor:
    """The same logits with class `index` out of the race: (M, K), (M,) -> (M, K)"""
    return logits.scatter(1, index[:, None], NEVER)


def two_way(logits: Tensor, index: Tensor) -> Tensor:
    """Logits of "class `index`" and of "any other class": (M, K), (M,) -> (M, 2)"""
    chosen = logits.gather(1, index[:, None])
    others = without(logits, index).logsumexp(dim=1, keepdim=True)
    return torch.cat([chosen, others], dim=1)


def decoupled(logits: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of "class `index`, or any other?" (M, 2) and of "which other?" (M, K)."""
    others = without(logits, index)
    every = others.logsumexp(dim=1, keepdim=True)
    either = torch.cat([logits.gather(1, index[:, None]), every], dim=1)
    return F.log_softmax(either, dim=1), others - every


def check_others(classes: int) -> None:
    """ValueError where "which of the other classes?" has one answer only."""
    if classes < 3:
        raise ValueError(
            f"with {classes} classes there is one other class than the target, so its share of the "
            "others is always 1 and that term teaches nothing: use --distill kd"
        )


def unit(x: Tensor, least: float = 1e-6) -> Tensor:
    """(M, C) -> (M, C): rows of length 1; a shorter row than `least` is 0, without a gradient."""
    squared = x.square().sum(dim=1, keepdim=True)  # (M, 1)
    per_length = squared.clamp_min(least**2).rsqrt()
    return x * torch.where(squared > least**2, per_length, 0)

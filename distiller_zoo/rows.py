"""Functions of rows of logits or features, used by several methods. M rows, K classes, C channels.

All of them stay in log space, so that losses are finite where probabilities underflow.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

MASKED = -1e9  # logit of a masked class: probability 0, and finite where -inf would give NaN


def kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(teacher || student) at temperature T: (M, K), (M, K) -> (M,)"""
    log_p = F.log_softmax(student / temperature, dim=1)
    log_q = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * kl_from_log_probs(log_p, log_q)


def kl_from_log_probs(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(q || p) of log-probabilities, log_p the student's: (M, K), (M, K) -> (M,)"""
    return F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(dim=1)


def mask_class(logits: Tensor, index: Tensor) -> Tensor:
    """The logits with that of class `index` masked: (M, K), (M,) -> (M, K)"""
    return logits.scatter(1, index[:, None], MASKED)


def binary_logits(logits: Tensor, index: Tensor) -> Tensor:
    """Logits of "class `index`" and of "any other class": (M, K), (M,) -> (M, 2)"""
    chosen = logits.gather(1, index[:, None])
    others = mask_class(logits, index).logsumexp(dim=1, keepdim=True)
    return torch.cat([chosen, others], dim=1)


def decoupled_log_probs(logits: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of class `index` against all others, and among the others.

    (M, K), (M,) -> (M, 2), (M, K), where class `index` has probability 0 among the others.
    """
    binary, others = binary_logits(logits, index), mask_class(logits, index)
    return F.log_softmax(binary, dim=1), F.log_softmax(others, dim=1)


def check_class_count(classes: int) -> None:
    """Raise ValueError where there are not two classes beside the target to distinguish."""
    if classes < 3:
        raise ValueError(
            f"with {classes} classes there is one other class than the target, so its share of the "
            "others is always 1 and that term teaches nothing: use --distill kd"
        )


def normalize_rows(x: Tensor, eps: float = 1e-6) -> Tensor:
    """(M, C) -> (M, C): rows of length 1; a row shorter than `eps` becomes 0 without gradient."""
    squared = x.square().sum(dim=1, keepdim=True)  # (M, 1)
    inverse_norm = squared.clamp_min(eps**2).rsqrt()
    return x * torch.where(squared > eps**2, inverse_norm, 0)


def center_and_normalize(x: Tensor, eps: float = 1e-6) -> Tensor:
    """(M, C) -> (M, C): rows of mean 0 and length 1, so that inner products are correlations.

    A constant row becomes 0, and so does one whose length without its mean is below `eps`.
    """
    return normalize_rows(x - x.mean(dim=1, keepdim=True), eps)

"""LDRLD as the paper writes it (Xu et al., ICCV 2025), the slow way. B batch, K classes."""

from math import exp

import torch
import torch.nn.functional as F


def kl(logit_s, logit_t, classes, T):
    """KD within a subset of the classes: (B, K), (B, K), (B, k) -> scalar"""
    s, t = logit_s.gather(1, classes) / T, logit_t.gather(1, classes) / T
    return T**2 * F.kl_div(F.log_softmax(s, 1), F.softmax(t, 1), reduction="batchmean")


def ldrld(logit_s, logit_t, labels=None, k=7, alpha=10.5, beta=7.0, T=4.0):
    """Every pair of the student's top classes, all of them, the others: -> scalar."""
    order = logit_s.argsort(dim=1, descending=True)
    local = kl(logit_s, logit_t, order[:, :k], T)
    for i in range(k):
        for j in range(i + 1, k):
            weight = 2 / (1.5 + j - i) * exp(-0.05 * (i + j + 2))
            pair = torch.stack([order[:, i], order[:, j]], dim=1)
            local = local + weight * kl(logit_s, logit_t, pair, T)
    return alpha * local / (k * (k - 1) / 2 + 1) + beta * kl(logit_s, logit_t, order[:, k:], T)

"""SRD as the paper writes it (Miles & Mikolajczyk, AAAI 2024), the slow way. B batch."""

import torch.nn.functional as F


def standard(x):
    """(B, C) -> (B, C)"""
    return (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-4).sqrt()


def srd(mapped, f_t, logit_s, logit_t, exponent=4):
    """Vectors (B, C), (B, C), logits (B, K), (B, K) -> scalar"""
    distance = (standard(mapped) - standard(f_t)).abs() ** exponent
    p, q = F.softmax(logit_s, dim=1), F.softmax(logit_t, dim=1)
    return 2 * distance.sum().log() + F.kl_div(p.log(), q, reduction="batchmean")

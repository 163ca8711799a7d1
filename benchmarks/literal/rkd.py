"""RKD, literally: every difference of two samples is a vector."""

import torch
import torch.nn.functional as F


def rkd(s, t, w_d=25.0, w_a=50.0):
    """Pooled features (B, C), (B, C') -> scalar, by tensors of (B, B, C)."""
    loss = w_d * F.smooth_l1_loss(distances(s), distances(t))
    return loss + w_a * F.smooth_l1_loss(angles(s), angles(t))


def distances(x):
    square = x.pow(2).sum(dim=1)
    result = (square[:, None] + square - 2 * x @ x.T).clamp(min=1e-12).sqrt()
    result = result * (1 - torch.eye(len(x), dtype=x.dtype, device=x.device))
    return result / result[result > 0].mean()


def angles(x):
    direction = F.normalize(x[None] - x[:, None], dim=2)
    return torch.bmm(direction, direction.transpose(1, 2))

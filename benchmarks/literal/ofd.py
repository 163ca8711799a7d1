"""OFD as the paper writes it (Heo et al., ICCV 2019): margins one channel at a time.

B batch, C channels, H x W map.
"""

from math import erfc, exp, pi, sqrt

import torch
import torch.nn.functional as F


def margin(weight, bias):
    """Weight and bias (C,) of a BatchNorm -> (1, C, 1, 1)"""
    values = []
    for std, mean in zip(weight.abs().tolist(), bias.tolist(), strict=True):
        below = 0.5 * erfc(mean / std / sqrt(2))  # share of a normal channel below zero
        if below > 0.001:
            values.append(mean - std * exp(-((mean / std) ** 2) / 2) / sqrt(2 * pi) / below)
        else:
            values.append(-3 * std)
    return torch.tensor(values, dtype=weight.dtype, device=weight.device)[None, :, None, None]


def partial_l2(s, t, margin):
    """Maps (B, C, H, W), margin (1, C, 1, 1) -> scalar, summed over all"""
    t = torch.max(t, margin)
    loss = F.mse_loss(s, t, reduction="none")
    return (loss * ((s > t) | (t > 0)).float()).sum()


def ofd(connected, f_t, margins):
    """Maps (B, C, H, W) of n stages behind the connectors, the teacher's, margins -> scalar"""
    n, total = len(connected), 0
    for i, (s, t) in enumerate(zip(connected, f_t, strict=True)):
        t = F.adaptive_avg_pool2d(t, s.shape[2:])
        total = total + partial_l2(s, t, margins[i]) / 2 ** (n - i - 1) / len(s)
    return total

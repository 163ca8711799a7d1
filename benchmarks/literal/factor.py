"""FT as the paper writes it (Kim et al., NeurIPS 2018): distance of normalised factors.

B batch, C channels, H x W map.
"""

import torch.nn.functional as F


def attention(factor, p1):
    """(B, C, H, W) -> (B, H * W), unit length"""
    return F.normalize(factor.pow(p1).mean(dim=1).reshape(len(factor), -1))


def factor(factor_s, factor_t, p1=2, p2=1):
    """Factors (B, C, H, W), (B, C', H', W') -> scalar"""
    if factor_s.shape[2] > factor_t.shape[2]:
        factor_s = F.adaptive_avg_pool2d(factor_s, factor_t.shape[2:])
    elif factor_s.shape[2] < factor_t.shape[2]:
        factor_t = F.adaptive_avg_pool2d(factor_t, factor_s.shape[2:])
    difference = attention(factor_s, p1) - attention(factor_t, p1)
    return difference.abs().mean() if p2 == 1 else difference.pow(p2).mean()

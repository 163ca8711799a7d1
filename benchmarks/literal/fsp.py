"""FSP as the paper writes it (Yim et al., CVPR 2017): every product, then their mean.

B batch, C channels, H x W map.
"""

import torch.nn.functional as F


def flow(a, b):
    """Neighbouring maps (B, C, H, W), (B, C', H', W') -> (B, C, C')"""
    if a.shape[2] > b.shape[2]:
        a = F.adaptive_avg_pool2d(a, b.shape[2:])
    elif a.shape[2] < b.shape[2]:
        b = F.adaptive_avg_pool2d(b, a.shape[2:])
    a, b = a[:, :, None], b[:, None]  # (B, C, 1, H, W), (B, 1, C', H, W)
    return (a * b).flatten(3).mean(dim=3)


def fsp(f_s, f_t):
    """Maps (B, C, H, W) in network order, student's and teacher's -> scalar"""
    total = 0
    for i in range(len(f_s) - 1):
        difference = flow(f_s[i], f_s[i + 1]) - flow(f_t[i], f_t[i + 1])
        total = total + difference.square().mean()
    return total

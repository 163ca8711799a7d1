"""ReviewKD as the paper writes it (Chen et al., CVPR 2021), on modules that are given.

B batch, C channels, H x W map.
"""

import torch
import torch.nn.functional as F


def fused(module, x, review, size):
    """One fusion (ABF): map (B, C, H, W), fused deeper map, target size -> output, fused map"""
    x = module.conv1(x)
    if review is not None:
        review = F.interpolate(review, x.shape[2:], mode="nearest")
        gate = module.att_conv(torch.cat([x, review], dim=1))  # (B, 2, H, W)
        x = x * gate[:, 0][:, None] + review * gate[:, 1][:, None]
    if x.shape[2:] != size:
        x = F.interpolate(x, size, mode="nearest")
    return module.conv2(x), x


def hcl(s, t):
    """Maps (B, C, H, W) of one shape -> scalar"""
    loss, weight, total = F.mse_loss(s, t), 1.0, 1.0
    for size in (4, 2, 1):
        if size >= s.shape[2]:
            continue
        weight /= 2
        pooled = F.adaptive_avg_pool2d(s, size), F.adaptive_avg_pool2d(t, size)
        loss, total = loss + weight * F.mse_loss(*pooled), total + weight
    return loss / total


def reviewkd(modules, f_s, f_t):
    """Fusions from deep to shallow, maps (B, C, H, W) from shallow to deep -> scalar"""
    total, review = 0, None
    for module, s, t in zip(modules, f_s[::-1], f_t[::-1], strict=True):
        y, review = fused(module, s, review, t.shape[2:])
        total = total + hcl(y, t)
    return total

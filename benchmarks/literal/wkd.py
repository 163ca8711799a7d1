"""WKD as the paper writes it (Lv et al., NeurIPS 2024), a plan for each row.

B batch, K classes, C channels, H x W map.
"""

import torch
import torch.nn.functional as F


def logit(logit_s, logit_t, labels, cost, T=6.0, weight=200.0, reg=0.05, rounds=10):
    """Target, and transport among the other classes: (B, K), (B, K), (B,), (K, K) -> scalar"""
    K = logit_s.shape[1]
    target = F.softmax(logit_t, dim=1) * -F.log_softmax(logit_s, dim=1)
    target = target.gather(1, labels[:, None]).mean()
    every = torch.arange(K, device=labels.device).expand_as(logit_s)
    others = every[every != labels[:, None]].view(-1, K - 1)  # (B, K - 1)
    p = F.softmax(logit_s.gather(1, others) / T, dim=1)
    q = F.softmax(logit_t.gather(1, others) / T, dim=1)
    c = cost[others[:, :, None], others[:, None, :]].clamp_min(0) + 1e-8  # (B, K - 1, K - 1)
    kernel = (-c / reg).exp()
    u = torch.full_like(p, 1 / (K - 1))
    for _ in range(rounds):
        v = q / ((kernel.mT @ u[:, :, None])[:, :, 0] + 1e-8)
        u = p / ((kernel @ v[:, :, None])[:, :, 0] + 1e-8)
    plan = u[:, :, None] * kernel * v[:, None]
    return target + weight * (plan * c).sum(dim=(1, 2)).mean()


def feature(projected, t, grid=1, mean_weight=4.0):
    """Means and deviations of blocks that divide the map: (B, C, H, W), (B, C, H, W) -> scalar"""

    def moments(x):
        h, w = x.shape[2] // grid, x.shape[3] // grid
        blocks = x.unfold(2, h, h).unfold(3, w, w).flatten(4)  # (B, C, grid, grid, h * w)
        return blocks.mean(dim=4), (blocks.var(dim=4) + 1e-5).sqrt()

    mean, deviation = ((s - t).square().sum() for s, t in zip(moments(projected), moments(t)))
    return (mean_weight * mean + deviation) / (grid**2 * len(t))

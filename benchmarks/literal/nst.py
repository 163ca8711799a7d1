"""NST, literally: every pair of channels of every sample, position by position."""

import torch.nn.functional as F


def nst(f_s, f_t):
    """Lists of maps (B, C, H, W) -> scalar, by tensors of (B, C, C', H * W)."""
    return sum(stage(s, t) for s, t in zip(f_s, f_t, strict=True))


def stage(s, t):
    size = min(s.shape[2], t.shape[2])
    s, t = (F.adaptive_avg_pool2d(x, size).flatten(2) for x in (s, t))
    s, t = F.normalize(s, dim=2), F.normalize(t, dim=2)
    return kernel(t, t).mean().detach() + kernel(s, s).mean() - 2 * kernel(s, t).mean()


def kernel(a, b):
    return (a[:, None] * b[:, :, None]).sum(dim=3).pow(2)

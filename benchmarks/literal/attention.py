"""AT, literally: attention maps of each stage, then their distance."""

import torch.nn.functional as F


def attention(f_s, f_t, p=2):
    """Lists of maps (B, C, H, W) -> scalar"""
    return sum(stage(s, t, p) for s, t in zip(f_s, f_t, strict=True))


def stage(s, t, p):
    size = min(s.shape[2], t.shape[2])
    s, t = F.adaptive_avg_pool2d(s, size), F.adaptive_avg_pool2d(t, size)
    return (attention_map(s, p) - attention_map(t, p)).pow(2).mean()


def attention_map(x, p):
    return F.normalize(x.pow(p).mean(dim=1).flatten(1))

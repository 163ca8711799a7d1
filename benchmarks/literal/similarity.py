"""SP, literally: the Gram matrix of a batch, rows of unit length."""

import torch
import torch.nn.functional as F


def similarity(f_s, f_t):
    """Lists of maps (B, C, H, W) -> scalar"""
    return sum(stage(s, t) for s, t in zip(f_s, f_t, strict=True))


def stage(s, t):
    s, t = s.flatten(1), t.flatten(1)
    difference = F.normalize(torch.mm(t, t.T)) - F.normalize(torch.mm(s, s.T))
    return difference.pow(2).sum() / len(s) ** 2

"""DIST as the paper writes it (Huang et al., NeurIPS 2022), the slow way. B batch, K classes."""

import torch
import torch.nn.functional as F


def pearson(a, b):
    """(M, C), (M, C) -> (M,)"""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return torch.stack([(x * y).sum() / (x.norm() * y.norm() + 1e-8) for x, y in zip(a, b)])


def dist(logit_s, logit_t, labels=None, beta=1.0, gamma=1.0, T=4.0):
    """Relations within a sample and within a class: (B, K), (B, K) -> scalar."""
    p, q = F.softmax(logit_s / T, dim=1), F.softmax(logit_t / T, dim=1)
    inter, intra = 1 - pearson(p, q).mean(), 1 - pearson(p.T, q.T).mean()
    return T**2 * (beta * inter + gamma * intra)

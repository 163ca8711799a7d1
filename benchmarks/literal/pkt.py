"""PKT, literally: cosines of a batch as probabilities, and their divergence."""

import torch

EPS = 1e-7


def pkt(s, t):
    """Pooled features (B, C), (B, C') -> scalar"""
    p, q = probabilities(s), probabilities(t)
    return torch.mean(q * torch.log((q + EPS) / (p + EPS)))


def probabilities(x):
    x = x / (torch.sqrt(torch.sum(x**2, dim=1, keepdim=True)) + EPS)
    cosine = (torch.mm(x, x.T) + 1) / 2
    return cosine / torch.sum(cosine, dim=1, keepdim=True)

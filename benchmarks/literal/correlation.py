"""CC, literally: products of the distances of samples that follow each other."""

import torch


def correlation(s, t):
    """Embedded features (B, D) -> scalar"""
    delta = torch.abs(s - t)
    return torch.mean((delta[:-1] * delta[1:]).sum(1))

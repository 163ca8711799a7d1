"""KDSVD, literally: a full singular value decomposition of each map, and its gradient."""

import torch
import torch.nn.functional as F


def kdsvd(f_s, f_t, k=1):
    """Lists of maps (B, C, H, W) -> scalar. Vectors are turned to a sum of at least 0."""
    loss, previous = 0.0, None
    for s, t in zip(f_s, f_t, strict=True):
        (_, v_s), (values, v_t) = svd(s, k + 3), svd(t, k)
        values = F.normalize(values, dim=1)[:, None]
        current = matched(v_s, v_t) * values, v_t * values
        if previous is not None:
            student, teacher = (rbf(a, b) for a, b in zip(previous, current, strict=True))
            loss = loss + (student - teacher.detach()).pow(2).sum() / len(s)
        previous = current
    return loss


def svd(x, n):
    """(B, C, H, W) -> singular values (B, n), right singular vectors (B, C, n)"""
    _, values, v = torch.linalg.svd(x.flatten(2).transpose(1, 2), full_matrices=False)
    v = v.transpose(1, 2)[:, :, :n]
    v = v * torch.where(v.sum(dim=1, keepdim=True) < 0, -1.0, 1.0).to(v)
    return values[:, :n], v


def matched(a, b):
    """For each vector of b, (B, C, k), that of a with the largest |cosine|, with its sign."""
    cosine = torch.matmul(a.transpose(1, 2), b)
    largest = cosine.abs().max(dim=1, keepdim=True)[0]
    mask = torch.where(cosine.abs() == largest, cosine.sign(), torch.zeros_like(cosine))
    return torch.matmul(a, mask)


def rbf(a, b):
    """(B, C, k), (B, C', k) -> (B, C, C', k)"""
    return torch.exp(-(a[:, :, None] - b[:, None]).pow(2) / 8)

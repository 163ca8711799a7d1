"""RRD as the paper writes it (arXiv 2407.12073), the slow way.

B batch, k negatives, N samples, D dimensions.
"""

import torch

from .crd import scores


def relation(student, teacher, t_s, t_t):
    """Similarities (B, C) with the same C vectors -> scalar"""
    p = torch.softmax(teacher / t_t, dim=1)
    return -(p * torch.log(torch.softmax(student / t_s, dim=1))).sum(dim=1).mean()


def queue(z_s, z_t, rows, t_s, t_t):
    """Unit vectors (B, D), the queue (C, D) -> scalar"""
    return relation(z_s @ rows.T, z_t.detach() @ rows.T, t_s, t_t)


def momentum(z_s, z_t, bank_s, bank_t, index, temperature, t_s, t_t):
    """Unit vectors (B, D), banks (N, D), candidates (B, 1 + k) -> scalar; Z of this batch"""
    student, _ = scores(z_s, bank_t, index, temperature)
    teacher, _ = scores(z_t.detach(), bank_s, index, temperature)
    return relation(student, teacher, t_s, t_t)

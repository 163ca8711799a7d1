"""ICD, alias DCD, as the paper writes it (arXiv 2407.11802), the slow way.

B batch, D dimensions.
"""

import torch


def icd(z_s, z_t, scale, b, alpha):
    """Unit vectors (B, D), (B, D) -> scalar"""
    exp = torch.exp(z_s @ z_t.T * scale + b)  # (B, B)
    of_students = exp / exp.sum(dim=1, keepdim=True)
    of_teachers = exp.T / exp.T.sum(dim=1, keepdim=True)
    discriminate = -torch.log(of_students.diagonal()).mean()
    consistent = (of_teachers * torch.log(of_teachers / of_students)).sum(dim=1).mean()
    return discriminate + alpha * consistent

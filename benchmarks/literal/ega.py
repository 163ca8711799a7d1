"""EGA as the paper writes it (Ma et al., BMVC 2022), the slow way. B batch, C channels."""

import torch


def ega(f_s, f_t, nodes=1.0, edges=0.3):
    """Features (B, C) of both networks -> scalar, one correlation at a time."""
    students, teachers = list(f_s), list(f_t)
    between, among_s, among_t = (
        graph(students, teachers),
        graph(students, students),
        graph(teachers, teachers),
    )
    same = torch.eye(len(f_s), dtype=f_s.dtype)
    return nodes * torch.norm(between - same) + edges * torch.norm(among_s - among_t)


def graph(left, right):
    """Two lists of B vectors (C,) -> (B, B)"""
    return torch.stack([torch.stack([pearson(a, b) for b in right]) for a in left])


def pearson(a, b):
    """(C,), (C,) -> scalar"""
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / ((a**2).sum().sqrt() * (b**2).sum().sqrt())

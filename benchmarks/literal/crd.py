"""CRD as the paper writes it (Tian et al., ICLR 2020), the slow way.

B batch, k negatives, N samples, D dimensions.
"""

import numpy as np
import torch

EPS = 1e-7


def scores(z, bank, index, temperature, constant=None):
    """Vectors (B, D), bank (N, D), candidates (B, 1 + k) -> scores (B, 1 + k) and Z."""
    rows = bank.index_select(0, index.flatten()).view(*index.shape, -1)  # (B, 1 + k, D)
    score = torch.exp(torch.bmm(rows, z[:, :, None])[:, :, 0] / temperature)
    if constant is None:
        constant = score.mean().detach() * len(bank)
    return score / constant, constant


def nce_loss(score, n):
    """Scores (B, 1 + k), the positive's first -> scalar"""
    k = score.shape[1] - 1
    chance = k / n
    positive = torch.log(score[:, 0] / (score[:, 0] + chance + EPS))
    rest = torch.log(chance / (score[:, 1:] + chance + EPS))
    return -(positive.sum() + rest.sum()) / len(score)


def updated_bank(bank, index, z, momentum):
    """The bank (N, D) after an update with the vectors (B, D) of the samples (B,)."""
    row = momentum * bank[index] + (1 - momentum) * z.detach()
    bank = bank.clone()
    bank[index] = row / row.norm(dim=1, keepdim=True)
    return bank


def crd(z_s, z_t, bank_s, bank_t, index, temperature, constants=(None, None)):
    """Unit vectors (B, D), banks (N, D), candidates (B, 1 + k) -> scalar"""
    student, _ = scores(z_s, bank_t, index, temperature, constants[0])
    teacher, _ = scores(z_t, bank_s, index, temperature, constants[1])
    return nce_loss(student, len(bank_t)) + nce_loss(teacher, len(bank_s))


def other_samples(labels):
    """Labels (N,) -> class: the samples of all other classes"""
    return {c: np.flatnonzero(labels != c) for c in np.unique(labels)}


def negatives(others, of, k):
    """Samples of other classes, labels (B,) of a batch -> (B, k), a permutation each."""
    return np.stack([np.random.permutation(others[c])[:k] for c in of])  # noqa: NPY002


def queue(z_s, z_t, bank, nce_t):
    """InfoNCE against a queue that the batch has entered: (B, D), (B, D), (k, D) -> scalar."""
    losses = []
    for s, t in zip(z_s, z_t):
        similarities = torch.cat([(s @ t)[None], bank @ s])
        losses.append(-torch.log(torch.softmax(similarities / nce_t, dim=0)[0]))
    return torch.stack(losses).mean()

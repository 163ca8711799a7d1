"""DKD, RLD and NKD where probabilities underflow, against sums of logarithms row by row."""

from dataclasses import replace

import pytest
import torch

from distiller_zoo.dkd import DKD
from distiller_zoo.nkd import NKD
from distiller_zoo.rld import RLD
from tests.adapters import bare_setup, only_logits, row_losses

K, LABEL, T = 10, 3, 4.0
SETUP = replace(bare_setup(), student=only_logits(torch.zeros(2, K)))


def kl(s, t):
    """KL(teacher || student) of two lists of logits."""
    log_p, log_q = s - s.logsumexp(0), t - t.logsumexp(0)
    return (log_q.exp() * (log_q - log_p)).sum()


def against_rest(row, label):
    """One row (K,) as logits of its class and of all others together: (2,)"""
    rest = torch.tensor([k for k in range(K) if k != label])
    return torch.stack([row[label], row[rest].logsumexp(0)])


def dkd_by_hand(s, t):
    s, t = s / T, t / T
    others = torch.tensor([k for k in range(K) if k != LABEL])
    target = kl(against_rest(s, LABEL), against_rest(t, LABEL))
    return T**2 * (target + 8 * kl(s[others], t[others]))


def rld_by_hand(s, t):
    below = torch.tensor([k for k in range(K) if t[k] < t[LABEL]])
    s, t = s / T, t / T
    confidence = kl(against_rest(s, LABEL), against_rest(t, int(t.argmax())))
    return T**2 * (confidence + 8 * kl(s[below], t[below]))


def nkd_by_hand(s, t):
    others = torch.tensor([k for k in range(K) if k != LABEL])
    log_p, log_q = s - s.logsumexp(0), t - t.logsumexp(0)
    target = -log_q[LABEL].exp() * log_p[LABEL]
    p, q = s[others] - s[others].logsumexp(0), t[others] - t[others].logsumexp(0)
    return target - 1.5 * (q.exp() * p).sum()


def rows(size):
    """Students and teachers that are certain of the target, of another class, of two classes."""
    steep = torch.linspace(-size, size, K)
    low = torch.full((K,), -size).double()
    of_target, of_other, of_two = low.clone(), low.clone(), low.clone()
    of_target[LABEL] = of_other[0] = of_two[1] = of_two[LABEL] = size
    kinds = [steep.double(), steep.flip(0).double(), of_target, of_other, of_two]
    pairs = [(s, t) for s in kinds for t in kinds]
    return torch.stack([s for s, _ in pairs]), torch.stack([t for _, t in pairs])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [1.0, 500.0, 1e4])
@pytest.mark.parametrize(
    ("method", "by_hand"), [(DKD, dkd_by_hand), (RLD, rld_by_hand), (NKD, nkd_by_hand)]
)
def test_equals_sums_of_logarithms(method, by_hand, size, dtype):
    student, teacher = rows(size)
    if method is RLD:  # with no class below the target there is nothing to compare by hand
        some = (teacher < teacher[:, LABEL, None]).any(dim=1)
        student, teacher = student[some], teacher[some]
    expected = torch.stack([by_hand(s, t) for s, t in zip(student, teacher)])
    student = student.to(dtype).requires_grad_()
    labels = torch.full((len(student),), LABEL)
    loss = row_losses(method(method.Options(), SETUP))(student, teacher.to(dtype), labels)
    loss.sum().backward()
    assert student.grad.isfinite().all()
    rtol = 1e-9 if dtype == torch.float64 else 1e-4
    off = (loss.double() - expected).abs()
    assert (off <= rtol * expected.abs() + rtol * 1e-2).all(), off.max()

from dataclasses import replace
from math import exp

import pytest
import torch

from distiller_zoo.ldrld import LDRLD
from distiller_zoo.rows import kl
from tests.adapters import bare_setup, only_logits


def ldrld(k=7, classes=10, **options):
    setup = replace(bare_setup(), student=only_logits(torch.zeros(2, classes)))
    return LDRLD(LDRLD.Options(ldrld_k=k, **options), setup).double()


def test_pairs_by_hand():
    """Each pair of the student's top 4 by itself, with its ranks' weight."""
    student, teacher = torch.randn(2, 1, 10).double()
    top = student[0].argsort(descending=True)[:4]
    total = kl(student[:, top], teacher[:, top], 4.0)
    for i in range(4):
        for j in range(i + 1, 4):
            weight = 2 / (1.5 + j - i) * exp(-0.05 * (i + 1 + j + 1))
            pair = top[[i, j]]
            total = total + weight * kl(student[:, pair], teacher[:, pair], 4.0)
    local, remaining = ldrld(4).losses(student, teacher)
    torch.testing.assert_close(local, total / 7)
    rest = [c for c in range(10) if c not in top]
    torch.testing.assert_close(remaining, kl(student[:, rest], teacher[:, rest], 4.0))


def test_the_order_of_the_top_classes_is_what_counts_most():
    """The paper: a pair of high ranks close to each other weighs more."""
    weight = ldrld().pair_weight
    assert torch.equal(weight, weight.T)
    first = weight[0, 1:]
    assert (first[:-1] > first[1:]).all()
    neighbours = weight.diagonal(1)
    assert (neighbours[:-1] > neighbours[1:]).all()


def test_the_remaining_loss_does_not_move_the_top_classes():
    student = torch.randn(5, 10).double().requires_grad_()
    ldrld(3).losses(student, torch.randn(5, 10).double())[1].sum().backward()
    moved = student.grad != 0
    assert torch.equal(moved, student < student.detach().sort(dim=1).values[:, 7:8])


@pytest.mark.parametrize("size", [0.0, 500.0, 1e4])
def test_finite_for_equal_and_for_huge_logits(size):
    student = torch.linspace(-size, size, 10)[None].requires_grad_()
    loss = ldrld().float().per_row(student, torch.linspace(size, -size, 10)[None], None)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize(
    ("k", "classes", "says"),
    [
        (10, 10, "of 10 classes, the top 10 .* --ldrld_k takes 2 to 8"),
        (9, 10, "--ldrld_k takes 2 to 8"),
        (1, 10, "--ldrld_k takes 2 to 8"),
        (7, 3, "of 3 classes, the top 7 .* use --distill kd"),
    ],
)
def test_where_k_leaves_no_pair_or_no_other_classes(k, classes, says):
    with pytest.raises(ValueError, match=says):
        ldrld(k, classes)

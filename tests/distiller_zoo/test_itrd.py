from dataclasses import replace

import pytest
import torch

from distiller_zoo.itrd import (
    ITRD,
    correlation_loss,
    information_potential,
    mutual_information_loss,
)
from tests.adapters import bare_setup
from tests.adapters.ega import only_pooled


def itrd(c_s, c_t):
    student, teacher = only_pooled(torch.zeros(2, c_s)), only_pooled(torch.zeros(2, c_t))
    return ITRD(ITRD.Options(), replace(bare_setup(), student=student, teacher=teacher))


def test_settings_of_the_paper():
    method = itrd(5, 7)
    student, teacher = only_pooled(torch.randn(6, 5)), only_pooled(torch.randn(6, 7))
    mutual, correlation = method.losses(student.pooled, teacher.pooled)
    loss = method(student, teacher, None)
    torch.testing.assert_close(loss, 0.05 * mutual + 2 * correlation)
    assert method.options.itrd_alpha == 1.5


def test_correlation_does_not_see_scale_and_shift_of_a_dimension():
    s, t = torch.randn(2, 8, 5).double()
    scale, shift = torch.rand(5) + 0.5, torch.randn(5)
    moved = correlation_loss(scale * s + shift, t, 1.5)
    torch.testing.assert_close(moved, correlation_loss(s, t, 1.5))


def test_the_best_correlation_by_hand():
    """Deviations divide by B - 1 and the mean by B: it falls short of 1 by 1/B in each of C."""
    t = torch.randn(8, 5).double()
    expected = torch.tensor(5 * (1 / 8) ** 3.0).double().log2()
    torch.testing.assert_close(correlation_loss(3 * t - 1, t, 1.5), expected)


def test_information_potential_of_orthogonal_and_of_equal_samples():
    """Renyi's entropy of order 2 in bits: log2(B) and 0."""
    assert information_potential(torch.eye(4)) == 2.0**-2
    assert information_potential(torch.ones(4, 4)) == 1


def test_a_teacher_whose_samples_are_all_equal_gives_no_mutual_information():
    """With all teacher vectors equal the joint matrix is the student's own."""
    s = torch.randn(6, 5)
    assert mutual_information_loss(s, torch.ones(6, 3)).abs() < 1e-6
    assert mutual_information_loss(s, torch.eye(6)) > 0


@pytest.mark.parametrize("c_t", [5, 7])
@pytest.mark.parametrize(
    "features",
    [torch.zeros(4, 5), torch.ones(4, 5), torch.ones(1, 5), 1e4 * torch.eye(4, 5)],
    ids=["zeros", "equal", "one", "huge"],
)
def test_finite_and_moderate(features, c_t):
    for teacher in (torch.zeros(len(features), c_t), torch.randn(len(features), c_t)):
        s, method = features.clone().requires_grad_(), itrd(5, c_t)
        loss = method(only_pooled(s), only_pooled(teacher), None)
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad.isfinite().all() for p in (s, *method.parameters()))
        assert s.grad.abs().max() < 1e3

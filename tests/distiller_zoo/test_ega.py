from dataclasses import replace

import pytest
import torch
from torch import nn

from distiller_zoo.ega import EGA
from tests.adapters import bare_setup
from tests.adapters.ega import only_pooled


def ega(c_s=6, c_t=6, **options):
    student, teacher = only_pooled(torch.zeros(2, c_s)), only_pooled(torch.zeros(2, c_t))
    setup = replace(bare_setup(), student=student, teacher=teacher)
    return EGA(EGA.Options(**options), setup)


def loss_of(method, s, t):
    return method(only_pooled(s), only_pooled(t), None)


def test_correlations_by_hand():
    """Student samples correlate by -1 with each other, the teacher's by 1/2."""
    s = torch.tensor([[1.0, 0.0, -1.0], [-1.0, 0.0, 1.0]])
    t = torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, -1.0]])
    nodes = [[1.0, 0.5], [-1.0, -0.5]]
    off = (torch.tensor(nodes) - torch.eye(2)).square().sum().sqrt()
    torch.testing.assert_close(loss_of(ega(3, 3, ega_edges=0.0), s, t), off)
    edges = torch.tensor(2 * 1.5**2).sqrt()
    torch.testing.assert_close(loss_of(ega(3, 3, ega_nodes=0.0, ega_edges=1.0), s, t), edges)


def test_scale_and_shift_of_a_vector_do_not_count():
    s, t = torch.randn(2, 5, 6).double()
    scale, shift = torch.rand(5, 1) + 0.5, torch.randn(5, 1)
    torch.testing.assert_close(loss_of(ega(), scale * s + shift, t), loss_of(ega(), s, t))


def test_a_student_that_is_the_teacher_has_no_edge_loss_and_a_finite_gradient():
    t = torch.randn(5, 6)
    s = t.clone().requires_grad_()
    loss = loss_of(ega(), s, t)
    loss.backward()
    assert s.grad.isfinite().all()
    assert loss_of(ega(ega_nodes=0.0), s, t) == 0


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_constant_vectors_and_equal_rows(value):
    s = torch.full((4, 6), value)
    s[2:] = torch.linspace(0, 1, 6)
    s.requires_grad_()
    loss = loss_of(ega(), s, torch.full((4, 6), value))
    loss.backward()
    assert loss.isfinite()
    assert s.grad.isfinite().all()
    assert s.grad.abs().max() < 1e3


def test_other_widths_are_led_to_the_teachers():
    assert isinstance(ega(4, 7).embed, nn.Linear)
    assert loss_of(ega(4, 7), torch.randn(3, 4), torch.randn(3, 7)).isfinite()
    assert not list(ega(7, 7).parameters())

from dataclasses import replace

import pytest
import torch

from benchmarks.literal import mlkd as literal
from dataset.base import Batch
from distiller_zoo.mlkd import MLKD, gram_difference, share_below_median
from distiller_zoo.views import z_score
from tests.adapters import bare_setup, only_logits
from tests.adapters.kd import STANDARDIZE


def loss_of(student, teacher, *views):
    method = MLKD(MLKD.Options(), replace(bare_setup(), views=views))
    batch = Batch(None, torch.zeros(len(student), dtype=torch.long), None)
    return method(only_logits(student), only_logits(teacher), batch)


@pytest.mark.parametrize("n", [6, 7])
@pytest.mark.parametrize("views", [(), (STANDARDIZE,)], ids=["plain", "standardised"])
def test_one_view_stands_for_both_augmentations(views, n):
    """The reference form, checked against the reference numbers with two, given the same twice."""
    s, t = torch.randn(2, n, 10).double()
    expected = literal.mlkd(s, t, s, t, 4.0, z_score if views else lambda x: x)
    torch.testing.assert_close(loss_of(s, t, *views), expected)


def test_a_student_equal_to_the_teacher_has_no_loss():
    t = torch.randn(6, 10).double()
    assert loss_of(t, t).abs() < 1e-12


def test_gram_difference_by_hand():
    """Two certain samples of one class against two of different classes."""
    p, q = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]), torch.eye(2)[None]
    assert gram_difference(p, q).tolist() == [[1, 1]]  # samples: 1 where the teacher has 0
    assert gram_difference(p.mT, q.mT).tolist() == [
        [1, 1]
    ]  # classes: 2 and 0 where the teacher has 1


def test_relations_do_not_see_the_order_of_samples_and_classes():
    """What they compare is unchanged when both networks' samples and classes are renamed alike."""
    s, t = torch.randn(2, 6, 10).double()
    rows, columns = torch.randperm(6), torch.randperm(10)
    torch.testing.assert_close(loss_of(s[rows][:, columns], t[rows][:, columns]), loss_of(s, t))


def test_share_below_the_median():
    x = torch.tensor([[3.0, 1.0, 2.0, 4.0], [1.0, 1.0, 1.0, 2.0]])
    assert share_below_median(x).tolist() == [0.5, 0.75]


@pytest.mark.parametrize("size", [500.0, 1e4])
def test_finite_for_huge_logits(size):
    student = torch.full((3, 10), -size)
    student[:, 0] = size
    student.requires_grad_()
    loss = loss_of(student, torch.linspace(-size, size, 10).expand(3, 10))
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()

import pytest
import torch
import torch.nn.functional as F

from cli.parse import parse_student
from distiller_zoo.base import Rows
from distiller_zoo.dist import DIST, pearson
from tests.adapters import bare_setup


def dist(**options):
    method = DIST(DIST.Options(**options), bare_setup())

    def loss(student, teacher, weight=None):
        weight = student.new_ones(student.shape[:2]) if weight is None else weight
        return method.loss(Rows(student, teacher, weight), torch.arange(student.shape[1]))

    return loss


def test_correlation_by_hand():
    a, b = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 0.0, 2.0]])
    torch.testing.assert_close(pearson(a, b, dim=1), torch.tensor([0.5]))
    torch.testing.assert_close(pearson(a.T, b.T, dim=0), torch.tensor([0.5]))


def test_what_counts_of_a_teacher_is_the_order_and_not_the_scale():
    """The paper: a relation is kept by any scale and shift, of each row or column its own."""
    student = torch.randn(6, 5).double()
    p = F.softmax(student, dim=1)
    for dim, scale in ((1, torch.rand(6, 1)), (0, torch.rand(1, 5))):
        assert (pearson(p, (1 + scale) * p - scale, dim) - 1).abs().max() < 1e-5


def test_both_relations_by_hand():
    """The teacher has the classes exchanged: all correlations are -1."""
    student = torch.tensor([[[3.0, 0.0], [0.0, 3.0]]])
    opposite = student.flip(2)
    torch.testing.assert_close(dist(dist_tau=1.0)(student, opposite), torch.tensor(4.0))
    torch.testing.assert_close(
        dist(dist_beta=0.5, dist_gamma=2.0, dist_tau=3.0)(student, opposite),
        torch.tensor(9 * (0.5 * 2 + 2 * 2.0)),
    )


def test_views_are_correlated_apart():
    """Two regions of every sample: each is a batch of its own, with the weight of the region."""
    student, teacher = torch.randn(2, 2, 6, 5).double()
    loss, weight = dist(), torch.tensor([0.25, 0.5]).double()[:, None].expand(2, 6)
    apart = [w[0] * loss(s[None], t[None]) for s, t, w in zip(student, teacher, weight)]
    torch.testing.assert_close(loss(student, teacher, weight), sum(apart))


@pytest.mark.parametrize("size", [500.0, 1e4])
def test_finite_where_probabilities_are_equal_or_underflow(size):
    student = torch.zeros(1, 4, 10)
    student[0, 1:, 0] = size
    student.requires_grad_()
    teacher = torch.stack([torch.zeros(10), *size * torch.eye(10)[:3]])[None]
    loss = dist()(student, teacher)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_of_one_sample_the_classes_teach_nothing():
    student = torch.randn(1, 1, 10, requires_grad=True)
    loss = dist(dist_beta=0.0)(student, torch.randn(1, 1, 10))
    loss.backward()
    assert (loss.item(), student.grad.abs().max()) == (16, 0)


def test_published_temperature():
    assert parse_student(["--distill", "dist"]).dist_tau == 4
    line = "--distill dist --dataset imagenet --data_dir x --model_t ResNet34 --model_s ResNet18"
    assert parse_student(line.split()).dist_tau == 1
    assert parse_student(["--distill", "dist", "--logit_stand"]).dist_tau == 2

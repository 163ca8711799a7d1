import pytest
import torch

from cli.parse import parse_student
from dataset.base import Batch
from distiller_zoo.skd import SKD, direction_losses
from tests.adapters import bare_setup, only_logits


def loss_of(student, teacher):
    batch = Batch(None, torch.arange(len(student)), None)
    method = SKD(SKD.Options(), bare_setup())
    loss = method(only_logits(student), only_logits(teacher), batch)
    return loss, method.parts


def test_a_length_by_hand():
    """Two samples, at right angles for the student and alike for the teacher: D has the rows
    (0, -1) and (-1, 0), their covariance 1/2 on the diagonal and -1/2 beside it; with 1/2 more on
    the diagonal the inverse has 4/3 there."""
    student, teacher = torch.eye(2)[None].double(), torch.ones(1, 2, 2).double()
    lengths = direction_losses(student, teacher, tik=0.5, divisor=1)
    torch.testing.assert_close(lengths, torch.full((1, 2), (4 / 3) ** 0.5).double())


def test_the_direction_does_not_see_the_scale_of_logits():
    """Cosines between samples are the same whatever the length of each sample's logits is."""
    student, teacher = torch.randn(2, 1, 6, 10).double()
    lengths = direction_losses(student, teacher, 0.1, 10)
    scale = 1 + torch.rand(1, 6, 1).double()
    torch.testing.assert_close(direction_losses(scale * student, teacher, 0.1, 10), lengths)
    order = torch.randperm(6)
    permuted = direction_losses(student[:, order], teacher[:, order], 0.1, 10)
    torch.testing.assert_close(permuted, lengths[:, order])


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("size", [0.0, 1.0, 1e4])
def test_finite_where_both_are_equal(size, n):
    student = (size * torch.randn(n, 10)).requires_grad_()
    loss, parts = loss_of(student, student.detach().clone())
    loss.backward()
    assert parts["direction"] < 1e-3
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_published_weights():
    def weights(line=""):
        options = parse_student(f"--distill skd {line}".split())
        return options.gamma, options.alpha, options.beta, options.kd_T

    assert weights("--model_t vgg13 --model_s vgg8") == (0.1, 0, 0.9, 4)
    assert weights("--model_t resnet32x4 --model_s resnet8x4") == (0.5, 0, 0.5, 4)

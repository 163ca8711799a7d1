import torch
import torch.nn.functional as F

from cli.parse import parse_student
from distiller_zoo.kd import KD
from distiller_zoo.wsld import WSLD, weights
from tests.adapters import bare_setup, row_losses


def wsld(temperature):
    return row_losses(WSLD(WSLD.Options(temperature), bare_setup()))


def test_weights_by_hand():
    """As good as the teacher: 1 - 1/e; a student that is certain: 0; a teacher that is: 1."""
    uniform, certain = torch.zeros(1, 2), torch.tensor([[200.0, 0.0]])
    labels = torch.tensor([0])

    def weight(student, teacher):
        return weights(student, teacher, labels).item()

    assert abs(weight(uniform, uniform) - 0.6321206) < 1e-6
    assert weight(certain, uniform) == 0
    assert weight(uniform, certain) == 1


def test_where_the_teacher_is_certain_of_the_label_it_is_kd():
    """Weights are 1 there, and KD differs from cross-entropy by the teacher's entropy."""
    student, labels = torch.randn(2, 4, 10).double()[0].requires_grad_(), torch.arange(4)
    teacher = 40.0 * F.one_hot(labels, 10).double()
    gradients = [
        torch.autograd.grad(method(student, teacher, labels).sum(), student)[0]
        for method in (wsld(4.0), KD(KD.Options(4.0), bare_setup()).per_row)
    ]
    torch.testing.assert_close(*gradients)


def test_no_gradient_through_the_weights():
    student, teacher = torch.randn(2, 4, 10).double()
    student.requires_grad_()
    labels = torch.arange(4)
    loss = wsld(2.0)(student, teacher, labels)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    p, q = F.softmax(student / 2, dim=1), F.softmax(teacher / 2, dim=1)
    fixed = weights(student, teacher, labels)[:, None]
    torch.testing.assert_close(gradient, 2 * fixed * (p - q))


def test_finite_for_huge_logits():
    for size in (500.0, 1e4):
        student = torch.full((2, 10), -size)
        student[:, 0] = size
        student.requires_grad_()
        teacher = torch.stack([torch.linspace(size, -size, 10), torch.linspace(-size, size, 10)])
        loss = wsld(4.0)(student, teacher, torch.tensor([0, 3]))
        loss.sum().backward()
        assert loss.isfinite().all()
        assert student.grad.isfinite().all()


def test_settings_of_the_paper():
    options = parse_student(["--distill", "wsld"])
    assert (options.kd_T, options.beta) == (2, 2.5)
    assert parse_student(["--distill", "kd"]).kd_T == 4

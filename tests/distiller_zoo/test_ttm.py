"""TTM and WTTM."""

import pytest
import torch
import torch.nn.functional as F

from cli.parse import parse_student
from distiller_zoo.kd import KD
from distiller_zoo.ttm import TTM, power_transform
from distiller_zoo.wttm import WTTM
from tests.adapters import bare_setup


def of(cls, **options):
    return cls(cls.Options(**options), bare_setup()).per_row


def test_a_power_by_hand():
    """Square roots of (4, 4, 1) / 9 are (2, 2, 1) / 3."""
    log_q, log_sum = power_transform(torch.log(torch.tensor([[4.0, 4.0, 1.0]])), 0.5)
    torch.testing.assert_close(log_q.exp(), torch.tensor([[0.4, 0.4, 0.2]]))
    torch.testing.assert_close(log_sum.exp(), torch.tensor([5 / 3]))


def test_a_power_is_a_temperature_of_the_teacher_alone():
    """The paper: TTM is KD without the temperature on the student's side."""
    student, teacher = torch.randn(2, 5, 10).double()
    labels = torch.arange(5)
    kd = KD(KD.Options(4.0), bare_setup()).per_row
    ttm = of(TTM, ttm_l=0.25)(student / 4, teacher, labels)
    torch.testing.assert_close(16 * ttm, kd(student, teacher, labels))


def test_smooth_teachers_weigh_more():
    """From 1 where the teacher is certain to K^(1 - l) where it is uniform."""
    student = torch.randn(1, 10).expand(2, 10)
    teacher = torch.stack([100 * F.one_hot(torch.tensor(3), 10).float(), torch.zeros(10)])
    labels, power = torch.arange(2), 0.4
    weight = of(WTTM, ttm_l=power)(student, teacher, labels)
    weight = weight / of(TTM, ttm_l=power)(student, teacher, labels)
    torch.testing.assert_close(weight, torch.tensor([1, 10**0.6]))


@pytest.mark.parametrize("cls", [TTM, WTTM])
@pytest.mark.parametrize("size", [500.0, 1e4])
def test_finite_where_probabilities_underflow(size, cls):
    student = torch.linspace(-size, size, 10)[None].requires_grad_()
    loss = of(cls)(student, torch.linspace(size, -size, 10)[None], torch.tensor([0]))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert student.grad.isfinite().all()


def test_settings_that_are_published():
    def setting(name, teacher, student):
        line = f"--distill {name} --model_t {teacher} --model_s {student}"
        options = parse_student(line.split())
        return options.gamma, options.alpha, options.beta, options.ttm_l

    assert setting("ttm", "vgg13", "vgg8") == (1, 0, 45, 0.1)
    assert setting("ttm", "wrn_40_2", "wrn_40_1") == (1, 0, 76, 0.1)
    assert setting("wttm", "vgg13", "vgg8") == (1, 0, 4, 0.2)

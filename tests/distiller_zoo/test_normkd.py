from dataclasses import replace

import pytest
import torch

from cli.parse import parse_student
from distiller_zoo.kd import KD
from distiller_zoo.normkd import NormKD
from tests.adapters import bare_setup, only_logits

SETUP = replace(bare_setup(), student=only_logits(torch.zeros(2, 10)))


def normkd(T_norm=2.0):
    return NormKD(NormKD.Options(T_norm), SETUP).per_row


def test_it_is_kd_at_the_temperature_of_each_row():
    """Where both networks have the deviation 3: KD at T = 2 * 3."""
    student, teacher = (3 * x / x.std(dim=1, keepdim=True) for x in torch.randn(2, 5, 10).double())
    labels = torch.arange(5)
    kd = KD(KD.Options(6.0), SETUP).per_row(student, teacher, labels)
    torch.testing.assert_close(normkd()(student, teacher, labels), kd)


def test_scale_and_shift_of_the_student_do_not_count_those_of_the_teacher_weigh():
    """The paper: normalised logits have one distribution for all samples."""
    student, teacher = torch.randn(2, 5, 10).double()
    labels = torch.arange(5)
    loss = normkd()(student, teacher, labels)
    torch.testing.assert_close(normkd()(7 * student - 2, teacher, labels), loss)
    torch.testing.assert_close(normkd()(student, 3 * teacher + 1, labels), 9 * loss)


@pytest.mark.parametrize("value", [0.0, 0.3, 1e4])
def test_equal_logits_have_no_gradient_and_no_nan(value):
    student = torch.stack([torch.full((10,), value), torch.randn(10)]).requires_grad_()
    teacher = torch.stack([torch.randn(10), torch.full((10,), value)])
    loss = normkd()(student, teacher, torch.arange(2))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert loss[0] > 0 == student.grad[0].abs().max()
    assert student.grad.isfinite().all()


def test_two_classes_are_refused():
    with pytest.raises(ValueError, match="2 logits over their standard deviation are always"):
        NormKD(NormKD.Options(), replace(SETUP, student=only_logits(torch.zeros(2, 2))))


def test_published_settings():
    def setting(line):
        options = parse_student(f"--distill normkd {line}".split())
        return options.gamma, options.alpha, options.beta, options.normkd_T_norm

    assert setting("") == (0.1, 0, 0.9, 2)
    on_imagenet = "--dataset imagenet --data_dir x --model_t ResNet50 --model_s MobileNetV1"
    assert setting(on_imagenet) == (0.5, 0, 0.5, 1)
    assert setting("--logit_stand --base_temp 3") == (0.1, 0, 9, 3)

from dataclasses import replace

import torch

from cli import parse
from distiller_zoo.dkd import DKD
from distiller_zoo.rld import RLD, family
from tests.adapters import bare_setup, only_logits

SETUP = replace(bare_setup(), student=only_logits(torch.zeros(2, 10)))


def rld(**options):
    return RLD(RLD.Options(**options), SETUP).per_row


def test_a_teacher_that_is_right_makes_it_dkd():
    """Where the target is the teacher's best class, nothing but the target is masked."""
    student, teacher = torch.randn(2, 5, 10).double()
    labels = teacher.argmax(dim=1)
    dkd = DKD(DKD.Options(4.0, 1.0, 8.0), SETUP).per_row(student, teacher, labels)
    torch.testing.assert_close(rld()(student, teacher, labels), dkd)


def test_what_the_teacher_puts_before_the_target_is_not_taught():
    teacher = torch.tensor([[3.0, 2.0, 1.0, 0.0]])  # the target is class 2: 0 and 1 are masked
    student = torch.randn(1, 4, requires_grad=True)
    rld(rld_alpha=0.0)(student, teacher, torch.tensor([2])).sum().backward()
    assert student.grad.abs().max() < 1e-6, "a single class is left: there is nothing to learn"
    rld(rld_alpha=0.0)(student, teacher, torch.tensor([1])).sum().backward()
    assert student.grad[0, :2].abs().max() == 0
    assert student.grad[0, 2:].abs().min() > 1e-3


def test_a_target_that_the_teacher_puts_last():
    student = torch.randn(1, 4, requires_grad=True)
    teacher = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    loss = rld(rld_alpha=0.0)(student, teacher, torch.tensor([3]))
    loss.sum().backward()
    assert loss.item() == 0
    assert student.grad.abs().max() == 0


def test_finite_for_huge_logits():
    student = torch.full((1, 10), -500.0).index_fill(1, torch.tensor([0]), 500.0).requires_grad_()
    loss = rld()(student, torch.linspace(500, -500, 10)[None], torch.tensor([3]))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert student.grad.isfinite().all()


def test_settings():
    def settings(line):
        options = parse.parse_student(f"--distill rld {line} --logit_stand".split())
        return options.kd_T, options.beta

    assert settings("--model_t resnet32x4 --model_s resnet8x4") == (5, 6)
    assert settings("--model_t resnet32x4 --model_s ShuffleV2") == (2, 9)
    assert family("wrn_40_2") == "wrn"
    assert family("torchvision:resnet18") == family("resnet20") != family("torchvision:vgg11")

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from cli.parse import parse_student
from distiller_zoo.nkd import NKD
from tests.adapters import bare_setup, only_logits, row_losses

SETUP = replace(bare_setup(), student=only_logits(torch.zeros(2, 10)))


def nkd(**options):
    return row_losses(NKD(NKD.Options(**options), SETUP))


def test_a_teacher_that_is_certain_gives_cross_entropy():
    """The target's cross-entropy is weighed by the teacher's probability, here 1."""
    student, labels = torch.randn(4, 10).double(), torch.arange(4)
    teacher = 100.0 * F.one_hot(labels, 10).double()
    loss = nkd(nkd_gamma=0.0)(student, teacher, labels)
    torch.testing.assert_close(loss, F.cross_entropy(student, labels, reduction="none"))


def test_the_others_do_not_see_the_target():
    teacher, labels = torch.randn(4, 10).double(), torch.arange(4)
    student = torch.randn(4, 10).double().requires_grad_()
    loss = nkd(nkd_gamma=1.0)(student, teacher, labels) - nkd(nkd_gamma=0.0)(
        student, teacher, labels
    )
    loss.sum().backward()
    assert student.grad[labels, labels].abs().max() < 1e-12


def test_finite_for_huge_logits():
    student = torch.full((1, 10), -500.0).index_fill(1, torch.tensor([0]), 500.0).requires_grad_()
    loss = nkd()(student, torch.linspace(500, -500, 10)[None], torch.tensor([3]))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        ("", (1, 1.5)),
        ("--sdd 1,2", (4, 8)),
        ("--sdd 1,2,4 --nkd_T 2", (2, 8)),
        ("--sdd 1,2 --logit_stand", (2, 8)),
        ("--sdd 1,2 --no_pair_defaults", (1, 1.5)),
    ],
)
def test_settings_behind_scale_decoupling(flags, settings):
    options = parse_student(f"--distill nkd {flags}".split())
    assert (options.nkd_T, options.nkd_gamma) == settings


def test_two_classes_have_no_others():
    with pytest.raises(ValueError, match="with 2 classes there is one other class"):
        NKD(NKD.Options(), replace(SETUP, student=only_logits(torch.zeros(2, 2))))

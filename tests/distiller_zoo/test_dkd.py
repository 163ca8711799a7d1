from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from cli import parse
from cli.objective import describe_objective, kd_and_method
from distiller_zoo.dkd import DKD
from distiller_zoo.kd import KD
from distiller_zoo.rows import binary_logits
from helper.errors import UserError
from tests.adapters import bare_setup, only_logits

SETUP = replace(bare_setup(), student=only_logits(torch.zeros(2, 10)))


def dkd(target, others, temperature=4.0):
    return DKD(DKD.Options(temperature, target, others), SETUP).per_row


def test_others_weighted_by_the_teachers_probability_of_them_gives_kd():
    """Eq. 6 of the paper: KD = target term + (1 - p_teacher(target)) * others term."""
    student, teacher = torch.randn(2, 5, 10).double()
    labels = torch.arange(5)
    mass = 1 - F.softmax(teacher / 4, dim=1)[labels, labels]
    rebuilt = dkd(1, 0)(student, teacher, labels) + mass * dkd(0, 1)(student, teacher, labels)
    kd = KD(KD.Options(4.0), SETUP).per_row(student, teacher, labels)
    torch.testing.assert_close(rebuilt, kd)


def test_normalised_it_is_dkd_at_the_temperature_of_each_row():
    """NormKD and DKD: where both networks have the deviation 3, DKD at T = 2 * 3."""
    student, teacher = (3 * x / x.std(dim=1, keepdim=True) for x in torch.randn(2, 5, 10).double())
    labels = torch.arange(5)
    norm = DKD(DKD.Options(2.0, 4.0, 5.0, dkd_norm=True), SETUP).per_row
    loss = norm(student, teacher, labels)
    torch.testing.assert_close(loss, dkd(4, 5, 6.0)(student, teacher, labels))
    torch.testing.assert_close(norm(7 * student - 2, teacher, labels), loss)
    torch.testing.assert_close(norm(student, 3 * teacher + 1, labels), 9 * loss)


def test_settings_of_normalised_logits():
    def settings(line):
        options = parse.parse_student(f"--distill dkd --dkd_norm {line}".split())
        return options.dkd_target, options.dkd_others, options.kd_T, options.warmup

    assert settings("--model_t resnet32x4 --model_s resnet8x4") == (4, 5, 2, 20)
    assert settings("--model_t resnet56 --model_s resnet20") == (7, 2, 2, 20)
    assert settings("--model_t vgg13 --model_s vgg8 --kd_T 3") == (2, 7, 3, 20)
    assert settings("--model_t resnet110 --model_s resnet20") == (1, 8, 2, 20)
    on_imagenet = "--dataset imagenet --data_dir x --model_t ResNet34 --model_s ResNet18"
    assert settings(on_imagenet)[:3] == (1, 1, 0.5)
    options = parse.parse_student(["--distill", "dkd", "--dkd_norm"])
    assert describe_objective(options).startswith("1*CE + 1*dkd(T=2 * std)")


def test_a_learned_temperature_of_normalised_logits_is_refused():
    options = parse.parse_student(["--distill", "dkd", "--dkd_norm", "--ctkd"])
    with pytest.raises(UserError, match="--ctkd learns a temperature, and with --dkd_norm"):
        kd_and_method(options, SETUP)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [500.0, 1e4])
def test_finite_where_the_targets_probability_underflows(size, dtype):
    student = torch.full((2, 10), -size, dtype=dtype)
    student[:, 0] = size  # certain, and the target is class 3
    student[1, 3] = 0.0
    student.requires_grad_()
    teacher = torch.linspace(-1, 1, 10, dtype=dtype).expand(2, 10)
    loss = dkd(1, 8)(student, teacher, torch.tensor([3, 3]))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert student.grad.isfinite().all()

    # The same by logarithms of sums, class by class.
    s, t = student.detach().double() / 4, teacher.double() / 4
    others = torch.tensor([k for k in range(10) if k != 3])
    log_q, log_p = t.log_softmax(1), s.log_softmax(1)
    target = (log_q[:, 3].exp() * (log_q[:, 3] - log_p[:, 3])) + log_q[:, others].exp().sum(1) * (
        log_q[:, others].logsumexp(1) - log_p[:, others].logsumexp(1)
    )
    log_q, log_p = t[:, others].log_softmax(1), s[:, others].log_softmax(1)
    expected = 16 * (target + 8 * (log_q.exp() * (log_q - log_p)).sum(1))
    torch.testing.assert_close(loss.detach().double(), expected, rtol=1e-5, atol=0)


def test_binary_logits_by_hand():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]]))
    torch.testing.assert_close(
        F.softmax(binary_logits(logits, torch.tensor([1])), dim=1), torch.tensor([[0.3, 0.7]])
    )


def test_two_classes_have_no_others():
    with pytest.raises(ValueError, match="with 2 classes there is one other class"):
        DKD(DKD.Options(), replace(SETUP, student=only_logits(torch.zeros(2, 2))))


def test_settings_of_single_pairs():
    def others(teacher, student, flags=""):
        line = f"--distill dkd --model_t {teacher} --model_s {student} {flags}"
        return parse.parse_student(line.split())

    assert others("resnet32x4", "resnet8x4").dkd_others == 8
    assert others("vgg13", "vgg8").dkd_others == 6
    assert others("resnet56", "resnet20").dkd_others == 2
    assert others("wrn_40_2", "MobileNetV2").dkd_others == 8
    assert others("wrn_40_2", "MobileNetV2", "--sdd 1,2,4").dkd_others == 6
    assert others("vgg13", "ShuffleV1", "--sdd 1,2,4").dkd_others == 6
    assert others("resnet110", "resnet20", "--sdd 1,2").dkd_others == 2
    assert others("resnet32x4", "resnet8x4", "--sdd 1,2").dkd_others == 8
    assert others("vgg13", "vgg8", "--dkd_others 3").dkd_others == 3
    options = others("resnet56", "resnet20", "--logit_stand")
    assert (options.kd_T, options.beta, options.dkd_others, options.warmup) == (3, 18, 2, 20)
    options = others("resnet32x4", "resnet8x4", "--logit_stand")
    assert (options.kd_T, options.gamma, options.beta, options.dkd_others) == (2, 1, 9, 8)

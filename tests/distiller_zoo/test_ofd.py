import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.literal import ofd as literal
from cli.parse import parse_student
from dataset.base import Batch
from distiller_zoo.base import Recipe, Setup
from distiller_zoo.kd import KD
from distiller_zoo.ofd import OFD, connector, margin, ofd_loss, partial_l2
from engine.device import Numerics
from engine.objective import Distillation
from engine.teacher import LiveTeacher
from models import MODELS
from models.any import build
from tests.adapters import Case, bare_setup, index
from tests.adapters.features import load, maps
from tests.adapters.fsp import only_maps

NUMERICS = Numerics(torch.device("cpu"))
CASES = {e["case"]: e for e in index()["cases"] if e["method"] == "ofd"}


def method_of(student, teacher, norms) -> OFD:
    network = SimpleNamespace(preact_norms=lambda: norms)
    return OFD(OFD.Options(), Setup(student, teacher, None, network, None))


@pytest.mark.parametrize("name", ["full_two", "full_pooled"])
def test_literal_equals_the_reference(name):
    case = Case(CASES[name])
    h = case.hyper
    connectors = nn.ModuleList(
        nn.Sequential(
            nn.Conv2d(c_s, c_t, h["kernel_size"], padding=h["kernel_size"] // 2, bias=False),
            nn.BatchNorm2d(c_t),
        )
        for c_s, c_t in zip(h["s_channels"], h["t_channels"], strict=True)
    )
    load(connectors, case, "connectors.")
    margins = [
        literal.margin(case.state(f"teacher_bn.{i}.weight"), case.state(f"teacher_bn.{i}.bias"))
        for i in range(len(connectors))
    ]
    connected = [f(s) for f, s in zip(connectors, maps(case, "f_s"), strict=True)]
    loss = literal.ofd(connected, maps(case, "f_t"), margins)
    np.testing.assert_allclose(loss.item(), case.expected("loss"), rtol=1e-9)


def test_margin_is_the_mean_below_zero_of_what_the_norm_gives():
    weight, bias = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.3, -0.5]).double()
    torch.manual_seed(0)
    drawn = bias + weight.abs() * torch.randn(1_000_000, 2).double()
    means = torch.stack([x[x < 0].mean() for x in drawn.T])
    torch.testing.assert_close(margin(weight, bias).flatten(), means, rtol=0.01, atol=0)


def test_margin_of_channels_that_are_constant_or_hardly_ever_negative():
    """A constant channel has its own value where that is below zero; else 3 deviations of zero."""
    weight, bias = torch.tensor([0.0, 0.0, 0.0, 1.0]), torch.tensor([-2.0, 2.0, 0.0, 50.0])
    expected = torch.tensor([-2.0, 0.0, 0.0, -3.0])
    torch.testing.assert_close(margin(weight, bias).flatten(), expected)
    assert margin(torch.tensor([1.0]), torch.tensor([-1e4])).item() == pytest.approx(-1e4)


def test_partial_l2_by_hand():
    """Margin -1. Teacher positive: any difference. Else only above max(teacher, margin)."""
    t = torch.tensor([2.0, 2.0, -0.5, -0.5, -5.0, -5.0]).view(1, 6, 1, 1)
    s = torch.tensor([3.0, 0.0, 0.5, -3.0, 0.0, -1.5]).view(1, 6, 1, 1).requires_grad_()
    loss = partial_l2(s, t, torch.full((1, 6, 1, 1), -1.0))
    loss.backward()
    torch.testing.assert_close(loss, torch.tensor(1.0 + 4.0 + 1.0 + 1.0))
    torch.testing.assert_close(s.grad.flatten(), torch.tensor([2.0, -4.0, 2.0, 0.0, 2.0, 0.0]))


def test_each_stage_counts_half_of_the_next():
    s, t, low = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), -torch.ones(1, 3, 1, 1)
    one = ofd_loss([s], [t], [low])
    torch.testing.assert_close(ofd_loss([s] * 3, [t] * 3, [low] * 3), 1.75 * one)


def test_is_finite_where_a_norm_has_no_weight():
    norm = nn.BatchNorm2d(3)
    norm.weight.data[1], norm.bias.data[2] = 0, 1e4
    student = only_maps(None, [torch.randn(4, 2, 4, 4).requires_grad_()])
    teacher = only_maps(None, [torch.randn(4, 3, 8, 8)])
    loss = method_of(student, teacher, [norm])(student, teacher, None)
    loss.backward()
    assert loss.isfinite()
    assert student.preacts[0].grad.isfinite().all()


def test_connectors_start_as_published():
    """N(0, 2 / (k^2 c_out)); BatchNorm 1 and 0."""
    convolution, norm = connector(48, 96, 3)
    assert convolution.weight.std().item() == pytest.approx((2 / (9 * 96)) ** 0.5, rel=0.02)
    assert abs(convolution.weight.mean().item()) < 0.001
    assert torch.equal(norm.weight, torch.ones(96))
    assert torch.equal(norm.bias, torch.zeros(96))


def test_unequal_numbers_of_stages_are_paired_from_the_last():
    student = only_maps(None, [torch.randn(4, c, n, n) for c, n in ((2, 8), (3, 4))])
    teacher = only_maps(None, [torch.randn(4, c, n, n) for c, n in ((4, 16), (5, 8), (6, 4))])
    norms = [nn.BatchNorm2d(c) for c in (4, 5, 6)]
    with pytest.warns(UserWarning, match=r"the teacher's stage 1 \(4, 16, 16\) has no partner"):
        method = method_of(student, teacher, norms)
    assert [c[0].weight.shape[:2] for c in method.connectors] == [(5, 2), (6, 3)]
    assert [method.margin_0.shape[1], method.margin_1.shape[1]] == [5, 6]
    loss = method.eval()(student, teacher, None)
    last_two = only_maps(None, teacher.preacts[1:])
    torch.testing.assert_close(method(student, last_two, None), loss)
    norms = [nn.BatchNorm2d(c) for c in (2, 3)]
    with pytest.warns(UserWarning, match=r"the student's stage 1 \(4, 16, 16\) has no partner"):
        method = method_of(teacher, student, norms)
    assert method(teacher, student, None).isfinite()


def test_imagenet_pairs_have_their_weight():
    line = "--distill ofd --dataset imagenet --model_t ResNet34 --model_s ResNet18"
    assert parse_student(line.split()).beta == 1e-4
    line = "--distill ofd --dataset imagenet --model_t ResNet50 --model_s MobileNetV1"
    assert parse_student(line.split()).beta == 1e-4
    assert parse_student(["--distill", "ofd"]).beta == 1e-3


def test_runs_on_networks_of_imagenet():
    teacher, student = build("torchvision:resnet34", 7, 64), MODELS["MobileNetV1"](7)
    images = torch.randn(2, 3, 64, 64)
    shown = student.eval().features(images), teacher.eval().features(images)
    method = OFD(OFD.Options(), Setup(*shown, student, teacher, None))
    assert len(method.connectors) == 4
    assert method(*shown, None).isfinite()


def distillation(**options):
    student, teacher = MODELS["resnet8"](10), MODELS["resnet14"](10)
    images = torch.randn(2, 3, 32, 32)
    shown = student.eval().features(images), teacher.eval().features(images)
    method = OFD(OFD.Options(**options), Setup(*shown, student, teacher, None))
    kd = KD(KD.Options(), bare_setup())
    return Distillation(student, LiveTeacher(teacher, NUMERICS), kd, method, "ofd", OFD.recipe)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_teacher_normalises_by_the_batch_and_keeps_what_it_learned(mode):
    task = distillation(ofd_teacher=mode)
    teacher, twin = task.teacher.network, copy.deepcopy(task.teacher.network)
    kept = {name: value.clone() for name, value in teacher.state_dict().items()}
    batch = Batch(3 * torch.randn(6, 3, 32, 32) + 1, torch.arange(6), torch.arange(6))
    for _ in range(2):
        task.train()
        norms = [m for m in teacher.modules() if isinstance(m, nn.BatchNorm2d)]
        assert {m.training for m in norms} == {mode == "train"}
        assert not any(m.training for m in teacher.modules() if m not in norms)
        loss = task(batch).terms["ofd"]
        shown = task.features(batch)[1].preacts
        with torch.no_grad():
            wanted = copy.deepcopy(twin).train(mode == "train").features(batch.images).preacts
        for got, expected in zip(shown, wanted, strict=True):
            torch.testing.assert_close(got, expected)
        assert loss.isfinite()
        assert all(torch.equal(value, kept[name]) for name, value in teacher.state_dict().items())
        task.eval()
        assert not any(module.training for module in teacher.modules())
        with torch.no_grad():
            evaluated = [network.eval()(batch.images) for network in (teacher, twin)]
        torch.testing.assert_close(*evaluated)


def test_without_a_weight_the_teacher_stays_in_eval():
    task = distillation()
    teacher = LiveTeacher(MODELS["resnet14"](10), NUMERICS)
    recipe = Recipe(alpha=1.0, beta=0.0)
    twin = Distillation(task.student, teacher, task.kd, task.method, "ofd", recipe).train()
    assert not any(module.training for module in twin.teacher.modules())


def test_a_teacher_without_norms_before_its_activations_is_refused():
    features = only_maps(None, [torch.randn(2, 3, 4, 4)])
    setup = Setup(features, features, None, MODELS["ShuffleV1"](10), None)
    with pytest.raises(ValueError, match="ShuffleV1 has no BatchNorm"):
        OFD(OFD.Options(), setup)

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.literal import ofd as literal
from distiller_zoo.base import Setup
from distiller_zoo.ofd import OFD, margin, ofd_loss, partial_l2
from models import MODELS
from tests.adapters import Case, index
from tests.adapters.features import load, maps
from tests.adapters.fsp import only_maps

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


def test_a_teacher_without_norms_before_its_activations_is_refused():
    features = only_maps(None, [torch.randn(2, 3, 4, 4)])
    setup = Setup(features, features, None, MODELS["ShuffleV1"](10), None)
    with pytest.raises(ValueError, match="ShuffleV1 has no BatchNorm"):
        OFD(OFD.Options(), setup)

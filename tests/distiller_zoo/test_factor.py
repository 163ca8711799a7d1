from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.literal import factor as literal
from distiller_zoo.base import Setup
from distiller_zoo.factor import FactorTransfer, factor_loss
from models import MODELS
from tests.adapters import Case, index
from tests.adapters.fsp import only_maps

CASES = [e for e in index()["cases"] if e["method"] == "factor" and e["case"].startswith("bare")]


def features():
    return only_maps(None, [torch.randn(6, 4, 4, 4)]), only_maps(None, [torch.randn(6, 8, 4, 4)])


def method_of(student, teacher, network=None, **options) -> FactorTransfer:
    setup = Setup(student, teacher, network, None, None)
    return FactorTransfer(FactorTransfer.Options(**options), setup)


@pytest.mark.parametrize("entry", CASES)
def test_literal_equals_the_reference(entry):
    case = Case(entry)
    inputs = case["factor_s"], case["factor_t"], case.hyper["p1"], case.hyper["p2"]
    np.testing.assert_allclose(literal.factor(*inputs).item(), case.expected("loss"), rtol=1e-9)


@pytest.mark.parametrize(("p2", "expected"), [(1, 1.0), (2, 1.0)])
def test_by_hand(p2, expected):
    """Two places; one factor is active in the first alone, the other in the second."""
    s, t = torch.tensor([3.0, 0.0]).view(1, 1, 1, 2), torch.tensor([0.0, 5.0]).view(1, 1, 1, 2)
    assert factor_loss(s, t, 2, p2).item() == pytest.approx(expected)


def test_scale_and_number_of_channels_of_a_factor_do_not_matter():
    s = torch.randn(3, 4, 5, 5).double()
    assert factor_loss(s, 7 * torch.cat([s, s], dim=1)) < 1e-12


def test_reconstruction_gets_better_in_the_first_stage():
    torch.manual_seed(0)
    student, teacher = features()
    method = method_of(student, teacher)
    step = torch.optim.SGD(method.first_stage(None), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(100):
        loss = method.first_stage_loss(student, teacher, None)
        step.zero_grad()
        loss.backward()
        step.step()
        losses.append(loss.item())
    assert losses[-1] < 0.98 * losses[0]


def test_the_paraphraser_stays_as_the_first_stage_left_it():
    """Beside weight decay and a gradient that the first stage left behind."""
    student, teacher = features()
    method = method_of(student, teacher).train()
    method.first_stage_loss(student, teacher, None).backward()
    before = {k: v.clone() for k, v in method.state_dict().items()}
    step = torch.optim.SGD(method.parameters(), lr=0.1, weight_decay=0.1)
    step.zero_grad()
    method(student, teacher, None).backward()
    step.step()
    moved = {k for k, v in method.state_dict().items() if not torch.equal(v, before[k])}
    assert moved
    assert not any(k.startswith("paraphraser") for k in moved)


def test_rate_of_the_first_stage_depends_on_the_student():
    rates = [
        method_of(*features(), MODELS[name](10)).first_stage_rate(0.05)
        for name in ("resnet8", "wrn_16_1", "vgg8")
    ]
    assert rates == [0.01, 0.01, 0.05]


def test_is_finite_for_factors_that_are_zero():
    s = torch.randn(3, 4, 5, 5)
    s[1] = 0
    s.requires_grad_()
    loss = factor_loss(s, torch.zeros(3, 6, 5, 5))
    loss.backward()
    assert loss.isfinite()
    assert s.grad.isfinite().all()


def test_a_network_without_maps_is_refused():
    student, teacher = features()
    bare = replace(student, stages=(), pooled=torch.zeros(6, 4))
    with pytest.raises(ValueError, match="student has no feature maps"):
        method_of(bare, teacher)

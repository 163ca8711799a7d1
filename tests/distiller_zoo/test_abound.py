import numpy as np
import pytest
import torch

from benchmarks.literal import abound as literal
from distiller_zoo.abound import ActivationBoundary, stage_loss, stage_losses
from distiller_zoo.base import Setup
from models import MODELS
from tests.adapters import Case, index
from tests.adapters.features import maps
from tests.adapters.fsp import only_maps

CASES = [e for e in index()["cases"] if e["method"] == "abound" and not e["state"]]


def method_of(student, teacher) -> ActivationBoundary:
    options = ActivationBoundary.Options()
    return ActivationBoundary(options, Setup(student, teacher, None, None, None))


@pytest.mark.parametrize("entry", CASES)
def test_literal_equals_the_reference(entry):
    case = Case(entry)
    loss = literal.abound(maps(case, "f_s"), maps(case, "f_t"), case.hyper["margin"])
    np.testing.assert_allclose(loss.item(), case.expected("loss"), rtol=1e-9)


def test_by_hand():
    """Margin 1. Active: 3 is fine, 0 is 1 away. Inactive (so is 0): -3 is fine, 1 is 2 away."""
    t = torch.tensor([5.0, 5.0, -5.0, 0.0]).view(1, 4, 1, 1)
    s = torch.tensor([3.0, 0.0, -3.0, 1.0]).view(1, 4, 1, 1).requires_grad_()
    loss = stage_loss(s, t, 1.0)
    torch.testing.assert_close(loss, torch.tensor((1.0 + 4.0) * 3 / 1000))
    (gradient,) = torch.autograd.grad(loss, s)
    torch.testing.assert_close(gradient.flatten(), torch.tensor([0.0, -2.0, 0.0, 4.0]) * 3 / 1000)


def test_only_the_boundary_counts_and_deeper_stages_count_twice():
    s, t = [torch.randn(3, 4, 2, 2)] * 3, [torch.randn(3, 4, 2, 2)] * 3
    first, second, third = stage_losses(s, t, 1.0)
    torch.testing.assert_close(stage_losses(s, [1000 * m for m in t], 1.0)[2], third)
    torch.testing.assert_close(torch.stack([4 * first, 2 * second]), third.expand(2))


def test_is_finite_for_huge_values():
    s = (1e10 * torch.randn(2, 3, 4, 4)).requires_grad_()
    loss = stage_loss(s, 1e30 * torch.randn(2, 3, 4, 4), 1.0)
    loss.backward()
    assert loss.isfinite()
    assert s.grad.isfinite().all()


def test_connects_only_where_shapes_differ_and_has_no_loss_after_the_first_stage():
    student = only_maps(None, [torch.randn(2, 4, 8, 8), torch.randn(2, 6, 4, 4)])
    teacher = only_maps(None, [torch.randn(2, 4, 8, 8), torch.randn(2, 8, 4, 4)])
    method = method_of(student, teacher)
    assert [len(list(c.parameters())) for c in method.connectors] == [0, 4]
    assert method(student, teacher, None) == 0


def test_trains_connectors_and_features_but_not_the_classifier():
    student = MODELS["resnet8"](10)
    features = (
        only_maps(None, [torch.randn(2, 4, 8, 8)]),
        only_maps(None, [torch.randn(2, 6, 8, 8)]),
    )
    method = method_of(*features)
    trained = {id(p) for p in method.first_stage(student)}
    assert {id(p) for p in method.parameters()} < trained
    assert {n for n, p in student.named_parameters() if id(p) not in trained} == {
        "fc.weight",
        "fc.bias",
    }


def test_the_error_names_shapes_that_cannot_be_connected():
    features = (
        only_maps(None, [torch.randn(2, 4, 4, 4)]),
        only_maps(None, [torch.randn(2, 6, 32, 32)]),
    )
    with pytest.raises(ValueError, match=r"\(4, 4, 4\).*\(6, 32, 32\)"):
        method_of(*features)

import numpy as np
import pytest
import torch

from benchmarks.literal import fsp as literal
from distiller_zoo.base import Setup
from distiller_zoo.fsp import FSP, flow_losses, flow_matrix
from tests.adapters import Case, index
from tests.adapters.features import maps
from tests.adapters.fsp import only_maps

CASES = [e for e in index()["cases"] if e["method"] == "fsp"]


def features(*channels):
    """A stem and stages of these channels, each half the size of the last."""
    stem, *stages = (torch.randn(2, c, 16 // 2**i, 16 // 2**i) for i, c in enumerate(channels))
    return only_maps(stem, stages)


def method_of(student, teacher) -> FSP:
    return FSP(FSP.Options(), Setup(student, teacher, None, None, None))


@pytest.mark.parametrize("entry", CASES)
def test_literal_equals_the_reference(entry):
    case = Case(entry)
    loss = literal.fsp(maps(case, "f_s"), maps(case, "f_t"))
    np.testing.assert_allclose(loss.item(), case.expected("loss"), rtol=1e-9)


def test_flow_by_hand():
    """Two channels of (1, 2) and (3, 4) into one of (5, 6): means of 5, 12 and of 15, 24."""
    a = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 2, 1, 2)
    b = torch.tensor([5.0, 6.0]).view(1, 1, 1, 2)
    torch.testing.assert_close(flow_matrix(a, b), torch.tensor([[[8.5], [19.5]]]))


def test_the_order_of_positions_does_not_matter():
    """The same shuffle of the positions of both maps leaves the matrix as it was."""
    a, b = torch.randn(3, 4, 5, 5).double(), torch.randn(3, 6, 5, 5).double()
    order = torch.randperm(25)
    shuffled = [x.flatten(2)[:, :, order].view_as(x) for x in (a, b)]
    torch.testing.assert_close(flow_matrix(*shuffled), flow_matrix(a, b))
    assert flow_losses([a, b], shuffled)[0] < 1e-20


def test_is_finite_for_empty_and_large_maps():
    s = [torch.zeros(2, 3, 4, 4), (1e4 * torch.randn(2, 5, 4, 4)).requires_grad_()]
    s[0].requires_grad_()
    loss = flow_losses(s, [torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 4, 4)])[0]
    loss.backward()
    assert loss.isfinite()
    assert all(x.grad.isfinite().all() for x in s)


def test_the_error_names_channels_that_differ():
    with pytest.raises(ValueError, match=r"\(8, 8, 8\).*\(9, 8, 8\).*choose"):
        method_of(features(4, 8, 16), features(4, 9, 16))


def test_a_stage_without_a_partner_is_left_out():
    student, teacher = features(4, 8, 16), features(4, 8, 16, 32)
    with pytest.warns(UserWarning, match=r"teacher's stage 3 \(32, 2, 2\) has no partner"):
        method = method_of(student, teacher)
    assert method.first_stage_loss(student, teacher, None).isfinite()
    assert method(student, teacher, None) == 0

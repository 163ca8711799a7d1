from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.literal import reviewkd as literal
from distiller_zoo.base import Setup
from distiller_zoo.reviewkd import Fusion, ReviewKD, fusions, hcl_loss
from tests.adapters import Case, index
from tests.adapters.features import load, maps
from tests.adapters.fsp import only_maps

CASES = {e["case"]: e for e in index()["cases"] if e["method"] == "reviewkd"}


def features(channels, sizes, batch=3):
    stages = [torch.randn(batch, c, n, n) for c, n in zip(channels, sizes, strict=True)]
    return only_maps(None, stages, pooled=torch.randn(batch, channels[-1]))


def method_of(student, teacher) -> ReviewKD:
    return ReviewKD(ReviewKD.Options(), Setup(student, teacher, None, None, None))


def test_literal_equals_the_reference():
    case = Case(CASES["full"])
    h = case.hyper
    modules = fusions(h["in_channels"], h["out_channels"], h["mid_channel"])
    load(modules, case, "abfs.")
    f_s, f_t = (
        [*maps(case, f"f_{who}"), case[f"pooled_{who}"][:, :, None, None]] for who in ("s", "t")
    )
    loss = literal.reviewkd(modules, f_s, f_t)
    np.testing.assert_allclose(loss.item(), case.expected("loss"), rtol=1e-9)


def test_context_loss_by_hand():
    """A constant difference of 3 is 9 at every size; one that cancels shows at full size alone."""
    t = torch.zeros(2, 3, 8, 8)
    torch.testing.assert_close(hcl_loss(t + 3, t), torch.tensor(9.0))
    checkers = (-1.0) ** torch.arange(8)  # of neighbouring columns
    torch.testing.assert_close(hcl_loss(t + checkers, t), torch.tensor(1 / 1.875))


def test_a_map_of_one_place_has_no_pyramid():
    s, t = torch.randn(2, 3, 1, 1), torch.randn(2, 3, 1, 1)
    torch.testing.assert_close(hcl_loss(s, t), (s - t).square().mean())


def test_attention_of_zero_ignores_the_deeper_map():
    fusion = Fusion(4, 6, 8, True)
    fusion.att_conv[0].weight.data.zero_()
    fusion.att_conv[0].bias.data.copy_(torch.tensor([100.0, -100.0]))
    x, deeper = torch.randn(3, 4, 4, 4), torch.randn(3, 6, 2, 2)
    size = torch.Size((4, 4))
    torch.testing.assert_close(fusion(x, deeper, size)[1], fusion.conv1(x))


def test_stages_of_other_sizes_and_numbers_are_reviewed():
    student, teacher = features((4, 6, 8, 10), (16, 8, 4, 2)), features((5, 7, 9), (32, 16, 8))
    with pytest.warns(UserWarning, match=r"student's stage 4 \(10, 2, 2\) has no partner"):
        method = method_of(student, teacher)
    assert method(student, teacher, None).isfinite()


def test_is_finite_for_maps_that_are_zero_and_huge():
    student, teacher = features((4, 6), (8, 4)), features((5, 7), (8, 4))
    leaves = [torch.zeros(3, 4, 8, 8).requires_grad_(), (1e15 * torch.randn(3, 6, 4, 4))]
    leaves[1].requires_grad_()
    student = replace(student, stages=tuple(leaves))
    loss = method_of(student, teacher)(student, teacher, None)
    loss.backward()
    assert loss.isfinite()
    assert all(x.grad.isfinite().all() for x in leaves)


def test_a_network_without_maps_is_refused():
    student, teacher = features((4, 6), (8, 4)), features((5, 7), (8, 4))
    with pytest.raises(ValueError, match="teacher has no feature maps"):
        method_of(student, replace(teacher, stages=()))


def test_weight_of_one_pair():
    assert ReviewKD.pair_defaults("resnet32x4", "resnet8x4", ()) == {"beta": 5.0}
    assert ReviewKD.pair_defaults("vgg13", "vgg8", ()) == {}

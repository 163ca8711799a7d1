from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.literal import reviewkd as literal
from cli.parse import parse_student
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
    student = replace(student, stages=tuple(leaves), preacts=tuple(leaves))
    loss = method_of(student, teacher)(student, teacher, None)
    loss.backward()
    assert loss.isfinite()
    assert all(x.grad.isfinite().all() for x in leaves)


def test_a_network_without_maps_is_refused():
    student, teacher = features((4, 6), (8, 4)), features((5, 7), (8, 4))
    with pytest.raises(ValueError, match="teacher has no feature maps"):
        method_of(student, replace(teacher, stages=()))


@pytest.mark.parametrize("preacts", [False, True])
def test_the_teacher_is_read_before_its_activation(preacts):
    """Of the student the activated stages are read, but where --review_preacts says otherwise."""
    student, teacher = features((4, 6), (8, 4)), features((5, 7), (8, 4))
    setup = Setup(student, teacher, None, None, None)
    method = ReviewKD(ReviewKD.Options(review_preacts=preacts), setup).eval()

    def changed(shown, **maps):
        return replace(shown, **{name: tuple(x + 1 for x in maps[name]) for name in maps})

    def same(student, teacher):
        return torch.equal(method(student, teacher, None), before)

    before = method(student, teacher, None)
    assert same(student, changed(teacher, stages=teacher.stages))
    assert not same(student, changed(teacher, preacts=teacher.preacts))
    assert same(changed(student, stages=student.stages), teacher) == preacts
    assert same(changed(student, preacts=student.preacts), teacher) != preacts
    assert not same(replace(student, pooled=student.pooled + 1), teacher)
    assert not same(student, replace(teacher, pooled=teacher.pooled + 1))


def test_fusions_start_as_published():
    """kaiming_uniform with a = 1 is uniform within sqrt(3 / fan in); BatchNorm 1 and 0."""
    fusion = Fusion(64, 128, 96, True)
    for convolution, norm in (fusion.conv1, fusion.conv2):
        bound = (3 / convolution.weight[0].numel()) ** 0.5
        assert 0.99 * bound < convolution.weight.abs().max() <= bound
        assert convolution.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert torch.equal(norm.weight, torch.ones_like(norm.weight))
        assert torch.equal(norm.bias, torch.zeros_like(norm.bias))


@pytest.mark.parametrize(
    ("pair", "weight"),
    [
        ("resnet32x4 resnet8x4", 5), ("resnet32x4 ShuffleV1", 5), ("wrn_40_2 wrn_16_2", 5),
        ("wrn_40_2 wrn_40_1", 5), ("wrn_40_2 ShuffleV1", 5), ("resnet32x4 ShuffleV2", 8),
        ("resnet56 resnet20", 0.6), ("vgg13 vgg8", 1), ("resnet110 resnet32", 1),
    ],
)  # fmt: skip
def test_weights_of_pairs(pair, weight):
    teacher, student = pair.split()
    options = parse_student(f"--distill reviewkd --model_t {teacher} --model_s {student}".split())
    assert (options.beta, options.review_preacts, options.warmup) == (weight, False, 20)


@pytest.mark.parametrize(
    ("pair", "weight"), [("ResNet34 ResNet18", 1), ("ResNet50 MobileNetV1", 8)]
)
def test_on_imagenet_the_student_is_read_before_its_activation(pair, weight):
    teacher, student = pair.split()
    line = f"--distill reviewkd --dataset imagenet --model_t {teacher} --model_s {student}"
    options = parse_student(line.split())
    assert (options.beta, options.review_preacts, options.warmup) == (weight, True, 1)
    assert not parse_student([*line.split(), "--review_preacts", "off"]).review_preacts

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cli.parse import parse_student
from distiller_zoo.base import Setup
from distiller_zoo.catkd import CATKD
from models.base import Features
from tests.adapters import only_logits


def network(channels, head=None, size=4):
    head = head or nn.Linear(channels, 5)
    last_map = torch.randn(3, channels, size, size)
    pooled = last_map.mean(dim=(2, 3))
    return Features(None, (last_map,), (), last_map, pooled, head(pooled), head)


def catkd(student, teacher, **options):
    return CATKD(CATKD.Options(**options), Setup(student, teacher, None, None, None))


def test_the_mean_of_a_class_map_is_the_classs_logit():
    """What makes it an activation map of the class, but for the bias."""
    student, teacher = network(8), network(16)
    loss = catkd(student, teacher, catkd_grid=1)(student, teacher, None)
    without_bias = [shown.logits - shown.head.bias for shown in (student, teacher)]
    torch.testing.assert_close(loss, F.mse_loss(*without_bias))


def test_normalised_maps_do_not_see_the_scale_of_a_class():
    student, teacher = network(8), network(16)
    method = catkd(student, teacher, catkd_normalize=True)
    loss = method(student, teacher, None)
    scaled = nn.Linear(16, 5)
    scaled.weight.data = torch.arange(1.0, 6)[:, None] * teacher.head.weight.data
    other = Features(None, teacher.stages, (), teacher.last_map, teacher.pooled, None, scaled)
    torch.testing.assert_close(method(student, other, None), loss)


def test_places_are_those_of_the_map():
    """The places of one quarter of the map move one place of the class maps."""
    student, teacher = network(8), network(8)
    method = catkd(student, teacher)
    changed = student.last_map.clone()
    changed[:, :, :2, 2:] += 1
    maps = [method.class_maps(student.replace(last_map=x)) for x in (student.last_map, changed)]
    same = torch.isclose(*maps, atol=1e-6)
    assert same.all(dim=0).tolist() == [True, False, True, True]


def test_finite_for_maps_of_zeros():
    student, teacher = network(8), network(8)
    zeros = torch.zeros(3, 8, 4, 4, requires_grad=True)
    loss = catkd(student, teacher, catkd_normalize=True)(
        student.replace(last_map=zeros), teacher, None
    )
    loss.backward()
    assert loss.isfinite()
    assert zeros.grad.isfinite().all()
    assert student.head.weight.grad.isfinite().all()


@pytest.mark.parametrize("shown", [only_logits(torch.zeros(2, 5)), network(8, size=1)])
def test_networks_without_a_map_are_refused(shown):
    with pytest.raises(ValueError, match="regions"):
        catkd(shown, network(8))


def test_settings_of_single_pairs():
    def setting(pair):
        teacher, student = pair.split("->")
        line = f"--distill catkd --model_t {teacher} --model_s {student}"
        options = parse_student(line.split())
        return options.beta, options.catkd_grid, options.catkd_normalize

    assert setting("resnet32x4->resnet8x4") == (15, 2, False)
    assert setting("wrn_40_2->wrn_40_1") == (1.5, 2, False)
    assert setting("resnet32x4->ShuffleV2") == (600, 4, True)
    assert setting("wrn_40_2->ShuffleV1") == (80, 4, True)
    assert setting("ResNet50->MobileNetV2") == (40, 2, True)
    assert setting("resnet110->resnet20") == (15, 2, False)  # not published: the default

from dataclasses import replace

import pytest
import torch

from dataset.base import Batch
from distiller_zoo.base import Setup
from distiller_zoo.crld import CRLD
from distiller_zoo.kd import KD
from distiller_zoo.views import ScaleDecoupling
from tests.adapters import bare_setup, only_logits


def loss_of(weak, strong, **options):
    """Each view: the student's and the teacher's logits."""
    method = CRLD(CRLD.Options(**options), bare_setup())
    student, teacher = (
        only_logits(w).replace(strong=only_logits(s)) for w, s in zip(weak, strong, strict=True)
    )
    return method(student, teacher, Batch(None, torch.zeros(len(weak[0])).long(), None))


def kd(student, teacher):
    method = KD(KD.Options(), bare_setup())
    labels = torch.zeros(len(student)).long()
    return method(only_logits(student), only_logits(teacher), Batch(None, labels, None))


def test_without_thresholds_it_is_kd_within_each_view_and_across():
    (sw, tw, ss, ts) = torch.randn(4, 6, 10).double()
    loss = loss_of((sw, tw), (ss, ts), crld_weak=0.0, crld_strong=0.0)
    within, crossed = kd(sw, tw) + kd(ss, ts), kd(ss, tw) + kd(sw, ts)
    torch.testing.assert_close(loss, 2 * within + 0.5 * crossed)


def test_an_unsure_teacher_teaches_nothing():
    """The paper's point: of the weak view only what it is sure of, of the strong one far more."""
    s, t = torch.randn(2, 4, 10).double()
    unsure, sure = 0 * t, 0 * t
    sure[:, 0] = 20.0
    assert loss_of((s, unsure), (s, unsure)) == 0
    assert loss_of((s, unsure), (s, sure), crld_cross=0.0) == 0  # the weak view's confidence
    assert loss_of((s, unsure), (s, sure), crld_within=0.0) > 0  # the strong view's
    half = sure.clone()
    half[2:] = 0
    both = loss_of((s[:2], sure[:2]), (s[:2], sure[:2]))
    torch.testing.assert_close(loss_of((s, half), (s, half)), both / 2)  # of the whole batch


def test_finite_for_huge_logits():
    s = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    t = torch.tensor([[-1e4, 1e4, 0.0]])
    loss = loss_of((s, t), (s, t))
    loss.backward()
    assert loss.isfinite()
    assert s.grad.isfinite().all()


@pytest.mark.parametrize(("scales", "refused"), [((1,), False), ((1, 2), True)])
def test_regions_of_two_crops_are_refused(scales, refused):
    view = object.__new__(ScaleDecoupling)
    view.regions = scales, 0
    setup = replace(Setup(None, None, None, None, None), views=(view,))
    if not refused:
        CRLD(CRLD.Options(), setup)
        return
    with pytest.raises(ValueError, match="leave --sdd out"):
        CRLD(CRLD.Options(), setup)


@pytest.mark.parametrize(
    ("pair", "within"),
    [(("wrn_40_2", "wrn_40_1"), 0.5), (("resnet110", "resnet20"), 1.0), (("vgg13", "vgg8"), None)],
)
def test_published_weights_of_pairs(pair, within):
    assert CRLD.pair_defaults(*pair, (), "cifar100").get("crld_within") == within
    assert CRLD.pair_defaults(*pair, (), "imagenet") == {}

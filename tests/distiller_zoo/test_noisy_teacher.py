from dataclasses import replace

import pytest
import torch

from dataset.base import Batch
from distiller_zoo.base import Distiller, Setup
from distiller_zoo.crd import CRD
from distiller_zoo.noisy_teacher import NoisyTeacher
from distiller_zoo.rrd import RRD
from tests.adapters.crd import only_pooled

LABELS = torch.arange(40) % 4
BATCH = Batch(None, LABELS[:6], torch.arange(6))


class Distance(Distiller):
    """Of pooled vectors; keeps the teachers that it was given."""

    def forward(self, student, teacher, batch):
        self.teachers = [*getattr(self, "teachers", []), teacher.pooled]
        return (student.pooled - teacher.pooled).square().mean()

    def first_stage_rate(self, rate):
        return rate / 5


@pytest.fixture
def features():
    torch.manual_seed(0)
    return only_pooled(torch.randn(6, 5, requires_grad=True)), only_pooled(torch.randn(6, 5))


@pytest.fixture
def setup(features):
    return Setup(*features, None, None, LABELS)


def wrapped(method, setup, **changes):
    return NoisyTeacher(replace(NoisyTeacher.Options(), **changes), setup, method)


@pytest.mark.parametrize("copies", [0, 1, 3])
def test_copies_without_noise_repeat_the_loss(copies, features, setup):
    plain = Distance(None, setup)
    noisy = wrapped(plain, setup, noisy_teachers=copies, feature_noise=0.0)
    torch.testing.assert_close(noisy(*features, BATCH), (1 + copies) * plain(*features, BATCH))


def test_noise_is_new_for_each_copy_and_of_the_given_size(setup):
    student, teacher = only_pooled(torch.zeros(200, 50)), only_pooled(torch.ones(200, 50))
    method = Distance(None, setup)
    wrapped(method, setup, noisy_teachers=2)(student, teacher, BATCH)
    clean, first, second = method.teachers
    assert torch.equal(clean, teacher.pooled)
    for copy in (first, second):
        assert copy.mean().item() == pytest.approx(0.9, abs=1e-3)
        assert copy.std().item() == pytest.approx(0.1 * 0.1, rel=0.05)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("cls", [CRD, RRD])
@pytest.mark.parametrize("value", [0.0, 1e6])
def test_backward_works_through_memories_that_are_updated_twice(cls, value, features, setup):
    student, teacher = features
    teacher.pooled[0] = value
    method = cls(replace(cls.Options(), feat_dim=8, nce_k=9), setup)
    loss = wrapped(method, setup)(student, teacher, BATCH)
    loss.backward()
    assert loss.isfinite()
    assert student.pooled.grad.isfinite().all()
    assert student.pooled.grad.abs().sum() > 0


def test_weights_and_first_stage_are_the_methods_own(setup):
    method = Distance(None, setup)
    noisy = wrapped(method, setup)
    assert noisy.recipe is method.recipe
    assert noisy.first_stage_rate(0.05) == 0.01
    assert not list(noisy.first_stage(None))
    assert wrapped(CRD(CRD.Options(nce_k=9), setup), setup).recipe.beta == 0.8

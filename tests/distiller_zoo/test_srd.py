from dataclasses import replace
from math import log

import pytest
import torch

from cli.parse import parse_student
from distiller_zoo.srd import SRD
from models.base import Features
from tests.adapters import bare_setup


def features(pooled, logits) -> Features:
    return Features(None, (), (), None, pooled, logits, None)


def srd(c_s=3, c_t=3, **options):
    shown = [features(torch.zeros(2, c), torch.zeros(2, 5)) for c in (c_s, c_t)]
    return SRD(SRD.Options(**options), replace(bare_setup(), student=shown[0], teacher=shown[1]))


def test_by_hand():
    """Two samples are -1 and 1 in each dimension; here opposite, so that 6 differences are 2."""
    method = srd()
    torch.nn.init.eye_(method.embed_s.weight)
    torch.nn.init.zeros_(method.embed_s.bias)
    s = torch.tensor([[0.0, 0.0, 0.0], [2e3, 4e3, 6e3]])  # eps is nothing beside their variance
    torch.testing.assert_close(method.feature_loss(s, s.flip(0)), torch.tensor(2 * log(6 * 2**4)))


def test_the_gradient_does_not_scale_with_the_batch():
    """The same samples once more: the sum doubles, each gradient is halved, their sum is equal."""
    method, s, t = srd(4, 6).double(), torch.randn(5, 4).double(), torch.randn(5, 6).double()
    gradients, losses = [], []
    for times in (1, 2):
        method.zero_grad()
        losses.append(method.feature_loss(s.repeat(times, 1), t.repeat(times, 1)))
        losses[-1].backward()
        gradients.append(method.embed_s.weight.grad.clone())
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(losses[1] - losses[0], torch.tensor(2 * log(2)).double())


@pytest.mark.parametrize("exponent", [1, 2, 4])
def test_finite_where_the_features_agree(exponent):
    method = srd(srd_exponent=exponent)
    t = torch.randn(4, 3)
    torch.nn.init.eye_(method.embed_s.weight)
    torch.nn.init.zeros_(method.embed_s.bias)
    s = t.clone().requires_grad_()
    loss = method.feature_loss(s, t)
    loss.backward()
    assert loss.isfinite()
    assert s.grad.isfinite().all()


def test_of_one_sample_there_is_kl_alone():
    method, logits = srd(), torch.randn(2, 1, 5)
    loss = method(*(features(torch.randn(1, 3), x) for x in logits), None)
    assert loss == method.parts["kl"] > 0 == method.parts["feature"]


def test_published_batch_on_imagenet():
    line = "--distill srd --dataset imagenet --data_dir x --model_t ResNet34 --model_s ResNet18"
    options = parse_student(line.split())
    assert (options.batch_size, options.learning_rate) == (256, 0.1)

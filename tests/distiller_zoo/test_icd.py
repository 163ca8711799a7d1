from dataclasses import replace
from math import log

import numpy as np
import pytest
import torch

from benchmarks.literal import icd as literal
from distiller_zoo.base import Setup
from distiller_zoo.icd import ICD, dcd_losses
from tests.adapters import Case, index
from tests.adapters.crd import only_pooled
from tests.adapters.icd import icd_of

CASES = [e for e in index()["cases"] if e["method"] in ("icd", "dcd")]


def made(f_s, f_t, **changes) -> ICD:
    options = replace(ICD.Options(feat_dim=8), **changes)
    return ICD(options, Setup(only_pooled(f_s), only_pooled(f_t), None, None, None))


@pytest.mark.parametrize("entry", CASES)
def test_literal_equals_the_reference(entry):
    case = Case(entry)
    method = icd_of(case)[0]
    z_s, z_t = method.embed_s(case["f_s"]), method.embed_t(case["f_t"])
    scale, b = case.hyper.get("nce_t"), 0
    if case.hyper.get("trainable", True):
        scale, b = case.state("tau").exp().clamp(max=case.hyper["max_tau"]), case.state("b")
    loss = literal.icd(z_s, z_t, scale, b, case.hyper["alpha"])
    np.testing.assert_allclose(loss.item(), case.expected("loss"), rtol=1e-9)


def test_by_hand():
    """Two samples; similarities log 3 with the same sample, 0 with the other: -log(3/4), KL 0."""
    discriminate, consistent = dcd_losses(torch.eye(2) * log(3))
    torch.testing.assert_close(discriminate, torch.tensor(log(4 / 3)))
    torch.testing.assert_close(consistent, torch.tensor(0.0))


def test_consistency_is_zero_exactly_where_both_directions_agree():
    similarity = torch.randn(5, 5).double()
    assert dcd_losses(similarity + similarity.T)[1].abs() < 1e-15
    assert dcd_losses(similarity)[1] > 1e-3


def test_a_fixed_temperature_divides():
    """The colder, the nearer to the argmax: the loss is 0 where the student is the teacher."""
    f = torch.eye(8)
    losses = []
    for nce_t in (1.0, 0.07, 0.001):
        method = made(f, f, fixed_tau=True, nce_t=nce_t)
        for embed in (method.embed_s, method.embed_t):
            embed.weight.data.copy_(torch.eye(8))
            embed.bias.data.zero_()
        losses.append(method(only_pooled(f), only_pooled(f), None).item())
    assert losses[0] > losses[1] > losses[2]
    assert losses[2] == pytest.approx(0, abs=1e-6)
    assert {name for name, _ in method.named_parameters() if "." not in name} == set()


@pytest.mark.parametrize("tau", [-200.0, 1e4])
def test_is_finite_for_any_tau_and_for_zero_rows(tau):
    f_s, f_t = torch.randn(4, 5).requires_grad_(), torch.randn(4, 7)
    f_s.data[1], f_t[2] = 0, 0
    method = made(f_s, f_t)
    method.tau.data.fill_(tau)
    for embed in (method.embed_s, method.embed_t):
        embed.bias.data.zero_()
    loss = method(only_pooled(f_s), only_pooled(f_t), None)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in method.parameters())
    assert f_s.grad.isfinite().all()


def test_scale_stops_at_its_maximum():
    f = torch.randn(4, 8)
    method = made(f, f, max_tau=3.0)
    method.tau.data.fill_(50.0)
    z = method.embed_s(f), method.embed_t(f)
    torch.testing.assert_close(method.similarity(*z), 3 * z[0] @ z[1].T)

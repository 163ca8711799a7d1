import pytest
import torch
import torch.nn.functional as F

from benchmarks.literal.pskd import pskd
from dataset.base import Batch
from distiller_zoo.base import Setup
from distiller_zoo.pskd import PSKD
from tests.adapters import only_logits

LABELS = torch.arange(12) % 5


def method_of(dtype=torch.float64, **options):
    shown = only_logits(torch.zeros(2, 5, dtype=dtype))
    return PSKD(PSKD.Options(**options), Setup(shown, None, None, None, LABELS))


def loss_of(method, logits, index):
    return method(only_logits(logits), None, Batch(None, LABELS[index], index))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_the_published_form_over_three_epochs(dtype):
    """Whose share of the past in epoch e of E, from 1 on, is alpha * e / E."""
    method, past = method_of(dtype), F.one_hot(LABELS, 5).to(dtype)
    for epoch in (1, 2, 3):
        method.begin(epoch, 3)
        for index in torch.randperm(12).split(5):
            logits = (3 * torch.randn(len(index), 5)).to(dtype).requires_grad_()
            loss = loss_of(method, logits, index)
            expected = pskd(logits, LABELS[index], index, past, 0.8 * epoch / 3)
            torch.testing.assert_close(loss, expected)
            got, wanted = (torch.autograd.grad(x, logits)[0] for x in (loss, expected))
            torch.testing.assert_close(got, wanted)
        torch.testing.assert_close(method.past, past)


def test_in_the_first_epoch_it_is_cross_entropy():
    method, logits, index = method_of(), torch.randn(4, 5).double(), torch.tensor([3, 9, 0, 1])
    method.begin(1, 10)
    loss = loss_of(method, logits, index)
    torch.testing.assert_close(loss, F.cross_entropy(logits, LABELS[index]))


def test_what_was_said_of_a_sample_is_its_target():
    """At a share of 1 the student that says the same again is at its least loss."""
    method, index = method_of(pskd_alpha=1.0), torch.tensor([2, 7])
    logits = torch.randn(2, 5).double()
    method.begin(1, 1)
    loss_of(method, logits, index)
    again = logits.clone().requires_grad_()
    loss_of(method, again, index).backward()
    assert again.grad.abs().max() < 1e-12
    others = torch.tensor([0, 1, 3, 4, 5, 6, 8, 9, 10, 11])
    assert torch.equal(method.past[others], F.one_hot(LABELS, 5).double()[others])


def test_the_share_is_of_the_epoch_and_no_part_of_the_state():
    method = method_of()
    assert set(method.state_dict()) == {"past"}
    for epoch, share in ((1, 0.2), (4, 0.8)):
        method.begin(epoch, 4)
        assert method.share.item() == pytest.approx(share)


def test_finite_for_huge_logits():
    method, index = method_of(torch.float32), torch.tensor([1])
    for _ in range(2):
        logits = torch.tensor([[1e4, -1e4, 0.0, 0.0, 0.0]], requires_grad=True)
        method.begin(2, 2)
        loss = loss_of(method, logits, index)
        loss.backward()
        assert loss.isfinite()
        assert logits.grad.isfinite().all()

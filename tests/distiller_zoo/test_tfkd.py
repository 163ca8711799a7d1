import pytest
import torch
import torch.nn.functional as F

from benchmarks.literal.tfkd import tfkd
from dataset.base import Batch
from distiller_zoo.base import Setup
from distiller_zoo.tfkd import TfKD
from tests.adapters import only_logits


def loss_of(logits, labels, **options):
    shown = only_logits(logits)
    method = TfKD(TfKD.Options(**options), Setup(shown, None, None, None, labels))
    return method(shown, None, Batch(None, labels, None))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("T", "a"), [(20.0, 0.99), (1.0, 0.9), (40.0, 1.0)])
def test_equals_the_published_form_for_100_classes(T, a, dtype):
    logits, labels = 3 * torch.randn(6, 100, dtype=dtype), torch.arange(6) * 7
    loss = loss_of(logits.requires_grad_(), labels, tfkd_T=T, tfkd_a=a)
    expected = tfkd(logits, labels, T, a)
    torch.testing.assert_close(loss, expected)
    got, wanted = (torch.autograd.grad(x, logits)[0] for x in (loss, expected))
    torch.testing.assert_close(got, wanted)


def test_with_cross_entropy_it_is_label_smoothing_by_the_virtual_teacher():
    """The paper's view: the gradient is that of cross-entropy with (1 - b) label + b teacher."""
    logits, labels = torch.randn(5, 10).double().requires_grad_(), torch.arange(5)
    both = 0.9 * F.cross_entropy(logits, labels) + 0.1 * loss_of(logits, labels)
    teacher = torch.full((5, 10), 0.01 / 9 / 20).double().scatter(1, labels[:, None], 0.99 / 20)
    target = 0.9 * F.one_hot(labels, 10) + 0.1 * F.softmax(teacher, dim=1)
    smoothed = F.cross_entropy(logits, target)
    got, wanted = (torch.autograd.grad(x, logits)[0] for x in (both, smoothed))
    torch.testing.assert_close(got, wanted)


def test_a_very_soft_teacher_is_uniform():
    logits, labels = torch.randn(5, 10).double(), torch.arange(5)
    uniform = -F.log_softmax(logits, dim=1).mean() - torch.tensor(10.0).double().log()
    torch.testing.assert_close(loss_of(logits, labels, tfkd_T=1e9), uniform)


def test_finite_for_huge_logits():
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = loss_of(logits, torch.tensor([1]), tfkd_T=1e-3)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="needs two classes"):
        loss_of(torch.zeros(2, 1), torch.zeros(2, dtype=torch.long))

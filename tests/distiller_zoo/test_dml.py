import pytest
import torch
import torch.nn.functional as F

from benchmarks.literal import dml as literal
from cli import parse
from dataset.base import Batch
from distiller_zoo.base import Setup
from distiller_zoo.dml import DML
from helper.errors import UserError
from tests.adapters import only_logits

LABELS = torch.tensor([3, 0, 9, 1, 3])


def loss_of(own, other, labels=LABELS):
    shown = only_logits(own)
    method = DML(DML.Options(), Setup(shown, None, None, None, labels))
    return method(shown, only_logits(other), Batch(None, labels, None))


def logits(dtype=torch.float64):
    return [(3 * torch.randn(5, 10, dtype=dtype)).requires_grad_() for _ in range(2)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_the_formula_and_has_its_gradient(dtype):
    one, other = logits(dtype)
    loss, expected = loss_of(one, other), literal.dml(one, other)
    torch.testing.assert_close(loss, expected)
    got, wanted = (torch.autograd.grad(x, one)[0] for x in (loss, expected))
    torch.testing.assert_close(got, wanted)


def test_the_other_is_a_constant():
    one, other = logits()
    loss_of(one, other).backward()
    assert one.grad.abs().sum() > 0
    assert other.grad is None


def test_with_cross_entropy_it_learns_the_mean_of_label_and_other():
    """The other's posterior smooths the label: the gradient is twice that of cross-entropy with
    the mean of both as its target."""
    one, other = logits()
    both = F.cross_entropy(one, LABELS) + loss_of(one, other)
    target = (F.one_hot(LABELS, 10) + F.softmax(other.detach(), dim=1)) / 2
    got, wanted = (torch.autograd.grad(x, one)[0] for x in (both, 2 * F.cross_entropy(one, target)))
    torch.testing.assert_close(got, wanted)


def test_students_that_agree_learn_nothing_of_one_another():
    one, _ = logits()
    loss = loss_of(one, one.detach() + 5)
    loss.backward()
    assert loss.abs() < 1e-12
    assert one.grad.abs().max() < 1e-12


def test_finite_for_huge_logits():
    one = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = loss_of(one, torch.tensor([[-1e4, 1e4, 0.0]]), torch.tensor([1]))
    loss.backward()
    assert loss.isfinite()
    assert one.grad.isfinite().all()


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="nothing to tell each other"):
        loss_of(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize("name", ["kd", "tfkd"])
def test_a_second_student_is_of_methods_that_train_two(name):
    with pytest.raises(UserError, match=f"^{name} trains one student, and --peer is .*: .* dml$"):
        parse.parse_student(["--distill", name, "--peer", "resnet14"])

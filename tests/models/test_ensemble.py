import pytest
import torch
import torch.nn.functional as F

from distiller_zoo.rows import kl
from models import MODELS
from models.ensemble import Ensemble


@pytest.fixture
def members():
    return [MODELS[name](4).eval().double() for name in ("resnet8", "resnet14", "resnet8")]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("weights", [(), (0.5, 0.3, 0.2)])
def test_at_its_temperature_it_gives_the_mean_of_the_members(members, weights, temperature):
    images = torch.randn(5, 3, 16, 16).double()
    logits = Ensemble(members, weights, temperature).eval()(images)
    probs = [F.softmax(member(images) / temperature, dim=1) for member in members]
    mean = sum(w * p for w, p in zip(weights or [1 / 3] * 3, probs, strict=True))
    torch.testing.assert_close(F.softmax(logits / temperature, dim=1), mean)


def test_kd_from_it_has_the_gradient_of_the_mean_of_kd_from_each(members):
    """Which is what codes with several teachers write."""
    images, T = torch.randn(5, 3, 16, 16).double(), 4.0
    student = torch.randn(5, 4).double().requires_grad_()
    of_mean = kl(student, Ensemble(members, (), T).eval()(images).detach(), T).mean()
    of_each = sum(kl(student, member(images).detach(), T).mean() for member in members) / 3
    got, wanted = (torch.autograd.grad(loss, student)[0] for loss in (of_mean, of_each))
    torch.testing.assert_close(got, wanted)
    assert of_mean < of_each  # by what the members differ, which is no matter of the student


def test_each_member_sees_pixels_as_in_its_training(members):
    images = torch.randn(2, 3, 16, 16).double()
    before = Ensemble(members)(images)
    members[0].expect_statistics(([0.4] * 3, [0.2] * 3), ([0.5] * 3, [0.25] * 3))
    members[0].double()
    assert not torch.allclose(Ensemble(members)(images), before)


def test_finite_where_members_are_sure_of_other_classes():
    class Sure(torch.nn.Module):
        def __init__(self, of):
            super().__init__()
            self.logits = torch.full((1, 3), -1e4).index_fill(1, torch.tensor(of), 1e4)

        def own_pixels(self, images):
            return images

        def forward(self, images):
            return self.logits

    logits = Ensemble([Sure(0), Sure(1)])(torch.zeros(1, 3, 8, 8))
    torch.testing.assert_close(F.softmax(logits, dim=1), torch.tensor([[0.5, 0.5, 0.0]]))

"""Facts from the papers of the methods that compare maps or pooled vectors, and hard inputs."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from distiller_zoo import METHODS, attention, correlation, nst, pkt, rkd, similarity, vid
from distiller_zoo.base import Setup
from models import MODELS


def rotation(dim: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64))[0]


def assert_finite(loss, *leaves):
    loss.backward()
    assert loss.isfinite()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


def test_attention_ignores_scale_and_number_of_channels():
    t = torch.randn(2, 6, 4, 4).double()
    assert attention.stage_loss(3 * t, t).item() == pytest.approx(0, abs=1e-15)
    assert attention.stage_loss(t.repeat(1, 2, 1, 1), t).item() == pytest.approx(0, abs=1e-15)
    here, there = torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2)
    here[..., 0], there[..., 1] = 1, 1
    assert attention.stage_loss(here, there).item() == pytest.approx(1)  # (1 + 1) / 2 positions


def test_similarity_ignores_a_rotation_of_the_features():
    t = torch.randn(5, 8).double()
    assert similarity.stage_loss(t @ rotation(8), t).item() == pytest.approx(0, abs=1e-15)
    assert similarity.stage_loss(torch.randn(5, 3).double(), t) > 1e-4


def test_pkt_ignores_rotation_and_length():
    t = torch.randn(6, 8).double()
    turned = t @ rotation(8) * torch.rand(6, 1).double().add(0.5)  # no change of cosines
    assert pkt.pkt_loss(turned, t).item() == pytest.approx(0, abs=1e-8)
    x = torch.randn(6, 8)
    x[2] = 0
    x.requires_grad_()
    assert_finite(pkt.pkt_loss(x, torch.randn(6, 8)), x)


def test_correlation_by_hand_and_without_a_pair():
    s, t = torch.tensor([[1.0, 0.0], [2.0, 2.0], [0.0, 1.0]]), torch.zeros(3, 2)
    assert correlation.correlation_loss(s, t).item() == pytest.approx((1 * 2 + 2 * 1) / 2)
    assert correlation.correlation_loss(s[:1], t[:1]).item() == 0


def test_rkd_ignores_translation_rotation_and_scale():
    """A set of points that is moved, turned and scaled as a whole keeps its relations."""
    t = torch.randn(6, 8).double()
    moved = 3 * t @ rotation(8) + torch.randn(8).double()
    assert sum(rkd.rkd_losses(moved, t)).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "weights"),
    [("rkd", (25, 50)), ("ega", (1.0, 0.3)), ("itrd", (0.05, 2.0)), ("dcd", (1.0, 0.5))],
)
def test_weighted_parts_add_up_to_the_loss(name, weights, setup):
    method = METHODS[name](METHODS[name].Options(), setup)
    loss = method(setup.student, setup.teacher, None)
    parts = list(method.parts.values())
    torch.testing.assert_close(loss, sum(w * p for w, p in zip(weights, parts, strict=True)))
    assert all(part.shape == () and not part.requires_grad for part in parts)


def test_rkd_angles_are_cosines_between_differences():
    x = torch.randn(4, 3).double()
    direction = x[None] - x[:, None]  # from i to j
    expected = F.cosine_similarity(direction[:, :, None], direction[:, None], dim=3)
    off = ~torch.eye(4, dtype=torch.bool)
    both = off[:, :, None] & off[:, None, :]
    _, cosines = rkd.relations(x)
    torch.testing.assert_close(cosines[both], expected[both])
    assert cosines[~both].abs().max() == 0


@pytest.mark.parametrize("rows", [torch.ones(4, 3), torch.zeros(4, 3), torch.ones(1, 3)])
def test_rkd_is_finite_for_equal_rows_and_for_one(rows):
    x = rows.clone().requires_grad_()
    assert_finite(sum(rkd.rkd_losses(x, torch.randn(len(rows), 5))), x)


@pytest.mark.parametrize("shape", [(2, 5, 6, 6), (2, 9, 2, 2)])  # either of the two forms
def test_nst_is_the_papers_double_sum(shape):
    s, t = torch.randn(shape).double(), torch.randn(2, 7, *shape[2:]).double()
    a, b = (F.normalize(x.flatten(2), dim=2) for x in (s, t))

    def kernel(x, y):
        return (x[:, :, None] * y[:, None]).sum(dim=3).square().mean()

    literal = kernel(b, b) + kernel(a, a) - 2 * kernel(a, b)
    torch.testing.assert_close(nst.stage_loss(s, t), literal)


def test_nst_ignores_the_order_of_channels():
    t = torch.randn(2, 6, 4, 4).double()
    order = torch.randperm(6)
    assert nst.stage_loss(t[:, order], t).item() == pytest.approx(0, abs=1e-14)
    x = torch.zeros(2, 6, 4, 4, requires_grad=True)
    assert_finite(nst.stage_loss(x, torch.randn(2, 6, 4, 4)), x)


def test_vid_is_the_gaussians_likelihood():
    likelihood = vid.Likelihood(3, 4, variance=5.0, eps=1e-5)
    s, t = torch.randn(2, 3, 4, 4), torch.randn(2, 4, 4, 4)
    variance = torch.full((), 5.0)
    normal = torch.distributions.Normal(likelihood.regressor(s), variance.sqrt())
    constant = 0.5 * torch.log(torch.tensor(2 * torch.pi))
    torch.testing.assert_close(likelihood(s, t), (-normal.log_prob(t) - constant).mean())


def test_vid_is_finite_for_any_scale():
    likelihood = vid.Likelihood(3, 4, variance=5.0, eps=1e-5)
    with torch.no_grad():
        likelihood.log_scale.copy_(torch.tensor([-1e4, -50.0, 50.0, 1e4]))
    s = torch.randn(2, 3, 4, 4, requires_grad=True)
    assert_finite(likelihood(s, torch.randn(2, 4, 4, 4)), s, likelihood.log_scale)


@pytest.mark.parametrize("variance", [1e-9, 0.1, 5.0, 800.0])
def test_vid_starts_at_the_variance_that_is_given(variance):
    likelihood = vid.Likelihood(3, 4, variance, eps=1e-5)
    start = F.softplus(likelihood.log_scale) + likelihood.eps
    torch.testing.assert_close(start, torch.full((4,), max(variance, 2e-5)))


@pytest.fixture
def setup():
    student, teacher = (MODELS[name](10).eval() for name in ("resnet8", "resnet14"))
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        features = student.features(images), teacher.features(images)
    return Setup(*features, student, teacher, torch.arange(20) % 10)


def test_a_hint_layer_that_is_not_there(setup):
    hint = METHODS["hint"]
    with pytest.raises(ValueError, match=r"the student has no layer 4; it has 0 \(16, 16, 16\)"):
        hint(hint.Options(hint_layer=4), setup)
    hint(hint.Options(hint_layer=0), setup)


def test_a_hint_whose_sizes_no_convolution_joins(setup):
    tiny = replace(setup.student, stages=tuple(F.avg_pool2d(x, 4) for x in setup.student.stages))
    hint = METHODS["hint"]
    with pytest.raises(
        ValueError, match=r"student's map \(32, 2, 2\) to the teacher's \(32, 8, 8\)"
    ):
        hint(hint.Options(), replace(setup, student=tiny))


@pytest.mark.parametrize("name", ["attention", "similarity", "nst", "vid", "hint", "fsp", "abound"])
def test_a_network_without_maps(name, setup):
    bare = replace(setup.student, stem=None, stages=(), preacts=(), last_map=None)
    with pytest.raises(ValueError, match="the student has no"):
        METHODS[name](METHODS[name].Options(), replace(setup, student=bare))


@pytest.mark.parametrize("name", ["attention", "nst", "vid"])
def test_stages_without_a_partner_are_named_once(name, setup):
    short = replace(setup.student, stages=setup.student.stages[:2])
    with pytest.warns(UserWarning, match=r"teacher's stage 3 \(64, 4, 4\) has no partner"):
        method = METHODS[name](METHODS[name].Options(), replace(setup, student=short))
    assert method(short, setup.teacher, None).isfinite()

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dataset.base import Batch
from distiller_zoo.base import LogitDistiller, Rows, apply_views, logit_rows, pair_stages
from distiller_zoo.kd import KD
from distiller_zoo.nkd import NKD
from distiller_zoo.rows import kl
from distiller_zoo.views import LogitStandardization, ScaleDecoupling, Tekap, z_score
from distiller_zoo.wsld import WSLD, weights
from models.base import Features
from tests.adapters import bare_setup, only_logits


def test_kl_by_hand():
    """Two classes, T = 2: KL of (3/4, 1/4) against (1/2, 1/2), times 4."""
    log3 = torch.log(torch.tensor(3.0))
    teacher, student = torch.tensor([[2 * log3, 0.0]]), torch.zeros(1, 2)
    by_hand = 4 * (0.75 * torch.log(torch.tensor(1.5)) + 0.25 * torch.log(torch.tensor(0.5)))
    torch.testing.assert_close(kl(student, teacher, 2.0), by_hand[None])


def test_kd_tends_to_matching_logits_as_the_temperature_grows():
    """Hinton et al., eq. 4: at high T, KD is 1/(2K) of the squared distance of centred logits."""
    student, teacher = torch.randn(5, 10).double(), torch.randn(5, 10).double()

    def centred(x):
        return x - x.mean(dim=1, keepdim=True)

    limit = (centred(student) - centred(teacher)).square().sum(dim=1) / (2 * 10)
    torch.testing.assert_close(kl(student, teacher, 1e4), limit, rtol=1e-3, atol=0)


def test_kd_is_finite_where_probabilities_underflow():
    student = torch.tensor([[500.0, -500.0, 0.0]], requires_grad=True)
    loss = kl(student, torch.tensor([[-500.0, 500.0, 0.0]]), 1.0).sum()
    loss.backward()
    torch.testing.assert_close(loss, torch.tensor(1000.0))
    assert student.grad.isfinite().all()


def test_a_region_that_disagrees_with_the_image_counts_twice():
    teacher = torch.tensor(
        [  # (R, B, K): the image, then two regions; two samples of class 0
            [[2.0, 1.0], [1.0, 2.0]],
            [[2.0, 1.0], [2.0, 1.0]],
            [[1.0, 2.0], [1.0, 2.0]],
        ]
    )
    weights = ScaleDecoupling.weights(teacher, torch.tensor([0, 0]))
    assert weights.tolist() == [[1, 1], [1, 2], [2, 1]]


def test_z_scores_and_their_gradient_at_a_constant_row():
    x = torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]], requires_grad=True)
    scores = z_score(x)
    torch.testing.assert_close(scores, torch.tensor([[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))
    scores.square().sum().backward()
    assert x.grad.isfinite().all()


def test_standardized_kd_does_not_see_scale_and_shift():
    from distiller_zoo.views import LogitStandardization as Standardize

    teacher = torch.randn(4, 10).double()
    view = Standardize(Standardize.Options(), bare_setup())
    rows = Rows(3 * teacher[None] + 5, teacher[None], torch.ones(1, 4))
    rows = view(rows, None, None, None)
    assert KD(KD.Options(), bare_setup()).per_row(*rows[:2], None).abs().max() < 1e-6


def test_tekap_draws_new_noise_for_each_copy():
    from distiller_zoo.views import Tekap

    teacher = torch.zeros(1, 4, 10)
    rows = Tekap(Tekap.Options(True, 3, 0.1, 0.8), bare_setup())(
        Rows(torch.zeros(1, 4, 10), teacher, torch.ones(1, 4)), None, None, None
    )
    assert rows.teacher.shape == rows.student.shape == (4, 4, 10)
    assert rows.weight[:, 0].tolist() == pytest.approx([1, 0.8, 0.8, 0.8])
    clean, *noisy = rows.teacher
    assert torch.equal(clean, teacher[0])
    assert not any(torch.equal(a, b) for a, b in zip(noisy, noisy[1:], strict=False))
    assert 0.05 < torch.stack(noisy).std() < 0.15


def test_stages_without_a_partner_are_named():
    long, short = [torch.zeros(2, c, 4, 4) for c in (8, 16, 32)], [torch.zeros(2, 8, 4, 4)]
    with pytest.warns(UserWarning, match=r"teacher's stage 2 \(16, 4, 4\), 3 \(32, 4, 4\) has no"):
        assert len(pair_stages(short, long)) == 1
    assert only_logits(torch.zeros(1, 2)).stages == ()


def test_rows_keep_the_plain_logits_of_each():
    views = [
        Tekap(Tekap.Options(True, tekap_copies=2), bare_setup()),
        LogitStandardization(LogitStandardization.Options(True), bare_setup()),
    ]
    student, teacher = only_logits(torch.randn(4, 10)), only_logits(torch.randn(4, 10))
    rows = apply_views(views, logit_rows(student, teacher), student, teacher, torch.arange(4))
    assert not torch.allclose(rows.teacher[0], rows.teacher[1])  # noise in it
    torch.testing.assert_close(rows.student.std(dim=2), torch.ones(3, 4))
    for plain, features in zip(rows.plain, (student, teacher), strict=True):
        assert torch.equal(plain, features.logits.expand(3, 4, 10))
    raw_student, raw_teacher = rows.raw  # with the noise
    assert torch.equal(raw_student, rows.plain[0])
    assert not torch.allclose(raw_teacher[0], raw_teacher[1])
    torch.testing.assert_close(z_score(raw_teacher), rows.teacher)


def test_a_loss_on_all_rows_sees_those_behind_the_views():
    """What it compares are rows of one batch with one another; labels are those of the samples."""

    class OfAllRows(LogitDistiller):
        def loss(self, rows, labels):
            self.seen = rows, labels
            return rows.student.sum()

    view = Tekap(Tekap.Options(True, tekap_copies=2), bare_setup())
    method = OfAllRows(None, bare_setup(view))
    student, labels = torch.randn(4, 10), torch.arange(4)
    loss = method(only_logits(student), only_logits(student), Batch(None, labels, None))
    torch.testing.assert_close(loss, 3 * student.sum())
    assert method.seen[0].weight.shape == (3, 4)
    assert torch.equal(method.seen[1], labels)


@pytest.mark.parametrize("T", [1.0, 3.0])
def test_weights_of_samples_do_not_change_when_logits_are_standardised(T):
    """WSLD's, and the teacher's probability of the label in NKD: of the logits at temperature 1."""
    student, teacher, labels = 3 * torch.randn(4, 10), 3 * torch.randn(4, 10), torch.arange(4)
    s, t = z_score(student), z_score(teacher)
    setup = replace(bare_setup(), student=only_logits(student))
    view = LogitStandardization(LogitStandardization.Options(True), setup)
    setup = replace(setup, views=(view,))

    def loss(method):
        return method(only_logits(student), only_logits(teacher), Batch(None, labels, None))

    soft = F.cross_entropy(s / T, F.softmax(t / T, dim=1), reduction="none")
    expected = (T**2 * weights(student, teacher, labels) * soft).mean()
    torch.testing.assert_close(loss(WSLD(WSLD.Options(kd_T=T), setup)), expected)
    q = F.softmax(teacher, dim=1).gather(1, labels[:, None])[:, 0]
    expected = (q * F.cross_entropy(s, labels, reduction="none")).mean()
    torch.testing.assert_close(loss(NKD(NKD.Options(T, nkd_gamma=0.0), setup)), expected)


@pytest.mark.parametrize("size", [4, 7, 8])
def test_regions_of_a_map_that_is_pooled_first(size):
    """As published: the map is pooled to 4x4, and the grids are cut from that."""
    last_map, head = torch.randn(2, 6, size, size), torch.nn.Linear(6, 5)
    features = Features(None, (), (), last_map, last_map.mean(dim=(2, 3)), torch.zeros(2, 5), head)
    square = F.adaptive_avg_pool2d(last_map, 4)
    expected = [
        head(region)
        for scale in (1, 2, 4)
        for region in F.adaptive_avg_pool2d(square, scale).flatten(2).permute(2, 0, 1)
    ]
    found = features.region_logits((1, 2, 4), pooled_to=4)
    torch.testing.assert_close(found, torch.stack(expected))
    same = torch.allclose(found, features.region_logits((1, 2, 4)), atol=1e-5)
    assert same == (size != 7)

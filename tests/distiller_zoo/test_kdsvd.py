from dataclasses import replace

import pytest
import torch

from benchmarks.literal.kdsvd import kdsvd as literal
from distiller_zoo.base import Setup
from distiller_zoo.kdsvd import KDSVD, SingularVectors, adjacent_loss, matched_vectors
from tests.adapters import bare_setup, only_logits


def maps(*shapes):
    return [torch.randn(2, *shape, dtype=torch.float64) for shape in shapes]


def kdsvd(f_s, f_t, k=1):
    stages = [matched_vectors(s, t, k) for s, t in zip(f_s, f_t, strict=True)]
    return sum(adjacent_loss(a, b).sum() for a, b in zip(stages[:-1], stages[1:], strict=True))


SHAPES = (6, 4, 4), (8, 4, 4), (12, 2, 2)


def test_ignores_position_and_scale():
    """Right singular vectors stay when positions change places and when a map is scaled."""
    f_t = maps(*SHAPES)
    f_s = [3 * x.flatten(2)[:, :, torch.randperm(x[0, 0].numel())].view_as(x) for x in f_t]
    assert kdsvd(f_s, f_t).item() == pytest.approx(0, abs=1e-20)
    assert kdsvd(maps(*SHAPES), f_t) > 1e-3


def test_by_hand():
    """All maps have one position and one active channel, the student's second map another one."""
    e0, e1 = torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)
    e0[:, 0], e1[:, 1] = 1, 1
    # Squared distances of entries: teacher [[0, 1], [1, 0]], student [[1, 0], [0, 1]].
    expected = 4 * (1 - torch.tensor(-1 / 8).exp()) ** 2
    torch.testing.assert_close(kdsvd([e0, e1], [e0, e0]), expected)


@pytest.mark.parametrize("shape", [(5, 4, 4), (9, 2, 2)])  # Gram matrix of channels, of positions
def test_singular_vectors_are_those_of_svd(shape):
    x = maps(shape)[0]
    _, values, rows = torch.linalg.svd(x.flatten(2).mT, full_matrices=False)
    found = SingularVectors(x, 3)
    torch.testing.assert_close(found.values, values[:, :3])
    torch.testing.assert_close(found.vectors.abs(), rows[:, :3].abs())


@pytest.mark.parametrize("k", [1, 2])
def test_equals_the_literal_form_and_its_gradient(k):
    f_t, f_s = maps(*SHAPES), maps(*SHAPES)
    gradients = []
    for form in (kdsvd, literal):
        leaves = [x.clone().requires_grad_() for x in f_s]
        loss = form(leaves, f_t, k)
        loss.backward()
        gradients.append([loss, *(x.grad for x in leaves)])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    "hard",
    [
        torch.zeros(2, 6, 4, 4),  # no vector at all
        torch.ones(2, 6, 4, 4),  # one alone
        torch.eye(6).expand(2, 6, 6)[..., None],  # all equally strong
        torch.eye(6)[:, :4].expand(2, 6, 4)[..., None] * 1e10,
        torch.randn(2, 6, 4, 4) * 1e-20,
    ],
    ids=["zero", "constant", "all equal", "all equal, large", "tiny"],
)
def test_is_finite_where_vectors_are_not_unique(hard):
    f_s = [hard.clone().requires_grad_(), torch.randn(2, 8, 4, 4).requires_grad_()]
    f_t = [torch.randn(2, 6, 4, 4), torch.randn(2, 8, 4, 4)]
    loss = kdsvd(f_s, f_t)
    loss.backward()
    assert loss.isfinite()
    assert all(x.grad.isfinite().all() for x in f_s)
    assert kdsvd(f_t, [hard, f_t[1]]).isfinite()


def setup_of(f_s, f_t) -> Setup:
    logits = only_logits(torch.zeros(2, 10))
    student, teacher = (replace(logits, pooled=logits.logits, stages=tuple(f)) for f in (f_s, f_t))
    return replace(bare_setup(), student=student, teacher=teacher)


def test_networks_it_cannot_compare():
    with pytest.raises(ValueError, match=r"student's \(6, 4, 4\), \(8, 4, 4\) and the teacher's"):
        KDSVD(KDSVD.Options(), setup_of(maps(*SHAPES[:2]), maps(SHAPES[0], SHAPES[0])))
    with pytest.raises(ValueError, match="two stages or more"):
        KDSVD(KDSVD.Options(), setup_of(maps(SHAPES[0]), maps(SHAPES[0])))
    with pytest.raises(ValueError, match="the student has no feature maps"):
        KDSVD(KDSVD.Options(), setup_of([], maps(SHAPES[0])))


def test_more_vectors_than_the_smallest_map_has():
    setup = setup_of(maps(*SHAPES), maps(*SHAPES))
    KDSVD(KDSVD.Options(kdsvd_k=4), setup)
    with pytest.raises(ValueError, match=r"--kdsvd_k 5 is more than the 4 .*\(12, 2, 2\)"):
        KDSVD(KDSVD.Options(kdsvd_k=5), setup)


def test_equal_singular_values_give_orthonormal_vectors():
    x = torch.zeros(2, 3, 2, 2)
    x[:, 0, 0, 0] = x[:, 1, 0, 1] = 1.0
    x[:, 2, 1, 1] = 0.5
    found = SingularVectors(x, 2)
    torch.testing.assert_close(found.values, torch.ones(2, 2))
    torch.testing.assert_close(found.vectors @ found.vectors.mT, torch.eye(2).expand(2, 2, 2))


def test_a_map_of_zeros_has_singular_values_zero():
    found = SingularVectors(torch.zeros(2, 3, 2, 2), 1)
    assert found.vectors.isfinite().all()
    assert not found.values.any()

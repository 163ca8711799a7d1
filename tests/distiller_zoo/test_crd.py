from dataclasses import replace
from math import log

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.literal import crd as literal
from crd import memory
from crd.memory import Memory, bank_loss, similarity
from dataset.base import Batch
from distiller_zoo.base import Setup
from distiller_zoo.crd import CRD
from tests.adapters import Case, index
from tests.adapters.crd import crd_of, only_pooled

B, N, K, D = 6, 40, 9, 8
LABELS = torch.arange(N) % 4
BATCH = Batch(None, LABELS[:B], torch.arange(B))


def made(**changes) -> tuple[CRD, torch.Tensor, torch.Tensor]:
    """The method in double precision, and vectors of a student and a teacher."""
    torch.manual_seed(0)
    f_s, f_t = torch.randn(B, 5).double().requires_grad_(), torch.randn(B, 7).double()
    setup = Setup(only_pooled(f_s), only_pooled(f_t), None, None, LABELS)
    options = replace(CRD.Options(feat_dim=D, nce_k=K), **changes)
    return CRD(options, setup).double(), f_s, f_t


def test_loss_where_all_scores_are_equal():
    """All scores equal: the positive is one of 1 + k, so log(1 + k) + k log(1 + 1/k) a side."""
    method, f_s, f_t = made()
    for bank in (method.memory_s.bank, method.memory_t.bank):
        bank.zero_()
    by_hand = 2 * (log(1 + K) + K * log(1 + 1 / K))
    loss = method(only_pooled(f_s), only_pooled(f_t), BATCH)
    assert loss.item() == pytest.approx(by_hand, rel=1e-5)  # eps = 1e-7 counts k times


@pytest.mark.parametrize("entry", [e for e in index()["cases"] if e["method"] == "crd"])
def test_literal_equals_the_reference(entry):
    case = Case(entry)
    method = crd_of(case)[0]
    z_s, z_t = method.embed_s(case["f_s"]), method.embed_t(case["f_t"])
    v1, v2 = method.memory_s.bank, method.memory_t.bank
    constants = [z if (z := case.state(f"z_v{i}")) > 0 else None for i in (1, 2)]
    t = case.hyper["nce_t"]
    loss = literal.crd(z_s, z_t, v1, v2, case["contrast_idx"], t, constants)
    np.testing.assert_allclose(loss.item(), case.expected("loss"), rtol=1e-9)
    updated = literal.updated_bank(v2, case["idx"], z_t, case.hyper["nce_m"])
    np.testing.assert_allclose(updated, case.expected("after/memory_v2"), rtol=1e-9)


ROWS = K * D * 8  # bytes of the rows of one sample


@pytest.mark.parametrize("budget", [B * N * 8, 4 * ROWS, ROWS, 1])
def test_similarity_picks_the_candidates(budget, monkeypatch):
    monkeypatch.setattr(memory, "BUDGET", budget)
    z, bank = torch.randn(B, D).double().requires_grad_(), torch.randn(N, D).double()
    index = torch.randint(0, N, (B, K))
    index[:, 1] = index[:, 0]  # twice the same one
    expected = torch.einsum("bd,bkd->bk", z, bank[index])
    weight = torch.randn(B, K).double()
    (gradient,) = torch.autograd.grad((expected * weight).sum(), z)
    found = similarity(z, bank, index)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad((found * weight).sum(), z)[0], gradient)
    torch.testing.assert_close(similarity(z, bank), z @ bank.T)


class Largest(TorchDispatchMode):
    """Notes the bytes of the largest tensor that is made."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        tensors = [x for x in torch.utils._pytree.tree_leaves(made) if isinstance(x, torch.Tensor)]
        self.bytes = max([self.bytes, *(x.nbytes for x in tensors)])
        return made


def test_a_large_bank_is_gathered_from_within_the_budget(monkeypatch):
    monkeypatch.setattr(memory, "BUDGET", 2 * ROWS)
    z, bank = torch.randn(B, D).double().requires_grad_(), torch.randn(100, D).double()
    index = torch.randint(0, 100, (B, K))
    with Largest() as largest:
        bank_loss(z, bank, index, torch.sum)
    assert largest.bytes == memory.BUDGET


@pytest.mark.parametrize("index", [torch.tensor([[0, 1, 1], [2, 0, 3]]), None])
def test_bank_loss_has_the_right_gradient_even_when_the_bank_changes_before_backward(index):
    torch.manual_seed(0)
    bank = torch.randn(4, 3).double()
    z = torch.randn(2, 3).double().requires_grad_()

    def loss_fn(similarity):
        return similarity.exp().sum()

    plain = 3 * loss_fn(similarity(z, bank.clone(), index))
    (expected,) = torch.autograd.grad(plain, z)
    loss = 3 * bank_loss(z, bank, index, loss_fn)
    bank.zero_()
    loss.backward()
    assert torch.equal(loss, plain)
    torch.testing.assert_close(z.grad, expected)


def test_memories_are_moving_averages_of_unit_length():
    method, f_s, f_t = made(nce_m=0.0)
    before = method.memory_t.bank.clone()
    method(only_pooled(f_s), only_pooled(f_t), BATCH)
    torch.testing.assert_close(method.memory_t.bank[:B], method.embed_t(f_t))
    torch.testing.assert_close(method.memory_s.bank[:B], method.embed_s(f_s))
    torch.testing.assert_close(method.memory_t.bank[B:], before[B:])
    slow = Memory(4, D, 0.07, 0.9)
    slow.update(torch.tensor([1, 3]), F.normalize(torch.randn(2, D), dim=1))
    torch.testing.assert_close(slow.bank.norm(dim=1), torch.ones(4))


def test_the_constant_is_set_by_the_first_batch_alone():
    method, f_s, f_t = made()
    features = only_pooled(f_s), only_pooled(f_t)
    method(*features, BATCH)
    first = method.memory_t.log_z.clone()
    assert first.isfinite()
    method(*features, BATCH)
    assert torch.equal(method.memory_t.log_z, first)


def test_relax_takes_the_positive_from_the_class():
    method, _, _ = made(crd_mode="relax")
    torch.manual_seed(0)
    drawn = torch.cat([method.candidates(BATCH) for _ in range(50)])
    labels = BATCH.labels.repeat(50)[:, None]
    assert (LABELS[drawn[:, :1]] == labels).all()
    assert (LABELS[drawn[:, 1:]] != labels).all()
    assert len(drawn[::B, 0].unique()) == N // 4


def test_is_finite_where_exp_overflows_and_vectors_are_zero():
    method, f_s, f_t = made(nce_t=1e-4)
    for embed in (method.embed_s, method.embed_t):
        embed.bias.data.zero_()
    f_s.data[0], f_t[0] = 0, 0
    method.float()
    f_s, f_t = f_s.detach().float().requires_grad_(), f_t.float()
    for _ in range(2):
        f_s.grad = None
        loss = method(only_pooled(f_s), only_pooled(f_t), BATCH)
        loss.backward()
        assert loss.isfinite()
        assert f_s.grad.isfinite().all()
        assert method.memory_s.bank.isfinite().all()


def test_one_class_alone_is_refused():
    features = only_pooled(torch.zeros(2, 5)), only_pooled(torch.zeros(2, 7))
    with pytest.raises(ValueError, match="at least two"):
        CRD(CRD.Options(), Setup(*features, None, None, torch.zeros(9, dtype=torch.long)))


def queue_loss(method, f_s, f_t):
    return method(only_pooled(f_s), only_pooled(f_t), BATCH)


def test_a_queue_gives_infonce_as_it_is_written():
    method, f_s, f_t = made(crd_memory="queue", nce_k=20)
    for _ in range(4):  # 24 vectors: the queue begins anew
        z_s, z_t = method.embed_s(f_s), method.embed_t(f_t)
        loss = queue_loss(method, f_s, f_t)
        bank = method.queue.bank
        torch.testing.assert_close(loss, literal.queue(z_s, z_t, bank, method.options.nce_t))
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in method.parameters())


def test_a_positive_among_equal_negatives():
    """All similarities equal: the positive is one of 1 + k, its likelihood 1 / (1 + k)."""
    method, f_s, _ = made(crd_memory="queue", nce_k=B)
    equal = torch.ones(B, 7).double()  # the batch is all of the queue
    assert queue_loss(method, f_s, equal).item() == pytest.approx(log(1 + B))


def test_noisy_teachers_enter_the_queue_one_after_the_other():
    method, f_s, f_t = made(crd_memory="queue", nce_k=20)
    teachers = [only_pooled(f_t), only_pooled(f_t + 1)]
    method.of_teachers(only_pooled(f_s), teachers, BATCH).backward()
    assert method.queue.next == 2 * B
    assert f_s.grad.isfinite().all()


def test_a_queue_knows_no_classes():
    with pytest.raises(ValueError, match="--mode relax needs memories"):
        made(crd_memory="queue", crd_mode="relax")
    with pytest.raises(ValueError, match="--nce_m needs memories"):
        made(crd_memory="queue", nce_m=0.9)

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.literal import rrd as literal
from crd.memory import Queue
from dataset.base import Batch
from distiller_zoo.base import Setup
from distiller_zoo.rrd import RRD
from tests.adapters import Case, index
from tests.adapters.crd import only_pooled
from tests.adapters.rrd import rrd_of

LABELS = torch.arange(40) % 4


def made(f_s, f_t, **changes) -> RRD:
    options = replace(RRD.Options(feat_dim=8, nce_k=20), **changes)
    return RRD(options, Setup(only_pooled(f_s), only_pooled(f_t), None, None, LABELS))


@pytest.mark.parametrize("entry", [e for e in index()["cases"] if e["method"] == "rrd"])
def test_literal_equals_the_reference(entry):
    case, h = Case(entry), entry["hyper"]
    method = rrd_of(case)[0]
    z_s, z_t = method.embed_s(case["f_s"]), method.embed_t(case["f_t"])
    temperatures = h["nce_t_s"], h["nce_t_t"]
    if h["variant"] == "momentum":
        v1, v2 = method.memory_s.bank, method.memory_t.bank
        place = case["contrast_idx"]
        loss = literal.momentum(z_s, z_t, v1, v2, place, h["nce_t"], *temperatures)
    else:
        if h["variant"] == "enqueue_before_loss":
            method.queue.enqueue(z_t)
        loss = literal.queue(z_s, z_t, method.queue.bank, *temperatures)
    np.testing.assert_allclose(loss.item(), case.expected("loss"), rtol=1e-9)


def test_is_smallest_where_the_relations_agree():
    """A student equal to the teacher has the teacher's entropy as its loss, and gradient 0."""
    torch.manual_seed(0)
    f_t = torch.randn(5, 8).double()
    f_s = f_t.clone().requires_grad_()
    method = made(f_s, f_t, nce_t_s=0.1, nce_t_t=0.1).double()
    method.embed_s.load_state_dict(method.embed_t.state_dict())
    loss = method(only_pooled(f_s), only_pooled(f_t), None)
    loss.backward()
    p = F.softmax(method.embed_t(f_t) @ method.queue.bank.T / 0.1, dim=1)
    torch.testing.assert_close(loss, -(p * p.log()).sum(dim=1).mean())
    assert f_s.grad.abs().max() < 1e-12
    assert method(only_pooled(f_s + 1), only_pooled(f_t), None) > loss


def test_queue_keeps_the_last_vectors_and_starts_with_unit_vectors():
    queue = Queue(5, 2)
    torch.testing.assert_close(queue.bank.norm(dim=1), torch.ones(5))
    for first, n in ((0, 3), (3, 3), (6, 1), (7, 12)):
        queue.enqueue(torch.arange(first, first + n)[:, None].expand(-1, 2).float())
        last = range(max(0, first + n - 5), first + n)
        if len(last) == 5:
            assert sorted(queue.bank[:, 0].tolist()) == list(last)
        assert queue.next == (first + n) % 5
        assert queue.bank[queue.next - 1, 0] == first + n - 1


@pytest.mark.parametrize("enqueue", ["before", "after"])
def test_when_the_batch_enters_the_queue(enqueue):
    f_s, f_t = torch.randn(3, 5), torch.randn(3, 7)
    method = made(f_s, f_t, enqueue=enqueue)
    bank = method.queue.bank.clone()
    loss = method(only_pooled(f_s), only_pooled(f_t), None)
    torch.testing.assert_close(method.queue.bank[:3], method.embed_t(f_t))
    bank = method.queue.bank if enqueue == "before" else bank
    z_s, z_t = method.embed_s(f_s), method.embed_t(f_t)
    torch.testing.assert_close(loss, literal.queue(z_s, z_t, bank, 0.1, 0.02), rtol=1e-4, atol=0)


def test_scores_that_overflow_are_finite():
    """Z is set by dissimilar vectors; then everything is alike, at exp(2 / 0.01)."""
    f = torch.eye(8)
    method = made(f, f, rrd_memory="momentum", nce_t=0.01)
    for memory in (method.memory_s, method.memory_t):
        memory.bank.copy_(-method.embed_s(f[:1]).detach().expand_as(memory.bank))
    features = [only_pooled(f[:1].clone().requires_grad_()), only_pooled(f[:1])]
    method.embed_t.load_state_dict(method.embed_s.state_dict())
    batch = Batch(None, LABELS[:1], torch.arange(1))
    for _ in range(2):
        loss = method(*features, batch)
        loss.backward()
        assert loss.isfinite()
        assert features[0].pooled.grad.isfinite().all()
        for memory in (method.memory_s, method.memory_t):
            memory.bank.neg_()


@pytest.mark.parametrize("kind", ["queue", "momentum"])
def test_teachers_embedding_never_learns_and_hard_input_is_finite(kind):
    f_s, f_t = torch.randn(4, 5).requires_grad_(), torch.randn(4, 7)
    f_s.data[0], f_t[1], f_t[2] = 0, 0, 1e6
    method = made(f_s, f_t, rrd_memory=kind, nce_t=1e-2, nce_t_s=1e-3, nce_t_t=1e-3)
    method.embed_s.bias.data.zero_()
    for n in (4, 1, 4):  # a partial batch in between
        batch = Batch(None, LABELS[:n], torch.arange(n))
        loss = method(only_pooled(f_s[:n]), only_pooled(f_t[:n]), batch)
        loss.backward()
        assert loss.isfinite()
    assert f_s.grad.isfinite().all()
    assert method.embed_s.weight.grad.isfinite().all()
    assert all(p.grad is None for p in method.embed_t.parameters())


def test_momentum_needs_two_classes():
    features = only_pooled(torch.zeros(2, 5)), only_pooled(torch.zeros(2, 7))
    options = RRD.Options(rrd_memory="momentum")
    with pytest.raises(ValueError, match="at least two"):
        RRD(options, Setup(*features, None, None, torch.zeros(9, dtype=torch.long)))

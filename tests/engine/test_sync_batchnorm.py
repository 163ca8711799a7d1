"""BatchNorm over several processes. What whole runs of it give is in test_distributed.py."""

from collections import Counter

import pytest
import torch
import torch.distributed as dist
from torch import nn

from engine import sync_batchnorm
from engine.sync_batchnorm import SyncBatchNorm2d, synchronise
from models import MODELS

CPU = torch.device("cpu")


@pytest.fixture
def alone(monkeypatch):
    """A group of one process -> how often it calls each collective."""
    calls = Counter()

    def all_gather(received, sent):
        calls["all_gather"] += 1
        received[0].copy_(sent)

    def all_reduce(total):
        calls["all_reduce"] += 1

    monkeypatch.setattr(sync_batchnorm, "world_size", lambda: 1)
    monkeypatch.setattr(dist, "all_gather", all_gather)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    return calls


def synchronised(monkeypatch, network, device=CPU):
    """A network whose BatchNorm is that of several processes."""
    with monkeypatch.context() as context:
        context.setattr(sync_batchnorm, "world_size", lambda: 2)
        return synchronise(network, device)


def test_one_collective_call_a_layer_forward_and_one_backward(alone, monkeypatch):
    network = synchronised(monkeypatch, MODELS["resnet8"](10))
    layers = sum(type(module) is SyncBatchNorm2d for module in network.modules())
    network(torch.randn(4, 3, 16, 16)).sum().backward()
    assert layers == 9
    assert alone == {"all_gather": layers, "all_reduce": layers}


@pytest.mark.parametrize("how", [{}, {"momentum": None}, {"affine": False}, {"eps": 0.1}])
def test_of_one_process_it_is_torchs_own(how, alone, monkeypatch):
    layers = [nn.BatchNorm2d(3, **how), synchronised(monkeypatch, nn.BatchNorm2d(3, **how))]
    x, weight = torch.randn(2, 5, 3, 4, 4).unbind()
    results = []
    for layer in layers:
        leaf = (100 + x).requires_grad_()
        for _ in range(2):
            y = layer(leaf)
        (y * weight).sum().backward()
        gradients = [leaf.grad, *(p.grad for p in layer.parameters())]
        results.append([y, *gradients, *layer.buffers()])
    assert len(results[0]) == len(results[1])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_shares_add_up_without_cancellation(monkeypatch):
    """Three processes, one of which has no image: each gets the statistics of the whole."""
    whole = 1e4 + torch.randn(5, 3, 4, 4)
    shares, sent = whole.split([3, 2, 0]), []
    monkeypatch.setattr(sync_batchnorm, "world_size", lambda: 3)

    def note(received, tensor):
        sent.append(tensor)
        for place in received:
            place.copy_(tensor)

    monkeypatch.setattr(dist, "all_gather", note)
    for share in shares:
        sync_batchnorm.Normalise.apply(share, 1e-5)
    monkeypatch.setattr(
        dist, "all_gather", lambda received, _: [a.copy_(b) for a, b in zip(received, sent)]
    )
    wanted = nn.functional.batch_norm(whole.double(), None, None, training=True).split([3, 2, 0])
    for share, expected in zip(shares, wanted, strict=True):
        y, mean, var, count = sync_batchnorm.Normalise.apply(share, 1e-5)
        assert count == 5 * 16
        torch.testing.assert_close(
            var.double(), whole.double().var((0, 2, 3), False), rtol=1e-3, atol=0
        )
        torch.testing.assert_close(y.double(), expected, rtol=0, atol=5e-3)


def test_on_a_gpu_it_is_torchs_own(monkeypatch):
    network = MODELS["resnet8"](10)
    before, names = list(network.modules()), list(network.state_dict())
    synchronised(monkeypatch, network, torch.device("cuda"))
    assert all(a is b for a, b in zip(before, network.modules(), strict=True))
    assert sum(type(module) is nn.SyncBatchNorm for module in network.modules()) == 9
    assert list(network.state_dict()) == names
    assert network.eval()(torch.randn(2, 3, 16, 16)).shape == (2, 10)

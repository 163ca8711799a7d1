"""Features are converted when they are read, and only then."""

import torch

from dataset.base import Batch
from distiller_zoo import METHODS
from distiller_zoo.base import Recipe
from engine.device import Numerics
from engine.features import LazyFeatures
from engine.objective import Distillation
from models import MODELS
from tests.adapters import bare_setup


def test_each_tensor_is_converted_once_and_only_where_it_is_read():
    own = MODELS["resnet8"](4).eval().features(torch.randn(2, 3, 16, 16))
    converted = []
    lazy = LazyFeatures(own, lambda x: converted.append(x.shape) or 1.0 * x)
    assert converted == []
    assert torch.equal(lazy.logits, own.logits)
    assert lazy.logits is lazy.logits
    assert converted == [(2, 4)]
    assert len(lazy.stages) == 3
    assert len(converted) == 4
    other = lazy.replace(pooled=torch.zeros(1))
    assert other.pooled.shape == (1,)
    assert other.logits is lazy.logits
    assert lazy.pooled.shape == (2, 64)
    assert lazy.region_logits((1, 2)).shape == (5, 2, 4)


def test_under_autocast_only_what_a_loss_reads_is_cast():
    numerics = Numerics(torch.device("cpu"), amp="bf16")
    kd = METHODS["kd"](METHODS["kd"].Options(), bare_setup())
    networks = MODELS["resnet8"](4), MODELS["resnet14"](4)
    task = Distillation(networks, kd, kd, "kd", Recipe(0.1, 0.9, 0), numerics).train()
    features = []
    whole = task.whole
    task.whole = lambda *arguments: features.append(whole(*arguments)) or features[-1]
    task(Batch(torch.randn(4, 3, 16, 16), torch.arange(4), torch.arange(4)), 1)
    for each in features:
        assert isinstance(each, LazyFeatures)
        assert each.logits.dtype == torch.float32
        assert not {"stages", "preacts", "stem", "last_map", "pooled"} & vars(each).keys()

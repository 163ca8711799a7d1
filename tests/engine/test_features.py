"""Features are converted when they are read, and only then."""

import torch

from dataset.base import Batch
from distiller_zoo import METHODS
from distiller_zoo.base import Recipe
from engine.device import Numerics
from engine.features import LazyFeatures
from engine.objective import Distillation
from engine.teacher import LiveTeacher
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
    assert converted == [(2, 4)]
    assert lazy.stages[-1] is lazy.stages[2]  # one of them alone
    assert len(converted) == 2
    assert torch.equal(lazy.stages[0], own.stages[0])
    assert len(list(zip(lazy.stages[:2], own.stages[:2], strict=True))) == 2
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
    task = Distillation(
        networks[0], LiveTeacher(networks[1], numerics), kd, kd, "kd", Recipe(0.1, 0.9, 0)
    ).train()
    features = []
    kd.register_forward_pre_hook(lambda _, shown: features.extend(shown[:2]))
    task(Batch(torch.randn(4, 3, 16, 16), torch.arange(4), torch.arange(4)))
    assert len(features) == 2
    for each in features:
        assert isinstance(each, LazyFeatures)
        assert each.logits.dtype == torch.float32
        assert not {"stages", "preacts", "stem", "last_map", "pooled"} & vars(each).keys()


def test_a_teacher_sees_pixels_normalised_its_own_way():
    raw = torch.rand(4, 3, 16, 16)
    own, given = ([0.4, 0.5, 0.6], [0.2, 0.25, 0.3]), ([0.5, 0.5, 0.5], [0.5, 0.4, 0.3])

    def normalised(mean, std):
        return (raw - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

    numerics = Numerics(torch.device("cpu"))
    student, teacher = MODELS["resnet8"](4), MODELS["resnet14"](4).eval()
    expected = teacher(normalised(*own))
    keys = teacher.state_dict().keys()
    teacher.expect_statistics(own, given)
    assert teacher.state_dict().keys() == keys
    kd = METHODS["kd"](METHODS["kd"].Options(), bare_setup())
    task = Distillation(
        student, LiveTeacher(teacher, numerics), kd, kd, "kd", Recipe(0.1, 0.9, 0)
    ).train()
    batch = Batch(normalised(*given), torch.arange(4), torch.arange(4))
    torch.testing.assert_close(task.features(batch)[1].logits, expected, rtol=1e-4, atol=1e-4)
    scores = numerics.predictor(teacher, "teacher")(batch.images)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)
    same = MODELS["resnet14"](4)
    same.expect_statistics(given, given)
    assert same.own_pixels(raw) is raw

"""Every network of the registry: published keys and values, and the contract of `Features`."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import MODELS
from models.adapters import pool_to
from tests.adapters import GOLDEN
from tests.golden.fill import fill, make_input
from tests.issued import Issued

INDEX = json.loads((GOLDEN / "models.json").read_text())["models"]
FORWARD = np.load(GOLDEN / "models_forward.npz")
CASES = [(name, 32) for name in INDEX if f"{name}/logits" in FORWARD]
CASES += [(name, 64) for name in INDEX if f"{name}@64/logits" in FORWARD]
TOLERANCE = {torch.float64: (1e-9, 1e-11), torch.float32: (1e-4, 1e-6)}


def test_there_are_cases():
    assert len(INDEX) == 22
    assert len(CASES) == 20


@pytest.mark.parametrize("name", ["vgg8", "MobileNetV1", "MobileNetV2"])
def test_a_classifier_starts_as_published(name):
    """N(0, 0.01^2), as RepDistiller's."""
    (linear,) = (module for module in MODELS[name](100).modules() if isinstance(module, nn.Linear))
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not linear.bias.any()


@pytest.mark.parametrize("name", INDEX)
def test_keys_shapes_and_their_order_are_the_published_ones(name):
    state = MODELS[name](100).state_dict()
    assert [[key, list(value.shape)] for key, value in state.items()] == INDEX[name]["state_dict"]


@pytest.mark.parametrize("name", INDEX)
def test_which_parameters_are_features_and_which_norms_end_stages(name):
    network = MODELS[name](100)
    names = {id(parameter): key for key, parameter in network.named_parameters()}
    features = [names[id(parameter)] for parameter in network.feature_parameters()]
    assert features == INDEX[name]["feat_module_params"]
    modules = {id(module): key for key, module in network.named_modules()}
    if INDEX[name]["bn_before_relu"] is None:
        with pytest.raises(ValueError, match="no BatchNorm right before"):
            network.preact_norms()
    else:
        norms = [modules[id(norm)] for norm in network.preact_norms()]
        assert norms == INDEX[name]["bn_before_relu"]


def assert_close(got, wanted, dtype):
    rtol, atol = TOLERANCE[dtype]
    worst = np.abs(np.asarray(got, dtype=np.float64) - wanted).max()
    assert worst <= rtol * np.abs(wanted).max() + atol


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["double", "single"])
@pytest.mark.parametrize(("name", "size"), CASES)
def test_values_are_the_published_ones(name, size, dtype):
    network = MODELS[name](100).to(dtype).eval()
    fill(network.state_dict())
    with torch.no_grad():
        shown = network.features(make_input(size=size).to(dtype))
    prefix = name if size == 32 else f"{name}@{size}"
    assert_close(shown.logits, FORWARD[f"{prefix}/logits"], dtype)
    for kind, maps in (("feat", shown.stages), ("preact", shown.preacts)):
        for i, tensor in enumerate([shown.stem, *maps, shown.pooled]):
            key = f"{prefix}/{kind}.{i}"
            assert list(tensor.shape) == list(FORWARD[f"{key}/shape"]), key
            assert_close(tensor.flatten()[:16], FORWARD[f"{key}/first16"], dtype)
            moments = [tensor.mean(), tensor.std(unbiased=False)]
            assert_close(moments, [FORWARD[f"{key}/mean"], FORWARD[f"{key}/std"]], dtype)
        assert f"{prefix}/{kind}.{i + 1}/mean" not in FORWARD, "a stage is missing"


def test_pre_activations_of_shufflenet_v2_are_in_the_order_before_the_shuffle():
    """The last BatchNorms of a stage's last unit are its second half; shuffling gives the stage."""
    network, given = MODELS["ShuffleV2"](7).eval(), {}
    layers = network.layer1, network.layer2, network.layer3
    for layer in layers:
        layer[-1].bn3.register_forward_hook(lambda m, _, out: given.__setitem__(m, out))
    shown = network.features(torch.randn(2, 3, 32, 32))
    for layer, preact, stage in zip(layers, shown.preacts, shown.stages, strict=True):
        assert torch.equal(preact.chunk(2, dim=1)[1], given[layer[-1].bn3])
        assert torch.equal(nn.functional.channel_shuffle(preact.relu(), 2), stage)
        assert not torch.equal(preact.relu(), stage)


@pytest.mark.parametrize("name", list(MODELS))
def test_contract_of_features(name):
    network = MODELS[name](7).train()
    images = torch.randn(2, 3, 32, 32)
    runs = {module: 0 for module in network.modules() if isinstance(module, nn.BatchNorm2d)}
    for norm in runs:
        norm.register_forward_hook(lambda m, *_: runs.__setitem__(m, runs[m] + 1))
    shown = network.features(images)
    assert set(runs.values()) == {1}, "each BatchNorm runs once, pre-activations or not"

    assert shown.logits.shape == (2, 7)
    assert len(shown.preacts) == len(shown.stages) >= 3
    assert all(p.shape == s.shape for p, s in zip(shown.preacts, shown.stages, strict=True))
    assert shown.head is network.head
    torch.testing.assert_close(shown.last_map.mean(dim=(2, 3)), shown.pooled)
    torch.testing.assert_close(shown.head(shown.pooled[None])[0], shown.logits)
    torch.testing.assert_close(shown.region_logits((1,))[0], shown.logits)
    grid = min(2, shown.last_map.shape[2])
    assert shown.region_logits((1, grid)).shape == (1 + grid**2, 2, 7)

    shown.logits.square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("name", ["resnet8", "ResNet50", "wrn_16_2", "vgg8", "MobileNetV2"])
@pytest.mark.parametrize("size", [16, 48, 64])
def test_other_sizes_of_images(name, size):
    shown = MODELS[name](10).eval().features(torch.randn(1, 3, size, size))
    assert shown.logits.shape == (1, 10)
    torch.testing.assert_close(shown.region_logits((1,))[0], shown.logits)


@pytest.mark.parametrize(
    ("height", "width", "least"), [(4, 4, 8), (32, 7, 8), (7, 64, 8), (64, 8, 16)]
)
def test_an_image_that_pools_to_nothing_says_so(height, width, least):
    network = MODELS["vgg8"](10).eval()
    with pytest.raises(ValueError, match=f"{height}x{width} images .* {least}x{least}"):
        network.features(torch.randn(1, 3, height, width))
    assert network(torch.randn(1, 3, 8, 8)).shape == (1, 10)


@pytest.mark.parametrize("name", list(MODELS))
def test_the_rate_of_the_recipe(name):
    small = {"MobileNetV2", "ShuffleV1", "ShuffleV2"}
    assert MODELS[name](10).learning_rate == (0.01 if name in small else 0.05)


def test_regions_are_the_means_of_cells():
    shown = MODELS["resnet8"](5).eval().features(torch.randn(2, 3, 32, 32))
    regions = shown.region_logits((1, 2, 4))  # (21, 2, 5)
    last, head = shown.last_map, shown.head
    torch.testing.assert_close(regions[1 + 1], head(last[:, :, :4, 4:].mean(dim=(2, 3))))
    torch.testing.assert_close(regions[5 + 6], head(last[:, :, 2:4, 4:6].mean(dim=(2, 3))))
    finer = shown.region_logits((1, 16))[1:].view(16, 16, 2, 5)  # each place of the 8x8 map, often
    torch.testing.assert_close(finer[9, 4], head(last[:, :, 4, 2]))
    with pytest.raises(ValueError, match="1x1 last map has no regions"):
        MODELS["resnet8"](5).eval().features(torch.randn(2, 3, 4, 4)).region_logits((1, 2))


@pytest.mark.parametrize("name", list(MODELS))
def test_deterministic_kernels_train_every_network(name):
    with torch.device("meta"):  # which operations there are, and no numbers
        network, images = MODELS[name](10), torch.empty(2, 3, 64, 64)
    with Issued() as issued:
        network(images).sum().backward()
    assert issued.seen
    assert not issued.refused


@pytest.mark.parametrize(
    ("size", "to"), [((8, 8), (4, 4)), ((7, 7), (4, 4)), ((6, 9), (4, 3)), ((2, 5), (4, 4))]
)
def test_maps_are_pooled_to_any_size(size, to):
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, *to, dtype=torch.float64)
    results = []
    for pool in (pool_to, F.adaptive_avg_pool2d):
        y = pool(x, to)
        results.append((y, *torch.autograd.grad((y * weight).sum(), x)))
    torch.testing.assert_close(*results)

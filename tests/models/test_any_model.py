"""Networks from elsewhere behind the contract of the zoo."""

import copy
import gc
import sys
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helper.errors import UserError
from models.any import build


class Functional(nn.Module):
    """A plain network that activates by functions, as many in the field do."""

    def __init__(self, num_classes, width=8):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = Block(width, width, 1)
        self.layer2 = Block(width, 2 * width, 2)
        self.layer3 = Block(2 * width, 4 * width, 2)
        self.register_buffer("scale", torch.ones(()))
        self.out = nn.Linear(4 * width, num_classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x))) * self.scale
        return self.out(x.mean(dim=(2, 3)))


class Block(nn.Module):
    def __init__(self, a, b, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(a, b, 3, stride, 1)
        self.conv2 = nn.Conv2d(b, b, 3, 1, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.conv2(self.relu(self.conv1(x))))


class TwoOutputs(Functional):
    def forward(self, x):
        return super().forward(x), x


class NoClassifier(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(3, num_classes, 3)

    def forward(self, x):
        return self.conv(x).mean(dim=(2, 3))


def takes_nothing():
    return nn.Identity()


def raises(num_classes):
    raise KeyError("weights")


def a_number(num_classes):
    return num_classes


HERE = __name__


@pytest.mark.parametrize(
    ("name", "size", "stages", "activated"),
    [
        ("torchvision:resnet18", 64, [(64, 16), (128, 8), (256, 4), (512, 2)], [0, 1, 2, 3]),
        (
            "torchvision:mobilenet_v2",
            64,
            [(16, 32), (24, 16), (32, 8), (96, 4), (1280, 2)],
            [4],
        ),
        (
            "torchvision:efficientnet_b0",
            64,
            [(16, 32), (24, 16), (40, 8), (112, 4), (1280, 2)],
            [4],
        ),
        ("torchvision:densenet121", 64, [(256, 16), (512, 8), (1024, 4), (1024, 2)], []),
        (f"{HERE}:Functional", 32, [(8, 32), (16, 16), (32, 8)], [0, 1, 2]),
    ],
)
def test_features_are_found(name, size, stages, activated):
    torch.manual_seed(0)
    network = build(name, 7, size)
    images = torch.randn(2, 3, size, size)
    shown = network.eval().features(images)
    assert [(s.shape[1], s.shape[2]) for s in shown.stages] == stages
    assert torch.equal(shown.logits, network(images))
    torch.testing.assert_close(shown.last_map.mean(dim=(2, 3)), shown.pooled)
    torch.testing.assert_close(shown.region_logits((1,))[0], shown.logits, rtol=1e-4, atol=1e-4)
    for i, (stage, before) in enumerate(zip(shown.stages, shown.preacts, strict=True)):
        assert torch.equal(stage, before) == (i not in activated), i
        if i in activated:
            assert (before < 0).any()

    shown = network.train().features(images)
    (shown.logits.sum() + sum(s.sum() for s in shown.stages)).backward()
    assert all(p.grad is not None for p in network.parameters())


class Reused(Functional):
    """Runs one activation module after every stage, and a last ReLU as a function."""

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.act = nn.ReLU()
        self.last = nn.Conv2d(32, 32, 1)

    def forward(self, x):
        for layer in (self.conv1, self.layer1, self.layer2, self.layer3):
            x = self.act(layer(x))
        return self.out(F.relu(self.last(x)).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        (
            f"{HERE}:Functional",
            32,
            "stages: layer1 (8, 32, 32), layer2 (16, 16, 16), layer3 (32, 8, 8); "
            "last map layer3; classifier out",
        ),
        (
            f"{HERE}:Reused",
            32,
            "stages: act[1] (8, 32, 32), act[2] (16, 16, 16), last (32, 8, 8); "
            "last map relu of last; classifier out",
        ),
        ("resnet8", 32, ""),
    ],
)
def test_what_was_found_is_described_in_a_line(name, size, expected):
    assert build(name, 7, size).describe() == expected


def test_a_transformer_has_logits_and_no_maps():
    network = build("torchvision:vit_b_32", 5, 224).eval()
    with torch.no_grad():
        shown = network.features(torch.randn(1, 3, 224, 224))
    assert network.describe() == "no stages; no last map; classifier heads.head"
    assert shown.stages == ()
    assert shown.stem is None
    assert shown.pooled.shape == (1, 768)
    assert shown.logits.shape == (1, 5)
    with pytest.raises(ValueError, match="regions need a network whose classifier"):
        shown.region_logits((1, 2))


@pytest.mark.parametrize(
    ("name", "blocks", "norm"),
    [("resnet18", (1, 1, 1, 1), "bn2"), ("resnet50", (2, 3, 5, 2), "bn3")],
)
def test_the_norms_before_the_activations_of_a_resnet(name, blocks, norm):
    """The last of each stage's last block; the shortcut is added to what it gives."""
    network = build(f"torchvision:{name}", 7, 64).eval()
    modules = {id(module): key for key, module in network.named_modules()}
    found = [modules[id(module)] for module in network.preact_norms()]
    assert found == [f"layer{i}.{block}.{norm}" for i, block in enumerate(blocks, start=1)]
    images = torch.randn(2, 3, 64, 64)
    assert all((before < 0).any() for before in network.features(images).preacts)
    for module in network.preact_norms():  # what is left then is the shortcut, behind a ReLU
        nn.init.zeros_(module.weight)
    assert not any((before < 0).any() for before in network.features(images).preacts)


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v2", f"{HERE}:Functional"])
def test_a_network_without_norms_before_its_activations_says_so(name):
    with pytest.raises(ValueError, match="has no BatchNorm right before the activation of"):
        build(name, 7, 64).preact_norms()


def test_the_state_is_that_of_the_network_alone():
    network, plain = build(f"{HERE}:Functional", 7, 32), Functional(7)
    assert list(network.state_dict()) == list(plain.state_dict())
    network.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(network.eval()(images), plain.eval()(images))
    network.double()
    assert network(images.double()).dtype == torch.float64
    assert network.network.scale.dtype == torch.float64
    assert not network.network.training
    assert network.train().network.training


def test_parameters_behind_the_last_stage():
    network = build("torchvision:resnet18", 7, 64)
    names = {id(p): name for name, p in network.named_parameters()}
    features = {names[id(p)] for p in network.feature_parameters()}
    assert set(names.values()) - features == {"fc.weight", "fc.bias"}
    assert network.head is network.network.fc


def test_looking_for_features_leaves_no_trace():
    torch.manual_seed(3)
    plain = Functional(7)
    torch.manual_seed(3)
    network = build(f"{HERE}:Functional", 7, 32)
    after = torch.rand(())
    torch.manual_seed(3)
    Functional(7)
    assert after == torch.rand(()), "torch's generator was used"
    for key, value in plain.state_dict().items():
        assert torch.equal(value, network.state_dict()[key]), key
    assert network.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_a_pass_keeps_nothing_alive():
    network = build(f"{HERE}:Functional", 7, 32)
    shown = network.features(torch.randn(2, 3, 32, 32))
    tensor = weakref.ref(shown.stages[0])
    del shown
    gc.collect()
    assert tensor() is None


def test_a_copy_is_independent():
    network = build(f"{HERE}:Functional", 7, 32)
    twin = copy.deepcopy(network)
    with torch.no_grad():
        network.head.weight.zero_()
    images = torch.randn(2, 3, 32, 32)
    assert not torch.equal(twin(images), network(images))
    assert torch.equal(twin.eval().features(images).logits, twin(images))


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("resnet9", 32, "no model 'resnet9'.*or torchvision:NAME, timm:NAME or package.module"),
        ("torchvision:resnet19", 32, "torchvision has no classifier 'resnet19'"),
        ("nowhere:net", 32, "nowhere:net cannot be imported"),
        (f"{HERE}:nothing", 32, "the module has no 'nothing'"),
        (f"{HERE}:takes_nothing", 32, "cannot be called with num_classes=7"),
        (f"{HERE}:raises", 32, "cannot be called with num_classes=7: KeyError: 'weights'"),
        (":net", 32, ":net cannot be imported"),
        (".relative:net", 32, "relative:net cannot be imported"),
        (f"{HERE}:a_number", 32, "gives int, not a torch.nn.Module"),
        (f"{HERE}:TwoOutputs", 32, r"gives tuple for 2 images, not \(2, 7\)"),
        (f"{HERE}:NoClassifier", 32, "not that of a torch.nn.Linear"),
        ("torchvision:densenet121", 8, "cannot read 8x8 images"),
    ],
)
def test_what_is_no_classifier_says_so(name, size, expected):
    with pytest.raises(UserError, match=expected):
        build(name, 7, size)


@pytest.mark.parametrize("code", ["def net(:", "import torch; torch.nothing_here"])
def test_a_module_that_does_not_load_says_so(code, tmp_path, monkeypatch):
    (tmp_path / "unloadable.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="unloadable:net cannot be imported: (Syntax|Attribute)"):
        build("unloadable:net", 7)


def test_timm_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="timm:resnet18 needs the timm package: pip install timm"):
        build("timm:resnet18", 7)


def test_timm_where_it_is_installed():
    pytest.importorskip("timm")
    network = build("timm:resnet18", 7, 64)
    assert len(network.features(torch.randn(1, 3, 64, 64)).stages) == 4
    with pytest.raises(UserError, match="timm has no model 'resnet19'"):
        build("timm:resnet19", 7)

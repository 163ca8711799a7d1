"""Networks from elsewhere behind the contract of the zoo."""

import copy
import gc
import sys
import weakref
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helper.errors import UserError
from models.any import build

HERE = __name__


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


class TwoInTraining(Functional):
    """An auxiliary output in training, as torchvision's GoogLeNet."""

    def forward(self, x):
        logits = super().forward(x)
        return Outputs(logits, logits) if self.training else logits


class Outputs(NamedTuple):
    logits: torch.Tensor
    aux_logits: torch.Tensor


class FailsInTraining(Functional):
    def forward(self, x):
        if self.training:
            raise RuntimeError("give targets as well\nand more")
        return super().forward(x)


class SkipsInTraining(Functional):
    """Leaves out a stage in training."""

    def forward(self, x):
        x = self.layer1(F.relu(self.conv1(x)))
        x = x.repeat(1, 2, 1, 1) if self.training else self.layer2(x)
        return self.out(self.layer3(x).mean(dim=(2, 3)))


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


class Residual(nn.Module):
    """Adds in place and activates by a function, after the last module has ended."""

    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.shortcut = nn.Conv2d(8, 8, 1, 2)
        self.conv = nn.Conv2d(8, 8, 3, 2, padding=1)
        self.out = nn.Linear(8, num_classes)

    def forward(self, x):
        x = F.relu(self.stem(x))
        short = self.shortcut(x)
        x = self.conv(x)
        x += short
        return self.out(F.relu(x).mean(dim=(2, 3)))


class OneSize(nn.Module):
    """Reads 16x16 images only: its last map is 1x1 and flattened, without pooling."""

    def __init__(self, num_classes):
        super().__init__()
        layers = []
        for c_in, c_out in ((3, 4), (4, 8), (8, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(c_in, c_out, 3, 2 if c_in > 3 else 1, 1), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*layers)
        self.pool = nn.AvgPool2d(1)
        self.out = nn.Linear(64, num_classes)

    def forward(self, x):
        return self.out(self.pool(self.body(x)).flatten(1))


class Grows(nn.Module):
    """Pools its last map to a larger one for a classifier of two layers, as VGG and AlexNet."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 4, 1)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(8, 8, 3, 2, 1)
        self.conv3 = nn.Conv2d(8, 8, 3, 1, 1)
        self.max_pool = nn.MaxPool2d(2)
        self.pool = nn.AdaptiveAvgPool2d(8)
        self.hidden = nn.Linear(8 * 8 * 8, 8)
        self.out = nn.Linear(8, num_classes)

    def forward(self, x):
        x = self.relu(self.conv3(self.conv2(self.relu(self.conv1(x)))))
        x = self.pool(self.max_pool(x)).flatten(1)
        return self.out(self.relu(self.hidden(x)))


class Crops(Functional):
    """Pools twice: of a 3x3 map the first pooling leaves out a row and a column."""

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.out(F.avg_pool2d(x, 2).mean(dim=(2, 3)))


def in_one_body(num_classes):
    layers = [nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU()]
    body = nn.Sequential(*layers, nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))


class ChannelsLast(nn.Module):
    """Layers on (B, H, W, C), normalised before the pooling, as Swin's."""

    def __init__(self, num_classes, width=12):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.stage1 = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.merge = nn.Linear(4 * width, 2 * width)
        self.stage2 = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, 2 * width))
        self.norm = nn.LayerNorm(2 * width)
        self.out = nn.Linear(2 * width, num_classes)

    def forward(self, x):
        x = self.stage1(self.patches(x).permute(0, 2, 3, 1))  # (B, H, W, C)
        x = self.merge(F.pixel_unshuffle(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1))
        return self.out(self.norm(self.stage2(x)).mean(dim=(1, 2)))


def channels_last_16(num_classes):
    """As many channels as pixels of a side, on images of 64x64 in the first stage."""
    return ChannelsLast(num_classes, 16)


def channels_last_32(num_classes):
    return ChannelsLast(num_classes, 32)


@pytest.mark.parametrize(
    ("name", "size", "stages", "activated", "last_map"),
    [
        ("torchvision:resnet18", 64, [(64, 16), (128, 8), (256, 4), (512, 2)], [0, 1, 2, 3], True),
        ("torchvision:resnet18", 32, [(64, 8), (128, 4), (256, 2), (512, 1)], [0, 1, 2, 3], True),
        ("torchvision:resnet18", 16, [(64, 4), (128, 2), (256, 1), (512, 1)], [0, 1, 2, 3], True),
        (
            "torchvision:mobilenet_v2",
            64,
            [(16, 32), (24, 16), (32, 8), (96, 4), (1280, 2)],
            [4],
            True,
        ),
        (
            "torchvision:efficientnet_b0",
            32,
            [(16, 16), (24, 8), (40, 4), (112, 2), (1280, 1)],
            [4],
            True,
        ),
        ("torchvision:densenet121", 32, [(256, 8), (512, 4), (1024, 2), (1024, 1)], [], True),
        ("torchvision:regnet_y_400mf", 32, [(48, 8), (104, 4), (208, 2), (440, 1)], range(4), True),
        ("torchvision:shufflenet_v2_x0_5", 32, [(48, 4), (96, 2), (1024, 1)], [2], True),
        ("torchvision:googlenet", 32, [(192, 8), (480, 4), (832, 2), (1024, 1)], [], True),
        (
            "torchvision:inception_v3",
            96,
            [(64, 45), (192, 20), (288, 9), (768, 4), (2048, 1)],
            [],
            True,
        ),
        ("torchvision:mobilenet_v3_small", 32, [(16, 8), (24, 4), (48, 2), (576, 1)], [3], False),
        ("torchvision:convnext_tiny", 32, [(96, 8), (192, 4), (384, 2), (768, 1)], [], False),
        ("torchvision:swin_t", 32, [(96, 8), (192, 4), (384, 2), (768, 1)], [], True),
        (f"{HERE}:Functional", 32, [(8, 32), (16, 16), (32, 8)], [0, 1, 2], True),
        (f"{HERE}:Residual", 32, [(8, 16)], [0], True),
        (f"{HERE}:OneSize", 16, [(8, 8), (16, 4), (32, 2), (64, 1)], [0, 1, 2, 3], True),
        (f"{HERE}:in_one_body", 32, [(8, 32), (16, 16)], [0, 1], True),
        (f"{HERE}:Crops", 12, [(8, 12), (16, 6), (32, 3)], [0, 1, 2], False),
        (f"{HERE}:Grows", 32, [(8, 4)], [0], False),
        (f"{HERE}:Grows", 64, [(8, 8)], [0], False),
        (f"{HERE}:ChannelsLast", 32, [(12, 8), (24, 4)], [0], True),
        (f"{HERE}:channels_last_16", 32, [(16, 8), (32, 4)], [0], True),
        (f"{HERE}:channels_last_16", 64, [(16, 16), (32, 8)], [0], True),
        (f"{HERE}:channels_last_32", 128, [(32, 32), (64, 16)], [0], True),
    ],
)
def test_features_are_found(name, size, stages, activated, last_map):
    torch.manual_seed(0)
    network = build(name, 7, size)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        shown = network.eval().features(images)
        assert torch.equal(shown.logits, network(images))
    assert [(s.shape[1], s.shape[2]) for s in shown.stages] == stages
    assert shown.stem.shape[2] == shown.stem.shape[3] >= stages[0][1]
    torch.testing.assert_close(shown.head(shown.pooled), shown.logits)
    assert (shown.last_map is not None) == last_map
    if last_map:
        assert shown.last_map is shown.stages[-1]
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
            "stages: act[1] (8, 32, 32), act[2] (16, 16, 16), relu of last (32, 8, 8); "
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


class Tokens(nn.Module):
    """Maps in its first layers, then attention: a hybrid transformer, or one that only pools."""

    def __init__(self, num_classes, width=16, depth=3):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 2, 1)
        self.conv2 = nn.Conv2d(8, width, 3, 2, 1)
        self.blocks = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.out = nn.Linear(width, num_classes)

    def forward(self, x):
        x = self.conv2(F.relu(self.conv1(x))).flatten(2).transpose(1, 2)  # (B, N, C)
        x = self.blocks(x)
        return self.out(self.attention(self.token.expand(len(x), -1, -1), x, x)[0][:, 0])


def hybrid(num_classes):
    return Tokens(num_classes, depth=8)


def attention_pooling(num_classes):
    return Tokens(num_classes, depth=1)


def test_maps_in_front_of_a_transformer_are_no_stages():
    network = build(f"{HERE}:hybrid", 7, 32)
    assert network.describe() == "no stages; no last map; classifier out"
    assert network.features(torch.randn(2, 3, 32, 32)).stem is None
    network = build(f"{HERE}:attention_pooling", 7, 32)
    assert network.describe() == "stages: conv2 (16, 8, 8); no last map; classifier out"


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


@pytest.mark.parametrize("size", [32, 64])
def test_parameters_behind_the_last_stage(size):
    network = build("torchvision:resnet18", 7, size)
    names = {id(p): name for name, p in network.named_parameters()}
    features = {names[id(p)] for p in network.feature_parameters()}
    assert set(names.values()) - features == {"fc.weight", "fc.bias"}
    assert network.head is network.network.fc


class Regularised(Functional):
    """Dropout, and a buffer that training replaces."""

    def forward(self, x):
        if self.training:
            self.scale = self.scale * 0.9
        return super().forward(F.dropout(x, 0.5, self.training))


def test_looking_for_features_leaves_no_trace():
    torch.manual_seed(3)
    plain = Regularised(7)
    torch.manual_seed(3)
    network = build(f"{HERE}:Regularised", 7, 32)
    after = torch.rand(())
    torch.manual_seed(3)
    Regularised(7)
    assert after == torch.rand(()), "torch's generator was used"
    for key, value in plain.state_dict().items():
        assert torch.equal(value, network.state_dict()[key]), key
    assert network.training
    assert all(module.training for module in network.modules())
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
        ("torchvision:densenet121", 8, "cannot read 8x8 images, only others, as 32x32"),
        ("torchvision:inception_v3", 32, "cannot read 32x32 images, only others, as 96x96"),
        ("torchvision:squeezenet1_0", 16, "not that of a torch.nn.Linear.*such a layer reads$"),
        (f"{HERE}:OneSize", 24, r"cannot read 24x24 images: mat1 and mat2 shapes .*\)$"),
        ("torchvision:squeezenet1_1", 32, "not that of a torch.nn.Linear.*such a layer reads$"),
        (f"{HERE}:TwoInTraining", 32, "gives Outputs for 2 images in training.*without auxiliary"),
        (f"{HERE}:FailsInTraining", 32, "cannot train on 32x32 images: give targets as well$"),
        (f"{HERE}:SkipsInTraining", 32, "does not run layer2 in training$"),
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


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        (
            "resnet18",
            32,
            "stages: layer1 (64, 8, 8), layer2 (128, 4, 4), layer3 (256, 2, 2), "
            "layer4 (512, 1, 1); last map layer4; classifier fc",
        ),
        (
            "convnext_atto",
            32,
            "stages: stages.0 (40, 8, 8), stages.1 (80, 4, 4), stages.2 (160, 2, 2), "
            "norm_pre (320, 1, 1); no last map; classifier head.fc",
        ),
        (
            "mobilenetv3_small_050",
            32,
            "stages: blocks.0 (8, 8, 8), blocks.1 (16, 4, 4), blocks.3 (24, 2, 2), "
            "blocks (288, 1, 1); no last map; classifier classifier",
        ),
        ("vit_tiny_patch16_224", 224, "no stages; no last map; classifier head"),
        # Its blocks fold their tokens to maps inside.
        ("xcit_nano_12_p16_224", 32, "no stages; no last map; classifier head"),
        (  # 64 times smaller in the end
            "selecsls42b",
            32,
            "stages: features.1.conv6 (128, 8, 8), features.3.conv6 (288, 4, 4), features.5.conv6 "
            "(480, 2, 2), head.1 (1024, 1, 1), head (1024, 1, 1); last map head; classifier fc",
        ),
    ],
)
def test_timm_where_it_is_installed(name, size, expected):
    pytest.importorskip("timm")
    network = build(f"timm:{name}", 7, size)
    assert network.describe() == expected
    shown = network.features(torch.randn(2, 3, size, size))
    torch.testing.assert_close(shown.head(shown.pooled), shown.logits)


def test_timm_without_such_a_network():
    pytest.importorskip("timm")
    with pytest.raises(UserError, match="timm has no model 'resnet19'"):
        build("timm:resnet19", 7)

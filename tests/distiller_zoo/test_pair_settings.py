"""What published configurations set for single pairs of networks, typed in by hand."""

import pytest

from cli.parse import parse_student

CATKD = {  # weight, grid, normalised
    "resnet32x4->resnet8x4": (15, 2, False), "wrn_40_2->wrn_16_2": (12, 2, False),
    "wrn_40_2->wrn_40_1": (1.5, 2, False), "resnet56->resnet20": (0.7, 2, False),
    "resnet110->resnet32": (1.8, 2, False), "vgg13->vgg8": (4.5, 2, False),
    "resnet32x4->ShuffleV1": (600, 4, True), "resnet32x4->ShuffleV2": (600, 4, True),
    "wrn_40_2->ShuffleV1": (80, 4, True), "ResNet50->MobileNetV2": (40, 2, True),
    "vgg13->MobileNetV2": (15, 2, True),
}  # fmt: skip
CRLD = {  # weight of the terms within a view; else 2
    "resnet110->resnet32": 1, "resnet110->resnet20": 1, "wrn_40_2->resnet8x4": 1,
    "wrn_40_2->wrn_40_1": 0.5, "resnet56->resnet20": 0.5, "resnet32x4->ShuffleV2": 0.5,
    "resnet32x4->resnet8x4": 2, "wrn_40_2->wrn_16_2": 2, "vgg13->vgg8": 2,
    "ResNet50->MobileNetV2": 2, "vgg13->MobileNetV2": 2,
}  # fmt: skip


def options(method, pair, data="cifar100"):
    teacher, student = pair.split("->")
    line = f"--distill {method} --model_t {teacher} --model_s {student} -d {data}"
    return parse_student(line.split())


@pytest.mark.parametrize("pair", CATKD)
def test_catkd(pair):
    found = options("catkd", pair)
    assert (found.beta, found.catkd_grid, found.catkd_normalize) == CATKD[pair]


@pytest.mark.parametrize(
    ("pair", "expected"),
    [("ResNet34->ResNet18", (0.5, 4, False)), ("ResNet50->MobileNetV1", (10, 2, True))],
)
def test_catkd_on_imagenet(pair, expected):
    found = options("catkd", pair, "imagenet")
    assert (found.beta, found.catkd_grid, found.catkd_normalize) == expected


@pytest.mark.parametrize("pair", CRLD)
def test_crld(pair):
    found = options("crld", pair)
    assert (found.crld_within, found.crld_cross) == (CRLD[pair], 0.5)
    assert (found.crld_weak, found.crld_strong, found.gamma) == (0.9, 0.2, 2)


def test_of_all_pairs():
    found = options("ldrld", "resnet32x4->resnet8x4")
    assert (found.ldrld_k, found.ldrld_alpha, found.ldrld_beta, found.kd_T) == (7, 10.5, 7, 4)
    found = options("kd --ctkd", "resnet56->resnet20")
    assert (found.ctkd_start, found.ctkd_range, found.ctkd_loops) == (1, 20, 10)
    found = options("simkd", "resnet32x4->resnet8x4")
    assert (found.gamma, found.alpha, found.beta, found.simkd_factor) == (0, 0, 1, 2)
    found = options("mlkd", "resnet32x4->resnet8x4")
    assert (found.gamma, found.alpha, found.beta) == (0.2, 0, 0.9)

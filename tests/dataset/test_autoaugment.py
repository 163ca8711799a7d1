"""AutoAugment against torchvision's, image by image, and its randomness against itself."""

import pytest
import torch

from dataset import augment, autoaugment
from dataset.autoaugment import (
    POLICY,
    SIGNED,
    auto_augment,
    choose_operations,
    magnitude,
    source_pixels,
    warp,
)
from helper.vision import torchvision
from tests.issued import Issued

NEAREST = torchvision.transforms.InterpolationMode.NEAREST
SIZES = [(32, 32), (30, 44)]


def torchvisions():
    transforms = torchvision.transforms
    return transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10)


def make(n, size=(32, 32)):
    """Random images, (n, 3, H, W) uint8; each channel keeps to a range of its own."""
    generator = torch.Generator().manual_seed(n)
    bounds = torch.rand(2, n, 3, 1, 1, generator=generator) * 256
    noise = torch.rand(n, 3, *size, generator=generator)
    return torch.lerp(*bounds, noise).to(torch.uint8)


def make_hard(size):
    """Random images, and some on which operations have nothing, little or much to spread."""
    images = make(12, size)
    images[1] = 7  # one colour
    images[2, 0] = 200  # one flat channel
    images[3] //= 16
    images[4] = images[4] // 4 + 100
    images[5] = images[5] // 128 * 255  # two values
    images[6] = 0
    images[6, :, 1, 1] = 255  # one bright pixel
    images[7] = 255
    images[7].view(3, -1)[:, :300] = torch.arange(300) % 200  # equalize divides by 1
    images[8] = torch.arange(size[1]).to(torch.uint8) * (255 // size[1])  # smooth
    return images


def ours(images, name, level, sign):
    """One operation of one magnitude for all images (M, 3, H, W)."""
    (m, _, h, w), operation = images.shape, autoaugment.FUNCTIONS[name]
    amount = sign * magnitude(name, level, h, w)
    if operation is warp:
        return warp(images, source_pixels(name, amount, h, w).expand(m, -1))
    return operation(images, torch.full((m, 1, 1, 1), amount))


def test_the_policy_is_torchvisions():
    theirs = [
        tuple((name, round(10 * chance), level or 0) for name, chance, level in pair)
        for pair in torchvisions().policies
    ]
    assert tuple(theirs) == POLICY


def test_the_operations_are_those_of_torchvision():
    space = torchvisions()._augmentation_space(10, (32, 32))
    assert set(space) == set(autoaugment.FUNCTIONS)
    assert {name for name, (_, signed) in space.items() if signed} == set(SIGNED)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", autoaugment.FUNCTIONS)
def test_an_operation_equals_torchvisions_at_every_level(name, size):
    images, apply = make_hard(size), torchvision.transforms.autoaugment._apply_op
    magnitudes, signed = torchvisions()._augmentation_space(10, size)[name]
    has_levels = magnitudes.ndim == 1
    for level in range(10) if has_levels else [0]:
        for sign in (1, -1) if signed else (1,):
            amount = sign * (magnitudes[level] if has_levels else magnitudes).item()
            expected = torch.stack([apply(i, name, amount, NEAREST, None) for i in images])
            assert torch.equal(ours(images, name, level, sign), expected), (level, sign)
    assert not torch.equal(expected, images)  # the last level is not the image itself


def test_images_of_a_group_have_magnitudes_of_their_own():
    images = make(4)
    amounts = torch.tensor([0.3, -0.9, 0.0, 0.9]).view(-1, 1, 1, 1)
    for name in ("Brightness", "Color", "Contrast", "Sharpness"):
        operation = autoaugment.FUNCTIONS[name]
        alone = [operation(i[None], amount[None]) for i, amount in zip(images, amounts)]
        assert torch.equal(operation(images, amounts), torch.cat(alone))
        assert torch.equal(alone[2][0], images[2])


@pytest.mark.parametrize("size", SIZES)
def test_the_policy_equals_torchvisions_for_the_same_choices(size):
    images, index = make(800, size), torch.arange(5000, 5800)
    choices = choose_operations(3, 7, index)
    seen = set(zip(choices.policy.tolist(), *choices.applied.tolist()))
    assert len(seen) > 75  # of 25 sub-policies with both, one or none of their operations
    theirs = torchvisions()
    expected = []
    for i, image in enumerate(images):
        # torchvision applies an operation if its number is at most the chance, and negates at 0
        numbers = 2.0 * ~choices.applied[:, i]
        params = (int(choices.policy[i]), numbers, 1 - choices.negative[:, i])
        theirs.get_params = lambda _, params=params: params
        expected.append(theirs(image))
    got = auto_augment(images, 3, 7, index)
    wrong = (got != torch.stack(expected)).flatten(1).any(1)
    assert not wrong.any(), [POLICY[policy] for policy in choices.policy[wrong]]


def test_pixels_depend_on_seed_epoch_and_sample_alone():
    images, index = make(300), torch.arange(300) * 7
    untouched, state = images.clone(), torch.get_rng_state()
    whole = auto_augment(images, 1, 2, index)
    assert torch.equal(images, untouched)
    assert torch.equal(torch.get_rng_state(), state)
    places = torch.randperm(300)
    for part in places[:200].split([1, 2, 64, 133]):
        assert torch.equal(auto_augment(images[part], 1, 2, index[part]), whole[part])
    for other in [(1, 3, index), (2, 2, index), (1, 2, index + 1)]:
        same = (auto_augment(images, *other) == whole).flatten(1).all(1)
        assert same.double().mean() < 0.2  # of some, neither operation is applied


def test_layout_and_an_empty_batch():
    images, index = make(40, (9, 12)), torch.arange(40)
    expected = auto_augment(images, 0, 0, index)
    for given in (images.to(memory_format=torch.channels_last), images.mT.contiguous().mT):
        got = auto_augment(given, 0, 0, index)
        assert got.is_contiguous()
        assert torch.equal(got, expected)
    assert auto_augment(images[:0], 0, 0, index[:0]).shape == (0, 3, 9, 12)


def chi_square(values, bins):
    expected = len(values) / bins
    return float(((torch.bincount(values, minlength=bins) - expected) ** 2).sum() / expected)


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (0, 1), (-3, 239)])
def test_choices_are_uniform_and_as_likely_as_they_should_be(seed, epoch):
    policy, applied, negative = choose_operations(seed, epoch, torch.arange(20_000))
    # 24 and 99 degrees of freedom; 6 standard deviations of a chi-square
    assert chi_square(policy, 25) < 24 + 6 * 6.9
    assert chi_square((policy * 2 + negative[0]) * 2 + negative[1], 100) < 99 + 6 * 14.1
    for number, pair in enumerate(POLICY):
        mine = applied[:, policy == number].double()
        for share, (_, tenths, _) in zip(mine.mean(dim=1).tolist(), pair):
            chance = tenths / 10
            spread = (chance * (1 - chance) / mine.shape[1]) ** 0.5
            assert abs(share - chance) <= 5 * spread  # never where the chance is 0


def test_choices_are_independent_of_each_other_and_of_the_crop():
    index = torch.arange(20_000)
    policy, applied, negative = choose_operations(0, 0, index)
    chance = torch.tensor([[tenths / 10 for _, tenths, _ in pair] for pair in POLICY]).T
    surprise = applied.double() - chance[:, policy]  # (2, M)
    views = augment.choose_views(0, 0, index, padding=4, flip=True)
    other = choose_operations(0, 1, index)
    order = augment.permutation(0, 0, len(index))
    columns = [policy, *surprise, *negative, *views, other.policy, *other.negative, order]
    together = torch.corrcoef(torch.stack([column.double() for column in columns]))
    assert together.fill_diagonal_(0).abs().max() < 0.036  # 5 standard deviations


def test_the_choices_of_this_version_are_kept():
    """A checkpoint resumed by a later version has to go on with the same pixels."""
    policy, applied, negative = choose_operations(1, 2, torch.arange(6))
    assert policy.tolist() == [1, 19, 0, 8, 23, 20]
    assert applied.int().tolist() == [[1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, 1]]
    assert negative.tolist() == [[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 1]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_gives_the_same_pixels():
    for size in SIZES:
        images, index = make(800, size), torch.arange(800)
        got = auto_augment(images.cuda(), 0, 0, index)
        assert got.is_cuda
        assert torch.equal(got.cpu(), auto_augment(images, 0, 0, index))
        assert torch.equal(auto_augment(images.cuda(), 0, 0, index.cuda()), got)


def test_deterministic_kernels_augment():
    with Issued() as issued:
        auto_augment(make_hard((32, 32)), 0, 0, torch.arange(12))
    assert "index_add_.default" in issued.seen
    assert not issued.refused

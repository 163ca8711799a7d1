"""RandAugment against torchvision's, image by image, and its randomness against itself."""

import pytest
import torch

from dataset import augment, randaugment
from dataset.randaugment import ACTION_OF, ACTIONS, LEVEL, NAMES, choose_actions, rand_augment
from helper.vision import torchvision
from tests.dataset.test_autoaugment import NEAREST, chi_square, make_hard
from tests.issued import Issued


def torchvisions(size):
    """Name -> (magnitude, whether it has a sign) of torchvision's RandAugment(2, 10)."""
    transform = torchvision.transforms.RandAugment(2, 10)
    space = transform._augmentation_space(transform.num_magnitude_bins, size)
    return {
        name: (float(values[transform.magnitude]) if values.ndim else 0.0, signed)
        for name, (values, signed) in space.items()
    }


def test_the_operations_are_those_of_torchvision():
    assert sorted(torchvisions((32, 32))) == sorted([*NAMES, "Identity"])
    assert len(ACTION_OF) == 14
    signed = {name for name, (_, signed) in torchvisions((32, 32)).items() if signed}
    assert {name for name, _, sign in ACTIONS.actions if sign < 0} == signed
    assert {level for _, level, _ in ACTIONS.actions} == {LEVEL}


@pytest.mark.parametrize("size", [(32, 32), (30, 44)])
def test_pixels_equal_torchvisions_for_the_same_choices(size):
    apply = torchvision.transforms.autoaugment._apply_op
    images = make_hard(size).repeat(60, 1, 1, 1)
    index = torch.arange(len(images)) + 1000
    chosen, space = choose_actions(3, 7, index), torchvisions(size)
    expected = []
    for image, pair in zip(images, chosen.T.tolist()):
        for action in pair:
            if action < len(ACTIONS.actions):
                name, _, sign = ACTIONS.actions[action]
                image = apply(image, name, sign * space[name][0], NEAREST, None)
        expected.append(image)
    got = rand_augment(images, 3, 7, index)
    wrong = (got != torch.stack(expected)).flatten(1).any(1)
    assert not wrong.any(), chosen[:, wrong]
    assert len(set(map(tuple, chosen.T.tolist()))) > 250  # of 24 * 24 pairs, none twice as likely


def test_operations_are_uniform_and_independent():
    first, second = choose_actions(0, 0, torch.arange(20_000))
    share = torch.ones(len(ACTIONS.actions) + 1)
    for i, (name, _, sign) in enumerate(ACTIONS.actions):
        share[i] = 0.5 if (name, LEVEL, -sign) in ACTIONS.actions else 1.0
    for chosen in (first, second):  # both signs of an operation together are one of 14
        counts = torch.bincount(chosen, minlength=len(share)).double()
        expected = 20_000 * share / 14
        assert (counts - expected).square().div(expected).sum() < 22 + 6 * 6.6
    views = augment.choose_views(0, 0, torch.arange(20_000), 4, True, augment.STRONG)
    columns = torch.stack([x.double() for x in (first, second, *views)])
    assert torch.corrcoef(columns).fill_diagonal_(0).abs().max() < 0.036  # 5 deviations
    assert chi_square(views.top * 9 + views.left, 81) < 80 + 6 * 12.7


def test_pixels_depend_on_seed_epoch_and_sample_alone():
    images, index = make_hard((32, 32)).repeat(9, 1, 1, 1), torch.arange(108) * 7
    untouched, state = images.clone(), torch.get_rng_state()
    whole = rand_augment(images, 1, 2, index)
    assert torch.equal(images, untouched)
    assert torch.equal(torch.get_rng_state(), state)
    for part in torch.randperm(108).split([1, 2, 40, 65]):
        assert torch.equal(rand_augment(images[part], 1, 2, index[part]), whole[part])
    for other in [(1, 3, index), (2, 2, index), (1, 2, index + 1)]:
        same = (rand_augment(images, *other) == whole).flatten(1).all(1)
        assert same.double().mean() < 0.4  # some images have one colour
    assert rand_augment(images[:0], 0, 0, index[:0]).shape == (0, 3, 32, 32)


def test_the_choices_of_this_version_are_kept():
    """A checkpoint resumed by a later version has to go on with the same pixels."""
    named = [(name, sign) for name, _, sign in ACTIONS.actions] + [None]
    chosen = [[named[a] for a in pair] for pair in choose_actions(1, 2, torch.arange(3)).T.tolist()]
    assert chosen == [
        [("Sharpness", 1), None],
        [("AutoContrast", 1), ("Sharpness", -1)],
        [("ShearY", -1), ("ShearY", -1)],
    ]


def test_deterministic_kernels_augment():
    with Issued() as issued:
        rand_augment(make_hard((32, 32)), 0, 0, torch.arange(12))
    assert not issued.refused
    assert randaugment.LEVELS == 31

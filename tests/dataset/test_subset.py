"""Parts of a training split."""

import pytest
import torch

from dataset import DATASETS
from dataset.base import DataSet, Split, StreamedSet
from dataset.layout import Files, Paths
from dataset.subset import HELD_OUT, hold_out, stratified, take_fraction
from helper.errors import UserError

SIZES = (40, 25, 11, 3)  # of the classes; class 4 has no training image
CLASSES = tuple("abcde")
HALF, FIFTH = (20, 12, 6, 2), (8, 5, 2, 1)  # Python rounds 12.5 to 12, 5.5 to 6 and 1.5 to 2


def labels_of():
    """The labels of SIZES in a fixed disorder."""
    labels = torch.cat([torch.full((n,), k) for k, n in enumerate(SIZES)])
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]


@pytest.fixture(params=["memory", "files"])
def data(request):
    """Each image (or file name) tells the place of its sample."""
    labels, stats = labels_of(), ((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    n = len(labels)
    if request.param == "memory":
        images = torch.arange(n, dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 8, 8)
        train, test = Split(images, labels), Split(images[:5], torch.arange(5))
        return DataSet("numbers", train, test, CLASSES, *stats, padding=1)
    train = Files(Paths(f"train/{i}" for i in range(n)), labels, "train")
    test = Files(Paths(f"val/{i}" for i in range(5)), torch.arange(5), "val")
    return StreamedSet("numbers", train, test, CLASSES, *stats, 8)


def samples(part, split="train"):
    """The places of the samples of a split in the whole training split, as pixels or paths say."""
    own = getattr(part, split)
    if isinstance(part, DataSet):
        return own.images[:, 0, 0, 0].tolist()
    return [int(path.removeprefix("train/")) for path in own.paths]


@pytest.mark.parametrize(("fraction", "sizes"), [(0.5, HALF), (0.2, FIFTH), (1e-9, (1, 1, 1, 1))])
def test_each_class_keeps_its_share(data, fraction, sizes):
    part = take_fraction(data, fraction, seed=1)
    labels = part.train.labels
    assert tuple(labels.bincount().tolist()) == sizes
    kept = samples(part)
    assert kept == sorted(set(kept)), "the old order"
    assert torch.equal(labels, labels_of()[kept]), "images and labels belong together"


def test_only_the_training_split_shrinks(data):
    part = take_fraction(data, 0.5, seed=1)
    assert part.test is data.test
    rest = {**vars(part), "train": None}
    assert rest == {**vars(data), "train": None}
    assert len(data.train.labels) == sum(SIZES), "the data itself is left as it was"


def test_the_seed_alone_decides(data):
    state = torch.get_rng_state()
    first = samples(take_fraction(data, 0.5, seed=1))
    torch.manual_seed(9)
    assert samples(take_fraction(data, 0.5, seed=1)) == first
    torch.set_rng_state(state)
    take_fraction(data, 0.5, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    others = [samples(take_fraction(data, 0.5, seed)) for seed in (0, 2, -1, 1 + 2**32)]
    assert all(other != first for other in others)


def test_fractions_are_nested(data):
    parts = [set(samples(take_fraction(data, f, seed=3))) for f in (0.1, 0.2, 0.5, 0.9, 1.0)]
    assert all(small < large for small, large in zip(parts, parts[1:]))


def test_the_samples_of_this_version_are_kept():
    """A result on a fraction has to be repeatable by a later version."""
    assert stratified(torch.arange(20) % 2, 0.3, seed=1).tolist() == [0, 3, 6, 9, 11, 14]


def test_each_sample_is_as_likely_as_another():
    labels = torch.arange(50) % 5
    counts = torch.zeros(50)
    for seed in range(2000):
        counts[stratified(labels, 0.3, seed)] += 1
    assert (counts / 2000 - 0.3).abs().max() < 0.05  # 5 deviations of a binomial


def test_all_of_it_is_the_data_itself(data):
    assert take_fraction(data, 1.0, seed=1) is data


def test_images_are_held_out_of_each_class_alike(data):
    part = hold_out(data, 0.2, seed=0)
    train, val = samples(part), samples(part, "val")
    assert sorted(train + val) == list(range(sum(SIZES)))
    assert (train, val) == (sorted(train), sorted(val))
    labels = part.val.labels
    assert torch.equal(labels, labels_of()[val])
    assert labels.bincount().tolist() == [8, 5, 2, 1]
    assert part.test is data.test
    assert samples(hold_out(data, 0.2, seed=1), "val") != val
    assert hold_out(data, 0, seed=0) is data


def test_a_fraction_is_taken_of_what_is_not_held_out(data):
    part = hold_out(data, 0.2, seed=0)
    less = take_fraction(part, 0.5, seed=0)
    assert less.val is part.val
    assert set(samples(less)) < set(samples(part))


def test_the_held_out_samples_of_this_version_are_kept():
    labels = torch.arange(20) % 2
    assert stratified(labels, 0.8, 0, HELD_OUT).tolist() == [
        *range(9), 10, 11, 12, 13, 14, 15, 17,
    ]  # fmt: skip


def test_too_small_a_part_is_held_out(data):
    with pytest.raises(UserError, match="--val_fraction 0.001 holds out none of 79 training im"):
        hold_out(data, 0.001, seed=0)


@pytest.mark.parametrize("fraction", [0, -0.1, 1.0001, float("nan")])
def test_what_is_no_fraction(data, fraction):
    with pytest.raises(ValueError, match=r"of the training images: it is in \(0, 1\]"):
        take_fraction(data, fraction, seed=1)


def test_a_part_can_be_trained_on():
    from dataset.loader import Loader, Loading

    fake = DATASETS["fake"]
    part = take_fraction(fake.load(fake.Options(fake_size=100, image_size=8)), 0.3, seed=0)
    index = torch.cat([batch.index for batch in Loader(part, "train", 8, Loading()).batches(0)])
    assert index.sort().values.tolist() == list(range(30))
